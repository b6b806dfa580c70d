# SPDX-License-Identifier: Apache-2.0
"""Blocks of int8 mantissas: properties of the quantizer, layouts, and the tables of functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schedules.block_format import BlockLayout, down_shift, fine_part, quantize, values_of
from schedules.integer_tables import RSQRT_BITS, exp2, gelu, gelu_table, gelu_tanh_table, rsqrt
from schedules.rounding_shift import shift_round


@given(st.integers(0, (1 << 30) - 1), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_the_shift_is_the_least_that_fits(peak: int, bits: int) -> None:
    array = np.array([peak])
    shift = int(down_shift(array, bits)[0])
    assert shift_round(array, shift)[0] < 1 << bits
    assert shift == 0 or shift_round(array, shift - 1)[0] >= 1 << bits


@given(st.lists(st.integers(-(1 << 29), 1 << 29), min_size=16, max_size=16), st.integers(-30, 10))
@settings(max_examples=200, deadline=None)
def test_values_are_within_half_a_step(row: list[int], exponent: int) -> None:
    layout = BlockLayout(width=16, block=16)
    values = np.array([row], np.int64)
    mantissas, exponents = quantize(values, np.array([exponent]), layout)
    assert np.abs(mantissas.astype(int)).max() <= 127
    step = np.ldexp(1.0, int(exponents[0, 0]))
    error = np.abs(values_of(mantissas, exponents, layout) - np.ldexp(values.astype(float), exponent))
    assert error.max() <= step / 2
    blocks = (mantissas, exponents)
    fine = fine_part(values, np.array([exponent]), blocks, layout)
    error = np.abs(values_of(*blocks, layout, fine=fine) - np.ldexp(values.astype(float), exponent))
    assert error.max() <= step / 256  # half a step of the fine part, or a whole one where it is cut at 127


def test_layouts() -> None:
    assert BlockLayout.of(384, 64).groups == 6
    assert BlockLayout.of(384, None) == BlockLayout(width=384, block=384)
    assert BlockLayout.of(96, 64) == BlockLayout(width=96, block=96)
    assert BlockLayout(width=48, block=48).padded == 64


@pytest.mark.parametrize(
    ("width", "block", "bits", "reason"),
    [
        (40, 40, 8, "multiple of 16"),
        (128, 48, 8, "do not fit rows of 128"),
        (128, 0, 8, "do not fit"),
        (128, 64, 9, "mantissas of 9 bits"),
    ],
)
def test_impossible_layouts(width: int, block: int, bits: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BlockLayout(width=width, block=block, bits=bits)


def q16(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values * (1 << 16)).astype(np.int64)


def erf_form(v: float) -> float:
    return v * 0.5 * math.erfc(-v / math.sqrt(2))


def tanh_form(v: float) -> float:
    return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


@pytest.mark.parametrize(("table", "form"), [(gelu_table(), erf_form), (gelu_tanh_table(), tanh_form)])
def test_gelu_is_close_and_saturates(table: NDArray[np.int32], form: Callable[[float], float]) -> None:
    x = np.linspace(-8, 8, 4001)
    exact = np.array([form(v) for v in x])
    assert np.abs(gelu(q16(x), table) / (1 << 16) - exact).max() < 5e-4
    assert gelu(np.array([-(1 << 29), 1 << 29]), table).tolist() == [0, 1 << 29]


def test_exp2_is_close_and_falls() -> None:
    x = np.linspace(0, 40, 8001)
    found = exp2(q16(x)) / (1 << 15)
    assert np.abs(found - 2.0**-x).max() < 1e-4
    assert (np.diff(found) <= 0).all()
    assert found[0] == 1
    assert found[-1] == 0


@given(st.integers(1 << 30, (1 << 32) - 1))
@settings(max_examples=300, deadline=None)
def test_rsqrt_is_exact_to_five_digits(n: int) -> None:
    found = int(rsqrt(np.array([n]))[0]) / (1 << RSQRT_BITS)
    assert found == pytest.approx(1 / math.sqrt(n / 2**32), rel=1e-5)
