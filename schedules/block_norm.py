# SPDX-License-Identifier: Apache-2.0
"""Layer norm in integers: residual add by aligning exponents, mean, variance, 1 / sqrt by table and Newton.

Meaning, exact on every ISA level: ``h = y + x`` is brought to one exponent per token (23 bits), mean and
variance are sums in int64, the normalised row is Q10, gamma and beta are whole numbers over constants'
exponents. ``constants`` holds what is not in the code, so that equal layers share a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_format import (
    FINE_BITS,
    BlockLayout,
    bit_length,
    emit_bit_length,
    emit_peak,
    emit_quantize_row,
    fine_part,
    quantize,
)
from .integer_tables import emit_rsqrt, rsqrt
from .lut_table import tree_reduce
from .rounding_shift import (
    clamp_shifts,
    move,
    move_by,
    rounding_half,
    shift_round,
    vector_shift_round,
)
from .tir import LANES, KernelBuilder, T, body, isplat, leading_zeros, load, scratch, settle, splat, store

SUM_BITS = 22
"""Bits of each summand of h."""
RESIDUAL_UP = 15
CENTERED_BITS = 14
VARIANCE_BITS = 10
"""The variance of the centred row is Q10."""
NORMAL_BITS = 10
"""The normalised row is Q10."""
GAMMA_BITS = 14
BETA_BITS = 29
MAX_WIDTH = 4096
"""Wider rows could leave int32: |x| <= sqrt(width) in Q10 times gamma's 14 bits."""
NARROW = 2048
"""Rows up to here add up in int32 lanes: 128 values of 23 bits each."""
HIGHEST = (1 << 31) - 1
CONSTANTS = ("exponent", "beta_up", "epsilon", "epsilon_exponent", "top_channel")
_EXPONENT, _BETA_UP, _EPSILON, _EPSILON_EXPONENT, _TOP_CHANNEL = range(len(CONSTANTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNormSpec:
    """One integer layer norm: the layouts of its result and of the residual that is added (or None)."""

    layout: BlockLayout
    residual: BlockLayout | None

    def __post_init__(self) -> None:
        if self.residual is not None and self.residual.width != self.layout.width:
            raise ValueError(
                f"a residual of {self.residual.width} columns for rows of {self.layout.width}, expected equal"
            )
        if self.layout.width > MAX_WIDTH:
            raise ValueError(f"rows of {self.layout.width} columns, integer norms take {MAX_WIDTH} at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConstants:
    """gamma and beta as integers: what the kernel reads of a layer norm.

    Attributes:
        gamma: int16[width], times 2**(exponent + 10).
        beta: int16[width], times 2**(exponent + beta_up).
        constants: int32[5], in the order of ``CONSTANTS``.
    """

    gamma: NDArray[np.int16]
    beta: NDArray[np.int16]
    constants: NDArray[np.int32]

    @staticmethod
    def of(
        gamma: NDArray[np.floating],
        beta: NDArray[np.floating],
        epsilon: float,
        *,
        channels: NDArray[np.int8] | None = None,
        residual_channels: NDArray[np.int8] | None = None,
    ) -> NormConstants:
        """Rounds a layer norm's parameters.

        Args:
            gamma, beta: float[width], finite.
            epsilon: added to the variance.
            channels: channel exponents of the result, folded into gamma and beta.
            residual_channels: channel exponents of the residual.
        """
        own = np.zeros(gamma.shape[0], np.int64) if channels is None else channels.astype(np.int64)
        g, b = (np.ldexp(np.asarray(values, np.float64), -own) for values in (gamma, beta))
        exponent = max(_exponent(g, GAMMA_BITS) - NORMAL_BITS, _exponent(b, BETA_BITS))
        up = max(0, _exponent(b, 15) - exponent)
        mantissa, power = np.frexp(epsilon)
        top = 0 if residual_channels is None else int(residual_channels.max())
        constants = [exponent, up, round(mantissa * (1 << 15)), int(power) - 15, top]
        return NormConstants(
            gamma=np.rint(np.ldexp(g, -exponent - NORMAL_BITS)).astype(np.int16),
            beta=np.clip(np.rint(np.ldexp(b, -exponent - up)), -32767, 32767).astype(np.int16),
            constants=np.array(constants, np.int32),
        )


def _exponent(values: NDArray[np.float64], bits: int) -> int:
    """The least exponent over which ``values`` are whole numbers of at most ``bits`` bits."""
    peak = float(np.abs(values).max(initial=0))
    return int(np.frexp(peak)[1]) - bits if peak else -100


def reference(
    y: NDArray[np.int32],
    y_exponents: NDArray[np.int32],
    norm: NormConstants,
    spec: BlockNormSpec,
    residual: tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.int8], NDArray[np.int8]] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.int8]]:
    """NumPy meaning of :func:`block_norm` in int64.

    Args:
        y: int32[m, width], to be read times 2**y_exponents.
        y_exponents: int32[m].
        norm: gamma, beta, constants.
        spec: the layout.
        residual: mantissas, exponents, fine part and channel exponents of the blocks that are added.

    Returns:
        mantissas int8[m, padded], exponents int32[m, groups] and the fine part int8[m, width].
    """
    constants = [int(value) for value in norm.constants]
    h, common = _aligned(y, y_exponents, residual, spec, constants[_TOP_CHANNEL])
    width = spec.layout.width
    mean = (2 * h.sum(axis=1) + width) // (2 * width)
    centered = h - mean[:, None]
    down = np.maximum(bit_length(np.abs(centered).max(axis=1)) - CENTERED_BITS, 0)
    z = shift_round(centered, down[:, None])
    variance = ((z * z).sum(axis=1) << VARIANCE_BITS) // width
    shift = constants[_EPSILON_EXPONENT] + VARIANCE_BITS - 2 * (common + down)
    epsilon = np.int64(constants[_EPSILON])
    variance = variance + np.where(
        shift >= 0, epsilon << np.clip(shift, 0, 40), epsilon >> np.clip(-shift, 0, 63)
    )
    variance = np.maximum(variance, 1)
    even = (32 - bit_length(variance)) & ~1
    n = np.where(even >= 0, variance << np.maximum(even, 0), variance >> np.maximum(-even, 0))
    root = rsqrt(n) >> 9
    normal = shift_round(z * root[:, None], (16 - even // 2)[:, None])
    out = normal * norm.gamma.astype(np.int64) + (norm.beta.astype(np.int64) << constants[_BETA_UP])
    exponents = np.full(y.shape[0], constants[_EXPONENT], np.int64)
    blocks = quantize(out, exponents, spec.layout)
    return *blocks, fine_part(out, exponents, blocks, spec.layout)


def _aligned(
    y: NDArray[np.int32], y_exponents: NDArray[np.int32], residual: Any, spec: BlockNormSpec, top_channel: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """h int64[m, width] and its exponents int64[m]."""
    wide, exponents = y.astype(np.int64), y_exponents.astype(np.int64)
    top = exponents + bit_length(np.abs(wide).max(axis=1))
    if residual is None or spec.residual is None:
        common = top - SUM_BITS
        return move(wide, (common - exponents)[:, None]), common
    mantissas, x_exponents, fine, channels = residual
    top = np.maximum(top, x_exponents.max(axis=1) + top_channel + 7)
    common = top - SUM_BITS
    columns = np.repeat(x_exponents.astype(np.int64), spec.residual.block, axis=1) + channels
    raised = mantissas[:, : spec.layout.width].astype(np.int64) << RESIDUAL_UP
    raised += fine.astype(np.int64) << (RESIDUAL_UP - FINE_BITS)
    added = shift_round(raised, common[:, None] + RESIDUAL_UP - columns)
    return move(wide, (common - exponents)[:, None]) + added, common


def block_norm(spec: BlockNormSpec, isa: str, name: str = "block_norm") -> Any:
    """PrimFunc for any number of tokens m.

    Parameters in order: y int32[m, width], y_exponents int32[m]; with a residual its mantissas
    int8[m, padded], exponents int32[m, groups], fine part int8[m, width] and channel exponents int8[width];
    gamma and beta int16[width], constants int32[5], the table of ``integer_tables.rsqrt_table``; then the
    outputs mantissas, exponents and fine part.
    """
    kernel = KernelBuilder(name)
    layout = spec.layout
    with kernel.define():
        m = T.int64()
        y = kernel.param("y", (m, layout.width), "int32")
        y_exponents = kernel.param("y_exponents", (m,), "int32")
        residual = None
        if spec.residual is not None:
            residual = (
                kernel.param("x", (m, spec.residual.padded), "int8"),
                kernel.param("x_exponents", (m, spec.residual.groups), "int32"),
                kernel.param("x_fine", (m, layout.width), "int8"),
                kernel.param("channels", (layout.width,), "int8"),
            )
        gamma, beta = (kernel.param(n, (layout.width,), "int16") for n in ("gamma", "beta"))
        constants = kernel.param("constants", (len(CONSTANTS),), "int32")
        table = kernel.param("rsqrt", (48,), "int32")
        mantissas = kernel.param("mantissas", (m, layout.padded), "int8")
        exponents = kernel.param("exponents", (m, layout.groups), "int32")
        fine = kernel.param("fine", (m, layout.width), "int8")
        reads = [y, y_exponents, *(residual or ()), gamma, beta, constants, table]
        with body([mantissas, exponents, fine], reads):
            row = T.alloc_buffer([layout.width], "int32", align=64, layout=None)
            emitter = _Row(spec, row, constants, table)
            with T.serial(0, m) as t:
                common = emitter.align(y, y_exponents, residual, t)
                emitter.normalise(common, gamma, beta)
                exponent = constants[_EXPONENT]
                emit_quantize_row(
                    layout,
                    lambda c: load(row, (c,), LANES),
                    exponent,
                    mantissas,
                    exponents,
                    t,
                    isa=isa,
                    fine=fine,
                )
    return kernel.result


class _Row:
    """Emits the steps over one token; ``row`` holds h, then the centred row, then the result."""

    def __init__(self, spec: BlockNormSpec, row: Any, constants: Any, table: Any) -> None:
        self._width, self._residual = spec.layout.width, spec.residual or spec.layout
        self._row, self._constants, self._table = row, constants, table
        self._kept = scratch((3, LANES), "int32")
        if self._width > NARROW:
            self._total = scratch((LANES,), "int64")

    def _columns(self) -> Any:
        return T.serial(0, self._width // LANES)

    def align(self, y: Any, y_exponents: Any, residual: Any, t: Any) -> Any:
        """h into ``row``; its exponent."""
        own = T.Bind(y_exponents[t])
        top: Any = own + emit_bit_length(emit_peak(lambda c: load(y, (t, c), LANES), 0, self._width // LANES))
        if residual is not None:
            x_exponents = residual[1]
            largest: Any = x_exponents[t, 0]
            for g in range(1, self._residual.groups):
                largest = T.max(largest, x_exponents[t, g])
            top = T.max(top, largest + self._constants[_TOP_CHANNEL] + 7)
        common = settle(top - SUM_BITS)
        moved = move_by(T.Bind(common - own))
        self._begin()
        if residual is not None:
            self._add(residual, common, t, lambda c: moved(load(y, (t, c), LANES)))
            return common
        with self._columns() as v:
            c = T.Bind(v * LANES)
            self._keep(c, moved(load(y, (t, c), LANES)))
        return common

    def _add(self, residual: Any, common: Any, t: Any, moved: Any) -> None:
        """The residual's blocks, brought to ``common``, plus ``moved(column)``."""
        x, x_exponents, fine, channels = residual
        with T.serial(0, self._residual.groups) as g:
            base = T.Bind(splat(T.Bind(common + RESIDUAL_UP - x_exponents[t, g])))
            with T.serial(0, self._residual.block // LANES) as v:
                c = T.Bind(g * self._residual.block + v * LANES)
                shifts = base - T.Cast("int32x16", load(channels, (c,), LANES))
                shifts = T.Bind(clamp_shifts(shifts, LANES))
                coarse, rest = (T.Cast("int32x16", load(part, (t, c), LANES)) for part in (x, fine))
                raised = T.shift_left(coarse, isplat(FINE_BITS)) + rest
                raised = T.shift_left(raised, isplat(RESIDUAL_UP - FINE_BITS))
                added = vector_shift_round(raised, shifts, rounding_half(shifts, LANES))
                self._keep(c, moved(c) + added)

    def _begin(self) -> None:
        """Clears what is kept of h: sums in int32 where they fit, the lowest and the highest."""
        for place, start in enumerate((0, HIGHEST, -HIGHEST)):
            store(self._kept, (place, 0), isplat(start), LANES)
        if self._width > NARROW:
            store(self._total, (0,), splat(T.int64(0)), LANES)

    def _keep(self, c: Any, value: Any) -> None:
        """Stores 16 columns of h."""
        value = T.Bind(value)
        store(self._row, (c,), value, LANES)
        if self._width > NARROW:
            store(self._total, (0,), load(self._total, (0,), LANES) + T.Cast("int64x16", value), LANES)
        else:
            store(self._kept, (0, 0), load(self._kept, (0, 0), LANES) + value, LANES)
        for place, choose in ((1, T.min), (2, T.max)):
            store(self._kept, (place, 0), choose(load(self._kept, (place, 0), LANES), value), LANES)

    def _sum(self) -> Any:
        """The int64 sum of h."""
        lanes = load(self._total, (0,), LANES) if self._width > NARROW else self._of_kept(0)
        return settle(tree_reduce(T.Bind(T.Cast("int64x16", lanes)), LANES, _plus))

    def _of_kept(self, place: int) -> Any:
        return load(self._kept, (place, 0), LANES)

    def normalise(self, common: Any, gamma: Any, beta: Any) -> None:
        """gamma * normalised + beta into ``row``, from h."""
        mean = T.floordiv(self._sum() * 2 + self._width, T.int64(2 * self._width))
        mean = settle(T.Cast("int32", mean))
        low = settle(tree_reduce(self._of_kept(1), LANES, T.min))
        high = settle(tree_reduce(self._of_kept(2), LANES, T.max))
        peak = T.Bind(T.max(high - mean, mean - low))
        down = settle(T.max(emit_bit_length(peak) - CENTERED_BITS, T.int32(0)))
        squares = self._centre(mean, down)
        root, shift = self._root(squares, T.Bind(common + down))
        wide_root, wide = T.Bind(splat(root)), T.Bind(splat(shift))
        half = T.Bind(rounding_half(wide, LANES))
        up = T.Bind(splat(self._constants[_BETA_UP]))
        with self._columns() as v:
            c = v * LANES
            normal = vector_shift_round(load(self._row, (c,), LANES) * wide_root, wide, half)
            scaled = normal * T.Cast("int32x16", load(gamma, (c,), LANES))
            shifted = T.shift_left(T.Cast("int32x16", load(beta, (c,), LANES)), up)
            store(self._row, (c,), scaled + shifted, LANES)

    def _centre(self, mean: Any, down: Any) -> Any:
        """The centred row, brought down to 14 bits; the int64 sum of its squares, which have 28."""
        wide_mean, wide = T.Bind(splat(mean)), T.Bind(splat(down))
        half = T.Bind(rounding_half(wide, LANES))
        lanes = scratch((LANES,), "int64")
        store(lanes, (0,), splat(T.int64(0)), LANES)
        vectors = self._width // LANES
        together = next(count for count in (4, 3, 2, 1) if vectors % count == 0)
        with T.serial(0, vectors // together) as v:
            total: Any = isplat(0)
            for i in range(together):
                c = T.Bind((v * together + i) * LANES)
                z = T.Bind(vector_shift_round(load(self._row, (c,), LANES) - wide_mean, wide, half))
                store(self._row, (c,), z, LANES)
                total = total + z * z
            store(lanes, (0,), load(lanes, (0,), LANES) + T.Cast("int64x16", T.Bind(total)), LANES)
        return settle(tree_reduce(load(lanes, (0,), LANES), LANES, _plus))

    def _root(self, squares: Any, exponent: Any) -> tuple[Any, Any]:
        """1 / sqrt of the variance in Q15, int32, and the shift that brings z times it to Q10."""
        variance = T.floordiv(T.shift_left(squares, T.int64(VARIANCE_BITS)), T.int64(self._width))
        shift = T.Bind(self._constants[_EPSILON_EXPONENT] + VARIANCE_BITS - 2 * exponent)
        epsilon = T.Bind(T.Cast("int64", self._constants[_EPSILON]))
        up = T.Cast("int64", T.max(T.min(shift, T.int32(40)), T.int32(0)))
        down = T.Cast("int64", T.max(T.min(T.int32(0) - shift, T.int32(63)), T.int32(0)))
        added = T.Select(shift >= 0, T.shift_left(epsilon, up), T.shift_right(epsilon, down))
        variance = settle(T.max(variance + added, T.int64(1)))
        bits = T.int64(64) - leading_zeros(variance, "int64")
        even = settle(T.bitwise_and(T.int64(32) - bits, T.int64(-2)))
        up, down = T.max(even, T.int64(0)), T.max(T.int64(0) - even, T.int64(0))
        n = settle(T.Select(even >= 0, T.shift_left(variance, up), T.shift_right(variance, down)))
        root = settle(T.Cast("int32", T.shift_right(emit_rsqrt(self._table, n), T.int64(9))))
        return root, T.Bind(T.Cast("int32", T.int64(16) - T.shift_right(even, T.int64(1))))


def _plus(a: Any, b: Any) -> Any:
    return a + b


__all__ = ["BlockNormSpec", "NormConstants", "block_norm", "reference"]
