# SPDX-License-Identifier: Apache-2.0
"""One step of the integer body at a time: its float weights folded, quantized and laid out as stored.

What a composite of ``choose_exponents`` says is carried out here: columns take over the channel exponents
of what they read, query rows the factor of the scores, biases and norms become whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits
from relay_passes.integer_body import BodyStep
from relay_passes.lower_block_int import BIAS_SHIFT, matrix_spec, row_table
from schedules.block_gather import LEVEL_BITS, pack_row_planes
from schedules.block_norm import NormConstants
from schedules.level_packing import pack_group_shifts, pack_levels, pack_row_exponents, pack_rows
from schedules.packing import BitPlanes, pack_keys, pack_scales
from schedules.pow2 import POW2
from schedules.rounding_shift import LARGEST_SHIFT, MOVED_LIMIT

from .calibration import Calibration
from .integer_levels import LOWEST, quantize_levels
from .quantization import quantize_matrix, word_order
from .quantizers import NEED_MOMENTS
from .weights import Source


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


class Packer:
    """Gives the stored arrays of a body's steps, by name."""

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
        bias = self._source(fold.bias).astype(np.float64) * fold.scale if fold.bias else np.zeros(n)
        if entry.bits == LEVEL_BITS:
            levels = quantize_levels(weight, moments, least_exponents(bias))
            arrays: dict[str, NDArray[Any]] = {f"{fold.tensor}:levels": pack_levels(levels.levels)}
            exponents = levels.exponents
        else:
            planes = quantize_matrix(weight, entry, moments)
            assert spec.w_groups == planes.scales.shape[2]
            arrays, exponents = _packed_planes(fold.tensor, planes, least_exponents(bias))
        shifts, top = pack_row_exponents(exponents)
        arrays |= {f"{fold.tensor}:row_shifts": shifts, f"{fold.tensor}:top": top}
        if fold.bias:
            arrays[f"{fold.bias}:integer"] = _whole_bias(bias, exponents)
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
        planes = replace(planes, exponents=own_exponents(planes))
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


def _packed_planes(
    tensor: str, planes: BitPlanes, least: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int8]]:
    """Keys, alphas and group shifts by name, and the rows' exponents, which are ``least`` or more."""
    own = own_exponents(planes).astype(np.int64)
    top = np.maximum(own.max(axis=1), least)
    arrays: dict[str, NDArray[Any]] = {f"{tensor}:keys": pack_keys(planes)}
    if own.shape[1] > 1:
        shifts = np.minimum(top[:, None] - own, LARGEST_SHIFT)
        arrays[f"{tensor}:group_shifts"] = pack_group_shifts(shifts.astype(np.uint8))
    else:
        raised = np.rint(np.ldexp(planes.scales.astype(np.float64), own - top[:, None]))
        planes = replace(planes, scales=raised.astype(np.int8))
    return arrays | {f"{tensor}:alphas": pack_scales(planes)}, top.astype(np.int8)


def own_exponents(planes: BitPlanes) -> NDArray[np.int8]:
    """int8[n, groups]: exponents of power-of-two planes, the lowest where all mantissas are zero.

    Rows and groups of zeros then move no other row or group down.
    """
    assert planes.exponents is not None
    return np.where((planes.scales == 0).all(axis=0), np.int8(LOWEST), planes.exponents)


def least_exponents(bias: NDArray[np.floating]) -> NDArray[np.int64]:
    """int64[n]: the least exponents of rows whose biases stay below 2**30 over ``BIAS_SHIFT``."""
    bits = MOVED_LIMIT.bit_length()
    return np.where(bias == 0, LOWEST, np.frexp(bias)[1].astype(np.int64) - bits - BIAS_SHIFT)


def _whole_bias(bias: NDArray[np.floating], exponents: NDArray[np.int8]) -> NDArray[np.int32]:
    """int32[blocks, 64]: the bias over its rows' exponents and ``BIAS_SHIFT``."""
    whole = np.rint(np.ldexp(bias.astype(np.float64), -(exponents.astype(np.int64) + BIAS_SHIFT)))
    return pack_rows(np.clip(whole, -MOVED_LIMIT, MOVED_LIMIT).astype(np.int32))
