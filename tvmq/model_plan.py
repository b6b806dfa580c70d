# SPDX-License-Identifier: Apache-2.0
"""From a model folder and ``PlanOptions`` to a bit plan and its predicted size; nothing is quantized.

The command line and ``tvmq.plan`` meet here; the rules are in ``planning``, ``presets`` and ``size``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay_passes.bit_plan import MAX_JSON_BYTES, BitPlan, Mode, WordBits, decode_plan

from .checkpoint import Checkpoint, read_frequencies
from .errors import InputError, UsageError
from .families import Family, TensorInfo, get_family
from .options import PlanOptions
from .planning import make_plan
from .size import FLOAT_BYTES, SizeReport, predict_size
from .store import read_bytes
from .word_bits import count_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """A plan with what it will cost.

    Attributes:
        plan: bits per tensor.
        size: predicted bytes.
        widths: bits in words for each block, such as ``3`` or ``4, 3, 2, 1 by word``.
        frequencies: int64[v], the token counts that the plan was made with, which order the words; None
            where it needed none.
    """

    plan: BitPlan
    size: SizeReport
    widths: dict[str, str]
    frequencies: NDArray[np.integer] | None = field(default=None, compare=False)

    @property
    def fp32_bytes(self) -> int:
        """The same parameters in FP32."""
        return (self.size.weights + self.size.other_params) * FLOAT_BYTES

    @property
    def ratio(self) -> float:
        """How many times smaller than FP32."""
        return self.fp32_bytes / self.size.bytes

    def to_json(self) -> dict[str, Any]:
        """The object that ``tvmq compile --dry-run --json`` prints, with the keys of ``inspect``."""
        return {
            "source": self.plan.source,
            "mode": self.plan.mode,
            "bits_per_weight": round(self.size.bits_per_weight, 4),
            "size_bytes": self.size.bytes,
            "fp32_bytes": self.fp32_bytes,
            "ratio": round(self.ratio, 3),
            "blocks": [
                {
                    "name": block.name,
                    "bits": round(block.bits_per_weight, 4),
                    "params": block.weights,
                    "size_bytes": block.bytes,
                    "widths": self.widths[block.name],
                }
                for block in self.size.blocks
            ],
            "word_bits": [
                {"rows": rows, "bits": bits} for words in self.plan.words for rows, bits in words.clusters
            ],
        }


def plan_model(model: Path, options: PlanOptions) -> PlanReport:
    """The plan of a model folder and its predicted size.

    Raises:
        InputError: the folder, the plan file or the frequencies cannot be used.
        UsageError: options that contradict each other or do not fit the model.
    """
    checkpoint = Checkpoint.open(model)
    family = get_family(checkpoint.config)
    tensors = family.tensors(family.read_config(checkpoint.config))
    frequencies = None
    if checkpoint.plan is not None:
        plan = _stored_plan(checkpoint, checkpoint.plan, options, tensors)
    else:
        frequencies = None if options.plan else _frequencies(checkpoint, options)
        check_mode(options.mode, checkpoint, family)
        plan = plan_tensors(tensors, options, frequencies)
    check_mode(plan.mode, checkpoint, family)
    return report_plan(checkpoint, tensors, plan, frequencies)


def report_plan(
    checkpoint: Checkpoint,
    tensors: list[TensorInfo],
    plan: BitPlan,
    frequencies: NDArray[np.integer] | None,
) -> PlanReport:
    """A plan of ``tensors``, which are all the matrices of ``checkpoint``, with its predicted size."""
    others = _others(checkpoint, tensors)
    integers = None
    if plan.mode != "float":
        from .integer_size import other_bytes

        integers = other_bytes(others, tensors)
    return PlanReport(
        plan=plan,
        size=predict_size(tensors, plan, _params(others), integers),
        widths=_widths(plan),
        frequencies=frequencies,
    )


def check_mode(mode: Mode, checkpoint: Checkpoint, family: Family) -> None:
    """UsageError or InputError where a model cannot be compiled in ``mode``."""
    if mode == "float":
        return
    if family.task != "encode":
        raise UsageError(f"mode {mode} is for encoders; compile a {family.name} model with mode float")
    if checkpoint.plan is not None:
        raise UsageError(
            f"{checkpoint.path} is a coded checkpoint, whose codes mode {mode} cannot use; compile the "
            "float model it came from"
        )
    from .integer_plan import check_encoder

    check_encoder(family.read_config(checkpoint.config))


def plan_tensors(
    tensors: list[TensorInfo], options: PlanOptions, frequencies: NDArray[np.integer] | None
) -> BitPlan:
    """The plan for ``tensors``: the file that the options name, else one made by their rules.

    Raises:
        InputError: the plan file cannot be used.
        UsageError: options that contradict each other or do not fit the tensors.
    """
    if options.mode == "float" and options.activation_block is not None:
        raise UsageError("--activation-block belongs to --mode block-int")
    if options.plan:
        return _planned(_read_plan(options, tensors), tensors, options)
    if options.mode != "float":
        return _integer_plan(tensors, options, frequencies)
    return _float_plan(tensors, options, options.preset, frequencies)


def _planned(plan: BitPlan, tensors: list[TensorInfo], options: PlanOptions) -> BitPlan:
    """The plan of a file in the mode that the options name; one of the mode already stays as it is."""
    if options.mode == "float":
        return plan
    if plan.mode != "float":
        raise UsageError(f"{options.plan} is a plan of mode {plan.mode} already; leave out --mode")
    from .integer_plan import integer_plan

    return integer_plan(plan, tensors, group_size=None, activation_block=options.activation_block)


def _integer_plan(
    tensors: list[TensorInfo], options: PlanOptions, frequencies: NDArray[np.integer] | None
) -> BitPlan:
    from .integer_plan import DEFAULT_PRESET, integer_plan  # imports TVM, which float plans do without

    preset = options.preset or (DEFAULT_PRESET if options.bits is None else None)
    return integer_plan(
        _float_plan(tensors, options, preset, frequencies),
        tensors,
        group_size=options.group_size or 0,
        activation_block=options.activation_block,
    )


def _float_plan(
    tensors: list[TensorInfo],
    options: PlanOptions,
    preset: str | None,
    frequencies: NDArray[np.integer] | None,
) -> BitPlan:
    return make_plan(
        tensors,
        preset=preset,
        bits=options.bits,
        overrides=options.overrides,
        quantizer=options.quantizer,
        group_size=options.group_size,
        offset=options.offset,
        scale_dtype=options.scale_dtype,
        outliers=options.outliers,
        frequencies=frequencies,
    )


def _stored_plan(
    checkpoint: Checkpoint, plan: BitPlan, options: PlanOptions, tensors: list[TensorInfo]
) -> BitPlan:
    """The plan of a coded checkpoint, whose bits are what they are."""
    if options != PlanOptions():
        raise UsageError(
            f"{checkpoint.path} is a coded checkpoint, its bits are fixed; leave out the options for bits "
            "(--preset, --bits, --plan, --set, --quantizer, --group-size, --offset, --scale-dtype, "
            "--outliers, --frequencies, --text, --mode, --activation-block) or take the float model"
        )
    try:
        plan.validate({info.name: info.shape for info in tensors})
    except ValueError as error:
        raise InputError(f"{checkpoint.path}: {error}") from None
    return plan


def _read_plan(options: PlanOptions, tensors: list[TensorInfo]) -> BitPlan:
    path = options.plan
    wanted = replace(PlanOptions(plan=path), mode=options.mode, activation_block=options.activation_block)
    if path is None or options != wanted:
        raise UsageError("--plan is used as it is; edit the file instead of adding other options for bits")
    try:
        plan = decode_plan(read_bytes(path, MAX_JSON_BYTES))
        plan.validate({info.name: info.shape for info in tensors})
        if plan.mode != "float":
            from .integer_plan import check_integer_plan

            check_integer_plan(plan)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return plan


def _frequencies(checkpoint: Checkpoint, options: PlanOptions) -> NDArray[np.int64] | None:
    """Counts per token id: from the text or file the user named, else from the model folder."""
    if options.text and options.frequencies:
        raise UsageError("--text and --frequencies exclude each other; give one of them")
    if options.frequencies:
        return read_frequencies(options.frequencies, checkpoint.config.get("vocab_size"))
    if options.text:
        from .tasks import get_task

        tokenizer = get_task(get_family(checkpoint.config).task).open_tokenizer(checkpoint.path)
        return count_tokens(options.text, tokenizer, checkpoint.config["vocab_size"])
    return checkpoint.frequencies()


def other_params(checkpoint: Checkpoint, tensors: list[TensorInfo]) -> int:
    """Parameters that the model computes with and that are never quantized: biases, norms, small tables."""
    return _params(_others(checkpoint, tensors))


def _others(checkpoint: Checkpoint, tensors: list[TensorInfo]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what ``other_params`` counts."""
    family = get_family(checkpoint.config)
    used = family.shapes(family.read_config(checkpoint.config)).keys() - {info.name for info in tensors}
    return {name: checkpoint.shape(name) for name in checkpoint.names() if name in used}


def _params(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _widths(plan: BitPlan) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    for entry in plan.entries():
        known = texts.setdefault(entry.block, [])
        if isinstance(entry, WordBits):
            text = f"{', '.join(str(bits) for _, bits in entry.clusters)} by word"
        else:
            text = str(entry.bits)
        if text not in known:
            known.append(text)
    return {block: " and ".join(sorted(widths)) for block, widths in texts.items()}
