# SPDX-License-Identifier: Apache-2.0
"""ChooseExponents: the constant exponents of the integer body, and the layouts of its activations.

Before: composites with ranges. After: norms carry ``tvmq.channels`` (an exponent for every channel of their
result, see below; empty: zeros), ``tvmq.residual_channels`` (those of the residual), ``tvmq.block`` and
``tvmq.activation_bits`` (of their result, as the plan gives them to its readers); linears carry
``tvmq.columns`` (exponents of the columns that they read: the weights take them over) and ``tvmq.scale``
(what the rows are multiplied by: log2(e) / sqrt(head width) for queries, so that scores are powers of 2).

Channels of large range get larger exponents: half of the range's logarithm, so that activations and weights
share the burden (SmoothQuant, arXiv 2211.10438, with powers of two and alpha = 1/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from .annotate_ranges import Annotator
from .bit_plan import BitPlan, BlockBits
from .integer_body import BodyStep, body_steps
from .lowering import is_entry

STRENGTH = 0.5
"""Share of a channel's range that its exponent takes up."""
LARGEST = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseExponents:
    """Choose for every entry function; runs after AnnotateRanges.

    Raises:
        ValueError: matrices that read one norm want different activations.
    """

    plan: BitPlan

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        entries = {entry.tensor: entry for entry in self.plan.blocks}
        annotator = Annotator(module)
        for var, function in module.functions.items():
            if is_entry(function):
                steps = body_steps(module, function, self.plan)
                annotator.annotate(var, function, _facts(steps, entries))
        return relax.transform.DeadCodeElimination()(annotator.builder_.get())


def channel_exponents(ranges: list[float]) -> list[int]:
    """An exponent for each channel from its range; all zero exponents for no ranges."""
    if not ranges:
        return []
    values = np.maximum(np.asarray(ranges, np.float64), 1e-12)
    relative = np.log2(values / np.median(values))
    return [int(e) for e in np.clip(np.rint(STRENGTH * relative), -LARGEST, LARGEST)]


def _facts(steps: dict[Any, BodyStep], entries: dict[str, BlockBits]) -> dict[Any, dict[str, Any]]:
    norms = [step for step in steps.values() if step.kind == "norm"]
    channels = {step.path: channel_exponents(_ranges(step)) for step in norms}
    facts: dict[Any, dict[str, Any]] = {}
    for step in norms:
        residual = str(_attr(step, "tvmq.residual"))
        block, bits = _activations(step, steps, entries)
        facts[step.var] = {
            "tvmq.channels": channels[step.path],
            "tvmq.residual_channels": channels.get(residual, []),
            "tvmq.block": block,
            "tvmq.activation_bits": bits,
        }
    for step in steps.values():
        if step.kind == "linear":
            facts[step.var] = {
                "tvmq.columns": channels.get(str(_attr(step, "tvmq.reads")), []),
                "tvmq.scale": _scale(step),
            }
    return facts


def _activations(
    norm: BodyStep, steps: dict[Any, BodyStep], entries: dict[str, BlockBits]
) -> tuple[int, int]:
    """Columns that share an exponent (0: the row) and bits of a norm's result."""
    readers = [step for step in steps.values() if step.kind == "linear" and norm.var in step.sources]
    wanted = {
        step.tensor: (entries[step.tensor].activation_block or 0, entries[step.tensor].activation_bits)
        for step in readers
    }
    if len(set(wanted.values())) > 1:
        names = ", ".join(sorted(wanted))
        raise ValueError(f"{names} read the same activations; give them one activation_block and one width")
    if wanted:
        return next(iter(wanted.values()))
    default = BlockBits(tensor="-", block="-", bits=1)
    return default.activation_block or 0, default.activation_bits


def _ranges(step: BodyStep) -> list[float]:
    return [float(value) for value in _attr(step, "tvmq.ranges")]


def _scale(step: BodyStep) -> float:
    assert step.composite is not None
    if "tvmq.heads" not in step.composite.attrs:
        return 1.0
    rows = int(step.composite.argument(step.value, "w").ty.shape[0])
    return math.log2(math.e) / math.sqrt(rows / int(_attr(step, "tvmq.heads")))


def _attr(step: BodyStep, name: str) -> Any:
    assert step.composite is not None
    return step.composite.attrs[name]
