# SPDX-License-Identifier: Apache-2.0
"""The weights of the block-integer mode: scales of the graph folded in, quantized, laid out as stored.

What a composite of ``choose_exponents`` says is carried out here: columns take over the channel exponents
of what they read, query rows the factor of the scores, biases and norms become whole numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits
from relay_passes.integer_body import BodyStep, body_steps
from relay_passes.lower_block_int import BIAS_SHIFT, matrix_spec, row_table
from relay_passes.lowering import is_entry
from schedules import integer_tables
from schedules.block_gather import LEVEL_BITS, pack_row_planes
from schedules.block_norm import NormConstants
from schedules.integer_storage import TABLES, function_table
from schedules.level_packing import pack_group_shifts, pack_levels, pack_row_exponents, pack_rows
from schedules.packing import BitPlanes, pack_keys, pack_scales
from schedules.pow2 import POW2
from schedules.rounding_shift import MOVED_LIMIT

from .calibration import Calibration
from .errors import InputError
from .integer_levels import quantize_levels
from .options import Progress, no_progress
from .quantization import quantize_matrix, word_order
from .quantizers import NEED_MOMENTS
from .weights import Source

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """What a matrix of the body is multiplied by before it is quantized.

    Attributes:
        tensor: its name.
        columns: int64[k], channel exponents that its columns take over.
        scale: factor of its rows and bias.
        bias: name of its bias, or "".
    """

    tensor: str
    columns: NDArray[np.int64]
    scale: float
    bias: str

    def weight(self, weight: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64[n, k]: the matrix that is quantized."""
        return np.ldexp(weight.astype(np.float64) * self.scale, self.columns)

    def moments(self, moments: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64[k, k]: second moments of the inputs that the matrix then reads."""
        return np.ldexp(moments.astype(np.float64), -(self.columns[:, None] + self.columns))


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
    ) -> IntegerBody:
        """Chooses the exponents of annotated ``graphs``; ValueError for plans that do not fit together."""
        from .pipeline import integer_phase, run_phase

        inside = body_tensors(graphs, plan)
        ranges = ranges_of(calibration, inside)
        return cls(
            graphs=run_phase(graphs, integer_phase(plan, longest, ranges)),
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
    """
    packer = _Packer(plan, source, frequencies, calibration)
    steps = {(step.kind, step.path): step for step in _steps(module, plan)}
    arrays = {
        function_table(name).name: getattr(integer_tables, f"{name}_table")() for name in sorted(TABLES)
    }
    progress("quantize", 0, len(steps))
    for done, step in enumerate(steps.values(), 1):
        try:
            arrays |= packer.pack(step)
        except ValueError as error:
            raise InputError(f"{step.tensor or step.path}: {error}") from error
        progress("quantize", done, len(steps))
    return arrays


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


class _Packer:
    def __init__(
        self,
        plan: BitPlan,
        source: Source,
        frequencies: NDArray[np.integer] | None,
        calibration: Calibration | None,
    ) -> None:
        self._entries = {entry.tensor: entry for entry in plan.entries()}
        self._source, self._calibration = source, calibration
        self._order = word_order(plan, frequencies)

    def pack(self, step: BodyStep) -> dict[str, NDArray[Any]]:
        match step.kind:
            case "linear":
                return self._matrix(step)
            case "norm":
                return self._norm(step)
            case _:
                return self._table(step)

    def _matrix(self, step: BodyStep) -> dict[str, NDArray[Any]]:
        fold, entry = _folded(step), self._entries[step.tensor]
        assert isinstance(entry, BlockBits)
        weight = fold.weight(self._source(fold.tensor))
        n, k = weight.shape
        spec = matrix_spec(entry, n, k, bias=bool(fold.bias))
        moments = self._moments(entry, fold)
        if entry.bits == LEVEL_BITS:
            levels = quantize_levels(weight, moments)
            arrays: dict[str, NDArray[Any]] = {f"{fold.tensor}:levels": pack_levels(levels.levels)}
            exponents = levels.exponents
        else:
            planes = quantize_matrix(weight, entry, moments)
            arrays, exponents = _packed_planes(fold.tensor, planes)
            assert spec.w_groups == planes.scales.shape[2]
        shifts, top = pack_row_exponents(exponents)
        arrays |= {f"{fold.tensor}:row_shifts": shifts, f"{fold.tensor}:top": top}
        if fold.bias:
            arrays[f"{fold.bias}:integer"] = _whole_bias(self._source(fold.bias) * fold.scale, exponents)
        return arrays

    def _moments(self, entry: BlockBits, fold: Folded) -> NDArray[np.float64] | None:
        wanted = entry.bits == LEVEL_BITS or entry.quantizer in NEED_MOMENTS
        if self._calibration is None or not wanted:
            return None
        return fold.moments(self._calibration.moments(fold.tensor))

    def _norm(self, step: BodyStep) -> dict[str, NDArray[Any]]:
        assert step.composite is not None
        attrs = step.composite.attrs
        gamma, beta = (self._source(f"{step.path}.{part}") for part in ("weight", "bias"))
        names = ("tvmq.channels", "tvmq.residual_channels")
        own, residual = (_exponents(attrs[name], gamma.shape[0]) for name in names)
        constants = NormConstants.of(
            gamma, beta, float(attrs["tvmq.epsilon"]), channels=own, residual_channels=residual
        )
        return {
            f"{step.path}:channels": own,
            f"{step.path}:gamma": constants.gamma,
            f"{step.path}:beta": constants.beta,
            f"{step.path}:constants": constants.constants,
        }

    def _table(self, step: BodyStep) -> dict[str, NDArray[Any]]:
        weight, entry = self._source(step.tensor), self._entries.get(step.tensor)
        assert entry is None or isinstance(entry, BlockBits | WordBits)
        table = row_table(entry, weight.shape[0])
        if not table.rank_dtype:
            return self._rows(step.tensor, weight, entry, table.segments[0].bits)
        assert isinstance(entry, WordBits)
        if self._order is None:
            raise ValueError("bits by word need token frequencies, and there are none")
        rank = np.empty(weight.shape[0], table.rank_dtype)
        rank[self._order] = np.arange(weight.shape[0])
        arrays: dict[str, NDArray[Any]] = {f"{step.tensor}:rank": rank}
        first = 0
        for i, segment in enumerate(table.segments):
            rows = weight[self._order[first : first + segment.rows]]
            arrays |= self._rows(f"{step.tensor}:{i}", rows, entry, segment.bits)
            first += segment.rows
        return arrays

    def _rows(self, prefix: str, rows: NDArray[np.float32], entry: Any, bits: int) -> dict[str, NDArray[Any]]:
        if bits == LEVEL_BITS:
            levels = quantize_levels(rows)
            return {f"{prefix}:row_levels": levels.levels, f"{prefix}:row_exponents": levels.exponents}
        quantizer = "alternating" if entry.quantizer in NEED_MOMENTS else entry.quantizer
        block = BlockBits(
            tensor=entry.tensor, block=entry.block, bits=bits, quantizer=quantizer, scale_dtype=POW2
        )
        planes = quantize_matrix(rows, block, None)
        return {f"{prefix}:row_{name}": array for name, array in pack_row_planes(planes).items()}


def _folded(step: BodyStep) -> Folded:
    composite = step.composite
    assert composite is not None
    bias = composite.argument(step.value, "b")
    k = int(composite.argument(step.value, "w").ty.shape[1])
    return Folded(
        tensor=step.tensor,
        columns=_exponents(composite.attrs["tvmq.columns"], k).astype(np.int64),
        scale=float(composite.attrs["tvmq.scale"]),
        bias="" if bias is None else str(bias.name),
    )


def _exponents(values: Any, width: int) -> NDArray[np.int8]:
    """An attribute of exponents as int8[width]; an empty one means zeros."""
    found = np.array([int(value) for value in values], np.int8)
    return found if found.size else np.zeros(width, np.int8)


def _packed_planes(tensor: str, planes: BitPlanes) -> tuple[dict[str, NDArray[Any]], NDArray[np.int8]]:
    """Keys, alphas and group shifts by name, and the rows' exponents."""
    assert planes.exponents is not None
    top = planes.exponents.max(axis=1)
    arrays: dict[str, NDArray[Any]] = {
        f"{tensor}:keys": pack_keys(planes),
        f"{tensor}:alphas": pack_scales(planes),
    }
    if planes.exponents.shape[1] > 1:
        shifts = np.minimum(top[:, None].astype(np.int64) - planes.exponents, 31)
        arrays[f"{tensor}:group_shifts"] = pack_group_shifts(shifts.astype(np.uint8))
    return arrays, top


def _whole_bias(bias: NDArray[np.floating], exponents: NDArray[np.int8]) -> NDArray[np.int32]:
    """int32[blocks, 64]: the bias over its rows' exponents and ``BIAS_SHIFT``."""
    whole = np.rint(np.ldexp(bias.astype(np.float64), -(exponents.astype(np.int64) + BIAS_SHIFT)))
    return pack_rows(np.clip(whole, -MOVED_LIMIT, MOVED_LIMIT).astype(np.int32))


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
