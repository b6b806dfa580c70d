# SPDX-License-Identifier: Apache-2.0
"""Rounding shifts are exact rounding, and the kernels' vectors do as NumPy does, at every extreme."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedules.rounding_shift import (
    MOVE_FIELDS,
    MOVED_LIMIT,
    VectorMove,
    clamp_shifts,
    move,
    rounding_half,
    shift_round,
    store_move,
    vector_shift_round,
)
from schedules.tir import KernelBuilder, T, body, load, scratch, store

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
SHIFTS = np.array([-(1 << 31), -300, -32, -31, -30, -1, 0, 1, 2, 30, 31, 32, 300, (1 << 31) - 1])
VALUES = np.array([0, 1, -1, 2, -2, 3, 12345, -98765, MOVED_LIMIT, -MOVED_LIMIT, 1 << 30, -(1 << 30)])
EXTREMES = np.array([*VALUES, (1 << 31) - 1, -(1 << 31), 1 << 29, 7], np.int32)


@given(st.integers(-(1 << 30), 1 << 30), st.integers(0, 31))
def test_rounds_halves_up(value: int, shift: int) -> None:
    exact = floor(Fraction(value, 1 << shift) + Fraction(1, 2))
    assert shift_round(np.int64(value)[None], shift)[0] == exact


@given(INT32, st.integers(-400, 400))
def test_moves_never_leave_int32(value: int, shift: int) -> None:
    assert abs(int(move(np.int64(value)[None], shift)[0])) <= MOVED_LIMIT


@given(st.integers(-(1 << 20), 1 << 20), st.integers(0, 9))
def test_moves_up_are_products(value: int, shift: int) -> None:
    assert move(np.int64(value)[None], -shift)[0] == value << shift


def test_sums_beyond_int32_are_refused() -> None:
    with pytest.raises(AssertionError, match="a sum leaves int32"):
        shift_round(np.array([(1 << 31) - 1]), 2)


def kernel() -> Any:
    """y[s] = values moved by shifts[s]; z[s] = values / 4 shifted by shifts[s]."""
    made = KernelBuilder("shifts")
    with made.define():
        count = len(SHIFTS)
        values, shifts = made.param("values", (16,), "int32"), made.param("shifts", (count,), "int32")
        y, z = made.param("y", (count, 16), "int32"), made.param("z", (count, 16), "int32")
        with body([y, z], [values, shifts]):
            table = scratch((count, MOVE_FIELDS), "int32")
            with T.serial(0, count) as i:
                store_move(table, i, shifts[i])
            with T.serial(0, count) as i:
                store(y, (i, 0), VectorMove(table, i)(load(values, (0,), 16)), 16)
                clamped = T.Bind(clamp_shifts(T.broadcast(shifts[i], 16), 16))
                quarter = T.shift_right(load(values, (0,), 16), T.broadcast(T.int32(2), 16))
                store(z, (i, 0), vector_shift_round(quarter, clamped, rounding_half(clamped, 16)), 16)
    return made.result


@pytest.mark.emulated("arm64_v8")
def test_vectors_do_as_numpy(build: Any, kernel_level: Any) -> None:
    shape = ((len(SHIFTS), 16), "int32")
    y, z = build(kernel(), kernel_level)([EXTREMES, SHIFTS.astype(np.int32)], shape, shape)[:2]
    values = EXTREMES.astype(np.int64)[None, :]
    assert np.array_equal(y, move(values, SHIFTS[:, None]))
    assert np.array_equal(z, shift_round(values >> 2, SHIFTS[:, None]))
