# SPDX-License-Identifier: Apache-2.0
"""The rounding shift of block floating point: ``shift_round(v, s) = (v + ((1 << s) >> 1)) >> s``.

Halves round up. Shifts are clamped to 0..31; the NumPy form computes in int64 and refuses what the int32
kernels could not hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .tir import T, as_type, isplat, put, scratch, splat

LARGEST_SHIFT = 31
MOVED_LIMIT = (1 << 30) - 1
"""Magnitude that a bias is limited to, before and after it moves to another exponent."""


def checked(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """``values``; AssertionError if one leaves int32."""
    assert values.size == 0 or (values.min() >= -(1 << 31) and values.max() < 1 << 31), "a sum leaves int32"
    return values


def shift_round(values: NDArray[np.int64], shift: ArrayLike) -> NDArray[np.int64]:
    """NumPy meaning of :func:`vector_shift_round`."""
    s = np.clip(np.asarray(shift, np.int64), 0, LARGEST_SHIFT)
    return checked(values + ((np.int64(1) << s) >> 1)) >> s


def move(values: NDArray[np.int64], shift: ArrayLike) -> NDArray[np.int64]:
    """NumPy meaning of :class:`VectorMove`: down by ``shift`` with rounding, or up by ``-shift``.

    Shifts are clamped to -31..31. Values are limited to ``(2**30 - 1) >> up`` first, so that what moves
    up stays below 2**30 in magnitude.
    """
    s = np.clip(np.asarray(shift, np.int64), -LARGEST_SHIFT, LARGEST_SHIFT)
    up = np.maximum(-s, 0)
    limit = MOVED_LIMIT >> up
    return shift_round(np.clip(values, -limit, limit) << up, s)


def clamp_shift(shift: Any) -> Any:
    """An int32 scalar within 0..31."""
    return T.max(T.min(shift, T.int32(LARGEST_SHIFT)), T.int32(0))


def clamp_shifts(shifts: Any, lanes: int) -> Any:
    """int32 lanes within 0..31."""
    return T.max(T.min(shifts, isplat(LARGEST_SHIFT, lanes)), isplat(0, lanes))


def rounding_half(shifts: Any, lanes: int) -> Any:
    """``(1 << s) >> 1`` for int32 lanes in 0..31; the shift back is unsigned, for s = 31."""
    one = as_type(T.shift_left(isplat(1, lanes), shifts), f"uint32x{lanes}")
    return as_type(T.shift_right(one, splat(T.uint32(1), lanes)), f"int32x{lanes}")


def vector_shift_round(values: Any, shifts: Any, half: Any) -> Any:
    """``(values + half) >> shifts`` with ``half`` of :func:`rounding_half`."""
    return T.shift_right(values + half, shifts)


def psrav(values: Any, shifts: Any) -> Any:
    """``values >> shifts`` of int32x16 on AVX-512, for equal shifts: LLVM would take the form for one shift,
    which costs two instructions."""
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.psrav.d.512", values, shifts)


MOVE_FIELDS = 4
"""int32 numbers that describe one move: shift down, shift up, rounding half, limit."""


def store_move(table: Any, row: Any, shift: Any) -> None:
    """Writes the numbers of a move by ``shift`` to a row of ``table`` int32[rows, 4]."""
    down = T.Bind(clamp_shift(shift))
    up = T.Bind(clamp_shift(T.int32(0) - T.max(shift, T.int32(-LARGEST_SHIFT))))
    half = T.shift_right(as_type(T.shift_left(T.int32(1), down), "uint32"), T.uint32(1))
    limit = T.shift_right(T.int32(MOVED_LIMIT), up)
    for field, value in enumerate((down, up, as_type(half, "int32"), limit)):
        put(table, (row, field), value)


class VectorMove:
    """Moves int32x16 values as a row of ``store_move`` says: down, or up where the shift was negative."""

    def __init__(self, table: Any, row: Any) -> None:
        fields = [T.Bind(splat(table[row, field])) for field in range(MOVE_FIELDS)]
        self._down, self._up, self._half, self._limit = fields

    def __call__(self, values: Any) -> Any:
        limited = T.max(T.min(values, self._limit), isplat(0) - self._limit)
        return vector_shift_round(T.shift_left(limited, self._up), self._down, self._half)


def move_by(shift: Any) -> VectorMove:
    """The move by one int32 shift."""
    table = scratch((1, MOVE_FIELDS), "int32")
    store_move(table, 0, shift)
    return VectorMove(table, 0)
