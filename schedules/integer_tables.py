# SPDX-License-Identifier: Apache-2.0
"""Functions of integers from tables of 64 segments, linear in between: 2**-f, GELU's bump, 1 / sqrt.

A table entry holds the value at the start of a segment and the step to the next, packed in one int32, so
that a segment costs one look-up. Fixed point is written Qn: n bits after the point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tir import LANES, T, as_type, isplat, settle, splat

SEGMENTS = 64
HALF_TABLE = SEGMENTS // 2
EXP_BITS = 16
"""exp2 takes Q16."""
PROBABILITY_BITS = 15
"""exp2 gives Q15."""
_EXP_SEGMENT = EXP_BITS - 6
_EXP_STEP_BITS = 12
GELU_BITS = 16
"""gelu takes and gives Q16."""
GELU_SEGMENT = GELU_BITS + 2 - 6
_GELU_END = 4 << GELU_BITS
RSQRT_BITS = 24
_RSQRT_FIRST = 16


def exp2_table() -> NDArray[np.int32]:
    """int32[64]: 2**-(i / 64) in Q15, shifted left by 12, plus the (positive) step down to the next."""
    values = np.rint(2.0 ** (PROBABILITY_BITS - np.arange(SEGMENTS + 1) / SEGMENTS)).astype(np.int64)
    return ((values[:-1] << _EXP_STEP_BITS) | (values[:-1] - values[1:])).astype(np.int32)


def exp2(distance: NDArray[np.int64]) -> NDArray[np.int64]:
    """NumPy meaning of :class:`ExpTable`: 2**-distance, Q16 >= 0 to Q15; below 2**-31 it is 0."""
    capped = np.minimum(distance, (31 << EXP_BITS) + (1 << EXP_BITS) - 1)
    entry = exp2_table().astype(np.int64)[(capped >> _EXP_SEGMENT) & (SEGMENTS - 1)]
    rest = capped & ((1 << _EXP_SEGMENT) - 1)
    value = (entry >> _EXP_STEP_BITS) - (((entry & ((1 << _EXP_STEP_BITS) - 1)) * rest) >> _EXP_SEGMENT)
    return value >> (capped >> EXP_BITS)


def gelu_table() -> NDArray[np.int32]:
    """int32[64]: a Phi(-a) at a = i / 16 in Q16, shifted left by 16, plus the step to the next in 16 bits."""
    return _bump_table(lambda a: a * 0.5 * math.erfc(a / math.sqrt(2)))


def gelu_tanh_table() -> NDArray[np.int32]:
    """As ``gelu_table``, with Phi(-a) ~ (1 - tanh(sqrt(2 / pi) (a + 0.044715 a^3))) / 2."""
    return _bump_table(lambda a: a * 0.5 * (1 - math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))))


def _bump_table(bump_at: Callable[[float], float]) -> NDArray[np.int32]:
    bump = np.array([bump_at(i / 16) for i in range(SEGMENTS + 1)])
    values = np.rint(bump * (1 << GELU_BITS)).astype(np.int64)
    values[-1] = 0
    return ((values[:-1] << 16) | ((values[1:] - values[:-1]) & 0xFFFF)).astype(np.int32)


def gelu(x: NDArray[np.int64], table: NDArray[np.int32]) -> NDArray[np.int64]:
    """NumPy meaning of :class:`GeluTable`: x Phi(x) in Q16 as max(x, 0) - |x| Phi(-|x|)."""
    size = np.minimum(np.abs(x), _GELU_END - 1)
    entry = table.astype(np.int64)[size >> GELU_SEGMENT]
    step = ((entry & 0xFFFF) ^ 0x8000) - 0x8000
    rest = size & ((1 << GELU_SEGMENT) - 1)
    return np.maximum(x, 0) - ((entry >> 16) + ((step * rest) >> GELU_SEGMENT))


def rsqrt_table() -> NDArray[np.int32]:
    """int32[48]: 1 / sqrt(f) in Q24 at f = (i + 16.5) / 64."""
    f = (np.arange(SEGMENTS - _RSQRT_FIRST) + _RSQRT_FIRST + 0.5) / SEGMENTS
    return np.rint(2.0**RSQRT_BITS / np.sqrt(f)).astype(np.int32)


def rsqrt(n: NDArray[np.int64]) -> NDArray[np.int64]:
    """NumPy meaning of :func:`emit_rsqrt`: Q32 in [1/4, 1) to 1 / sqrt in Q24, two Newton steps."""
    r = rsqrt_table().astype(np.int64)[(n >> 26) - _RSQRT_FIRST]
    for _ in range(2):
        r = (r * ((3 << RSQRT_BITS) - ((((r * r) >> RSQRT_BITS) * n) >> 32))) >> (RSQRT_BITS + 1)
    return r


def lookup(table: Any, index: Any, isa: str) -> Any:
    """int32x16: entries of an int32[64] buffer; two register look-ups on AVX-512, loads elsewhere."""
    index = T.Bind(index)
    if isa not in ("avx512_vbmi", "amx"):
        return table[index]
    parts = [T.Bind(table.vload([i * LANES], "int32x16")) for i in range(4)]
    low, high = (
        T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpermi2var.d.512", parts[i], index, parts[i + 1])
        for i in (0, 2)
    )
    return T.Select(index < isplat(HALF_TABLE), low, high)


class ExpTable:
    """``2**-distance`` of 16 lanes in Q16, read as uint32, as Q15."""

    def __init__(self, table: Any, isa: str) -> None:
        self._table, self._isa = table, isa

    def __call__(self, distance: Any) -> Any:
        largest = splat(T.uint32((32 << EXP_BITS) - 1))
        capped = T.Bind(as_type(T.min(as_type(distance, "uint32x16"), largest), "int32x16"))
        index = T.bitwise_and(T.shift_right(capped, isplat(_EXP_SEGMENT)), isplat(SEGMENTS - 1))
        entry = T.Bind(lookup(self._table, index, self._isa))
        step = T.bitwise_and(entry, isplat((1 << _EXP_STEP_BITS) - 1))
        rest = T.bitwise_and(capped, isplat((1 << _EXP_SEGMENT) - 1))
        fall = T.shift_right(step * rest, isplat(_EXP_SEGMENT))
        value = T.shift_right(entry, isplat(_EXP_STEP_BITS)) - fall
        return T.shift_right(value, T.shift_right(capped, isplat(EXP_BITS)))


class GeluTable:
    """GELU of int32x16 in Q16, in the form of its table."""

    def __init__(self, table: Any, isa: str) -> None:
        self._table, self._isa = table, isa

    def __call__(self, x: Any) -> Any:
        x = T.Bind(x)
        size = T.Bind(T.min(T.max(x, isplat(0) - x), isplat(_GELU_END - 1)))
        entry = T.Bind(lookup(self._table, T.shift_right(size, isplat(GELU_SEGMENT)), self._isa))
        step = T.shift_right(T.shift_left(entry, isplat(16)), isplat(16))
        rest = T.bitwise_and(size, isplat((1 << GELU_SEGMENT) - 1))
        bump = T.shift_right(entry, isplat(16)) + T.shift_right(step * rest, isplat(GELU_SEGMENT))
        return T.max(x, isplat(0)) - bump


def emit_rsqrt(table: Any, n: Any) -> Any:
    """int64 scalar n in [2**30, 2**32), read as Q32, to 1 / sqrt(n) in Q24."""
    r: Any = T.Cast("int64", table[T.shift_right(n, T.int64(26)) - _RSQRT_FIRST])
    for _ in range(2):
        r = settle(r)
        square = T.shift_right(r * r, T.int64(RSQRT_BITS))
        rest = T.int64(3 << RSQRT_BITS) - T.shift_right(square * n, T.int64(32))
        r = T.shift_right(r * rest, T.int64(RSQRT_BITS + 1))
    return T.Bind(r)
