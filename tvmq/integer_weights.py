# SPDX-License-Identifier: Apache-2.0
"""The weights of the block-integer mode: which graphs and tensors are in the body, and all its arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan
from relay_passes.integer_body import BodyStep, body_steps
from relay_passes.lowering import is_entry
from schedules import integer_tables
from schedules.block_quantize import GELU_TABLES
from schedules.integer_storage import TABLES, function_table

from .calibration import Calibration
from .errors import InputError
from .integer_packing import Packer
from .integer_plan import check_integer_plan
from .options import Progress, no_progress
from .quantization import check_calibration
from .weights import Source

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerBody:
    """The body of an encoder in integers: its graphs with exponents, and where its weights come from.

    Attributes:
        graphs: after ``choose_exponents``.
        outside: the plan of what is not in the body.
    """

    graphs: tvm.IRModule
    outside: BitPlan
    _plan: BitPlan
    _calibration: Calibration | None
    _source: Source

    @classmethod
    def of(
        cls,
        graphs: tvm.IRModule,
        plan: BitPlan,
        longest: int,
        calibration: Calibration | None,
        source: Source,
        dump: Path | None = None,
    ) -> IntegerBody:
        """Chooses the exponents of annotated ``graphs``.

        Args:
            graphs: after the common phases.
            plan: of mode block-int.
            longest: tokens of the longest text.
            calibration: ranges of channels, and moments for quantizers that go by them.
            source: reads a float tensor of the model.
            dump: folder for the IR with its exponents.

        Raises:
            ValueError: a plan that does not fit together.
        """
        from .pipeline import integer_phase, run_phase

        inside = body_tensors(graphs, plan)
        check_integer_plan(plan)
        ranges = ranges_of(calibration, inside)
        return cls(
            graphs=run_phase(graphs, integer_phase(plan, longest, ranges), dump),
            outside=replace(
                plan,
                blocks=tuple(entry for entry in plan.blocks if entry.tensor not in inside),
                words=tuple(entry for entry in plan.words if entry.tensor not in inside),
            ),
            _plan=plan,
            _calibration=calibration,
            _source=source,
        )

    def arrays(
        self, frequencies: NDArray[np.integer] | None, progress: Progress = no_progress
    ) -> dict[str, NDArray[Any]]:
        """See ``integer_arrays``."""
        return integer_arrays(
            self.graphs,
            self._plan,
            self._source,
            frequencies=frequencies,
            calibration=self._calibration,
            progress=progress,
        )


def integer_arrays(
    module: tvm.IRModule,
    plan: BitPlan,
    source: Source,
    *,
    frequencies: NDArray[np.integer] | None = None,
    calibration: Calibration | None = None,
    progress: Progress = no_progress,
) -> dict[str, NDArray[Any]]:
    """Every array that the integer body reads, by stored name.

    Args:
        module: after ``choose_exponents``.
        plan: bits of every tensor.
        source: reads a float tensor of the model.
        frequencies: occurrences of each word, for bits by word.
        calibration: second moments, for quantizers that go by them.
        progress: called with tensors done.

    Raises:
        InputError: a tensor that cannot be quantized.
        UsageError: codes of the plan need a calibration, and there is none.
    """
    packer = Packer(plan, source, frequencies, calibration)
    steps = {(step.kind, step.path): step for step in _steps(module, plan)}
    linears = {step.tensor for step in steps.values() if step.kind == "linear"}
    check_calibration([entry for entry in plan.blocks if entry.tensor in linears], calibration)
    arrays = _function_tables(steps.values())
    progress("quantize", 0, len(steps))
    for done, step in enumerate(steps.values(), 1):
        try:
            arrays |= packer.pack(step)
        except ValueError as error:
            raise InputError(f"{step.tensor or step.path}: {error}") from error
        progress("quantize", done, len(steps))
    return arrays


def _function_tables(steps: Iterable[BodyStep]) -> dict[str, NDArray[Any]]:
    """Every function table; ValueError for a body that computes GELU in two forms."""
    composites = [step.composite for step in steps if step.kind == "linear" and step.composite is not None]
    forms = {str(composite.attrs["tvmq.activation"]) for composite in composites} & GELU_TABLES.keys()
    if len(forms) > 1:
        raise ValueError(f"the model computes {' and '.join(sorted(forms))}; mode block-int has one of them")
    made = {
        "exp2": integer_tables.exp2_table,
        "gelu": GELU_TABLES[next(iter(forms), "gelu")],
        "rsqrt": integer_tables.rsqrt_table,
    }
    return {function_table(name).name: made[name]() for name in sorted(TABLES)}


def body_tensors(module: tvm.IRModule, plan: BitPlan) -> set[str]:
    """The matrices and tables of the body."""
    return {step.tensor for step in _steps(module, plan) if step.tensor}


def _steps(module: tvm.IRModule, plan: BitPlan) -> list[BodyStep]:
    found = []
    for function in module.functions.values():
        if is_entry(function):
            steps = body_steps(module, function, plan).values()
            found += [step for step in steps if step.composite is not None]
    return found


def ranges_of(calibration: Calibration | None, tensors: Collection[str]) -> dict[str, NDArray[np.float64]]:
    """Matrix -> root mean square of each input channel, as the calibration has it."""
    if calibration is None:
        return {}
    measured = set(calibration.names())
    return {
        name: np.sqrt(np.maximum(np.diag(calibration.moments(name)).astype(np.float64), 0))
        for name in sorted(tensors)
        if name in measured
    }
