# SPDX-License-Identifier: Apache-2.0
"""Scales over a shared power of two: near, within seven bits, unchanged where they have this form already."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schedules.pow2 import HIGHEST, LIMIT, LOWEST, check_pow2, pow2_scales, pow2_values

VALUES = st.lists(
    st.floats(-1e30, 1e30, allow_nan=False, allow_subnormal=True), min_size=1, max_size=9
)


def reference(values: list[float]) -> tuple[list[int], int]:
    """The same by exact arithmetic: the smallest exponent whose rounded mantissas fit."""
    exact = [Fraction(value) for value in values]
    if not any(exact):
        return [0] * len(exact), 0
    for exponent in range(LOWEST, HIGHEST + 1):
        mantissas = [round(value / Fraction(2) ** exponent) for value in exact]
        if sum(map(abs, mantissas)) <= LIMIT:
            return mantissas, exponent
    raise AssertionError("too large")


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_equals_exact_arithmetic(values: list[float]) -> None:
    mantissas, exponent = pow2_scales(np.array(values)[:, None])
    assert (mantissas[:, 0].tolist(), int(exponent[0])) == reference(values)
    check_pow2(mantissas, exponent)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(-60, 60))
def test_near_and_idempotent(seed: int, planes: int, power: int) -> None:
    values = np.random.default_rng(seed).standard_normal((planes, 5, 3)) * 2.0**power
    mantissas, exponents = pow2_scales(values)
    found = pow2_values(mantissas, exponents)
    assert (np.abs(found - values) <= 2.0 ** exponents.astype(float) / 2).all()
    # At least half of the seven bits are in use.
    assert (np.abs(mantissas.astype(int)).sum(0) > LIMIT / 2 - planes).all()
    again = pow2_scales(found)
    assert np.array_equal(pow2_values(*again), found)
    assert (again[1] <= exponents).all()


def test_values_are_exact_in_half_precision_within_its_range() -> None:
    mantissas = np.arange(-LIMIT, LIMIT + 1).astype(np.int8)[:, None]
    for exponent in range(-24, 10):
        found = pow2_values(mantissas, np.array([exponent], np.int8))
        assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
        assert np.array_equal(found[:, 0], np.arange(-LIMIT, LIMIT + 1) * 2.0**exponent)


def test_extremes() -> None:
    assert pow2_scales(np.array([[2.0**-130]]))[0][0, 0] == 0
    assert pow2_scales(np.array([[127 * 2.0**100]]))[0][0, 0] == 127
    with pytest.raises(ValueError, match=r"a scale exceeds pow2 \(largest 127 \* 2\^100\)"):
        pow2_scales(np.array([[128 * 2.0**100]]))


@pytest.mark.parametrize(
    ("mantissas", "exponents", "message"),
    [
        (np.array([[64], [-64]]), np.array([0]), "add up to more than 127"),
        (np.array([[-128]]), np.array([0]), "add up to more than 127"),
        (np.array([[1]]), np.array([101]), "exponents must lie between -100 and 100"),
        (np.array([[1]]), np.array([-128]), "exponents must lie between"),
    ],
)
def test_impossible_scales(mantissas: NDArray[np.int_], exponents: NDArray[np.int_], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pow2(mantissas.astype(np.int8), exponents.astype(np.int8))
