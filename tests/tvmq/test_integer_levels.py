# SPDX-License-Identifier: Apache-2.0
"""Levels over a power of two per row: error bounds, exponents, second moments, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tvmq.integer_levels import HIGHEST, LOWEST, Levels, quantize_levels


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    """[n, k] with rows of any magnitude, some of them zero, some with one large value."""
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    powers = np.array(draw(st.lists(st.integers(-60, 60), min_size=n, max_size=n)))
    w = rng.standard_normal((n, k)) * 2.0 ** powers[:, None]
    if draw(st.booleans()):
        w[0] = 0
    if draw(st.booleans()):
        w[-1, 0] = w[-1, 0] * 1000
    return w.astype(np.float32)


@given(matrices())
@settings(max_examples=200, deadline=None)
def test_errors_are_half_a_step_or_clipping(w: NDArray[np.float32]) -> None:
    found = quantize_levels(w)
    assert (found.levels.dtype, found.exponents.dtype) == (np.int8, np.int8)
    assert int(np.abs(found.levels.astype(int)).max()) <= 127
    step = np.ldexp(1.0, found.exponents.astype(int))[:, None]
    limit = 127 * step
    errors = np.abs(found.dequantize().astype(np.float64) - w)
    clipped = np.abs(w) > limit + step / 2
    assert (errors <= np.where(clipped, np.abs(w) - limit, step / 2) * (1 + 1e-9)).all()


@given(matrices())
@settings(max_examples=200, deadline=None)
def test_no_exponent_rounds_a_row_better(w: NDArray[np.float32]) -> None:
    """Among those around it; larger ones than the least that fits are never better."""
    found = quantize_levels(w)
    for row, exponent, error in zip(w, found.exponents, squared(w, found), strict=True):
        if not row.any():
            assert exponent == LOWEST
            continue
        for other in range(int(exponent) - 1, int(exponent) + 4):
            scaled = np.ldexp(row.astype(np.float64), -other)
            levels = np.clip(np.rint(scaled), -127, 127)
            fits = np.abs(np.rint(scaled)).max() <= 254
            if fits:  # one bit of clipping is what the search allows
                assert error <= ((np.ldexp(levels, other) - row) ** 2).sum() * (1 + 1e-6)


def squared(w: NDArray[np.float32], found: Levels) -> NDArray[np.float64]:
    return ((found.dequantize().astype(np.float64) - w) ** 2).sum(axis=1)


@given(matrices(), st.integers(-20, 20))
@settings(max_examples=100, deadline=None)
def test_powers_of_two_only_move_the_exponents(w: NDArray[np.float32], power: int) -> None:
    found, scaled = quantize_levels(w), quantize_levels(np.ldexp(w.astype(np.float64), power))
    assert np.array_equal(found.levels, scaled.levels)
    moved = np.where(w.any(axis=1), found.exponents.astype(int) + power, LOWEST)
    assert np.array_equal(scaled.exponents, moved)


def test_exponents_by_hand() -> None:
    """127.5 steps and more need the next exponent, unless clipping one value costs less."""
    rows = np.zeros((7, 64))
    rows[0, 0] = 127
    rows[1, 0] = 127.4
    rows[2, :2] = 127.6, 0.7  # 0.6^2 + 0.3^2 clipped, 0.4^2 + 0.7^2 in steps of 2
    rows[3] = 0.7
    rows[3, 0] = 128
    rows[4, :2] = 127.6, 0.5  # 0.6^2 + 0.5^2 clipped, 0.4^2 + 0.5^2 in steps of 2
    rows[5, 0] = 1e-40
    found = quantize_levels(rows)
    assert found.exponents.tolist() == [0, 0, 0, 0, 1, LOWEST, LOWEST]
    assert found.levels[:5, 0].tolist() == [127, 127, 127, 127, 64]
    assert quantize_levels(np.array([[254.5], [255.5]])).exponents.tolist() == [1, 2]
    assert not found.levels[5:].any()


def test_rows_may_be_held_to_larger_exponents() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 8))
    least = np.array([-100, 0, 30])
    found = quantize_levels(w, least=least)
    assert found.exponents[0] == quantize_levels(w).exponents[0]
    assert found.exponents[1:].tolist() == [0, 30]
    assert np.array_equal(found.levels[1], np.rint(w[1]))
    assert not found.levels[2].any()


def correlated(k: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inputs [m, k] that have much in common, and E[x x^T]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k // 4)) @ rng.standard_normal((k // 4, k))
    x = (x + 0.1 * rng.standard_normal(x.shape)) * rng.gamma(1.0, 1.0, k)
    return x, x.T @ x / len(x)


@pytest.mark.parametrize("k", [16, 64, 150])
def test_moments_reduce_the_error_of_the_outputs(k: int) -> None:
    """tr(E H E^T), by a lot where inputs are correlated; the same exponents."""
    x, moments = correlated(k, seed=k)
    w = np.random.default_rng(1).standard_normal((40, k)).astype(np.float32)
    plain, guided = quantize_levels(w), quantize_levels(w, moments)
    assert np.array_equal(plain.exponents, guided.exponents)
    errors = [np.square(x @ (found.dequantize() - w).T).mean() for found in (plain, guided)]
    assert errors[1] < 0.5 * errors[0]


def test_independent_inputs_change_nothing() -> None:
    w = np.random.default_rng(2).standard_normal((10, 40))
    for moments in (np.eye(40), np.diag(np.arange(1.0, 41.0)), np.zeros((40, 40))):
        found = quantize_levels(w, moments)
        assert np.array_equal(found.levels, quantize_levels(w).levels)


def test_columns_that_never_occur() -> None:
    """Singular moments are damped."""
    _, moments = correlated(32, seed=0)
    moments[3] = moments[:, 3] = 0
    w = np.random.default_rng(3).standard_normal((5, 32))
    assert np.isfinite(quantize_levels(w, moments).dequantize()).all()


def test_the_same_bits_again() -> None:
    _, moments = correlated(130, seed=5)
    w = np.random.default_rng(4).standard_normal((9, 130))
    first, second = quantize_levels(w, moments), quantize_levels(w, moments)
    assert first.levels.tobytes() == second.levels.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad: float) -> None:
    w = np.ones((2, 3))
    w[1, 2] = bad
    with pytest.raises(ValueError, match="the weight holds NaN or infinite values"):
        quantize_levels(w)


def test_exponents_that_do_not_fit() -> None:
    assert quantize_levels(np.full((1, 1), 127 * 2.0**HIGHEST)).exponents.tolist() == [HIGHEST]
    for w, least in ((np.full((1, 1), 2.0**136), None), (np.ones((1, 1)), np.array([HIGHEST + 1]))):
        with pytest.raises(ValueError, match=r"a weight or bias is too large for 8-bit exponents \(rescale"):
            quantize_levels(w, least=least)


def test_moments_that_are_none() -> None:
    w = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"the moments are \(2, 2\); 3 columns need finite \(3, 3\)"):
        quantize_levels(w, np.eye(2))
    with pytest.raises(ValueError, match="3 columns need finite"):
        quantize_levels(w, np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match=r"not positive definite \(calibrate again\)"):
        quantize_levels(w, np.array([[1.0, 9, 0], [9, 1, 0], [0, 0, 1]]))
