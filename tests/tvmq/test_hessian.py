# SPDX-License-Identifier: Apache-2.0
"""Hessian codes: a plain column loop as reference, less output error than codes by weight, awkward inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schedules.packing import BitPlanes
from tvmq.quantizers import get_quantizer
from tvmq.quantizers import hessian as module
from tvmq.quantizers.alternating import fit
from tvmq.quantizers.hessian import Hessian

PLAIN: dict[str, Any] = {"group_size": None, "offset": False, "scale_dtype": "float16"}


def problem(seed: int, rows: int, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights with tails and moments of correlated inputs of different sizes."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(5, (rows, columns)).astype(np.float32) * 0.1
    mixing = rng.standard_normal((columns, columns)) * np.exp(rng.standard_normal(columns))
    inputs = rng.standard_normal((4 * columns, columns)) @ mixing
    inputs += rng.standard_normal(columns)
    return weight, (inputs.T @ inputs / len(inputs)).astype(np.float32)


def damage(weight: NDArray[np.float32], moments: NDArray[np.floating], planes: BitPlanes) -> float:
    error = (weight - planes.dequantize()).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", error, moments, error))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.integers(4, 40),
    st.sampled_from([(48, 48), (48, 16), (96, 32), (130, 65)]),
    st.booleans(),
)
def test_less_output_error_than_alternating(
    seed: int, bits: int, rows: int, shape: tuple[int, int], offset: bool
) -> None:
    columns, group = shape
    weight, moments = problem(seed, rows, columns)
    options = PLAIN | {"group_size": group, "offset": offset, "bits": bits}
    ours = Hessian(threads=1).quantize(weight, moments=moments, **options)
    other = get_quantizer("alternating").quantize(weight, **options)
    assert damage(weight, moments, ours) < 0.8 * damage(weight, moments, other)


@pytest.mark.parametrize(("bits", "gain"), [(2, 2.5), (3, 3.0)])
def test_output_error_falls_by_a_multiple(bits: int, gain: float) -> None:
    weight, moments = problem(1, 100, 256)
    ours = Hessian().quantize(weight, bits=bits, moments=moments, **PLAIN)
    other = get_quantizer("alternating").quantize(weight, bits=bits, **PLAIN)
    assert damage(weight, moments, ours) * gain < damage(weight, moments, other)


@pytest.mark.parametrize("offset", [False, True])
def test_without_correlation_as_good_as_alternating(offset: bool) -> None:
    weight, _ = problem(2, 60, 128)
    options = PLAIN | {"offset": offset, "bits": 3}
    ours = Hessian().quantize(weight, moments=np.eye(128), **options)
    other = get_quantizer("alternating").quantize(weight, **options)
    assert damage(weight, np.eye(128), ours) <= damage(weight, np.eye(128), other) * 1.001


def plain_loop(
    weight: NDArray[np.float32], moments: NDArray[np.float32], bits: int, group: int, damping: float
) -> NDArray[np.float64]:
    """The first sweep in float64, one row and one column at a time: GPTQ by the inverse of H."""
    rows, columns = weight.shape
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments.astype(np.float64) + damping * np.diag(moments).mean() * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    weights = np.empty(columns)
    weights[order] = 1 / np.diag(upper) ** 2
    params = fit(weight.reshape(-1, group), bits, False, weights=weights.reshape(-1, group))
    alphas = params.astype(np.float16).astype(np.float64).reshape(bits, rows, -1)
    patterns = np.array([[1 - 2 * (c >> i & 1) for i in range(bits)] for c in range(1 << bits)])
    result = np.empty((rows, columns))
    for row in range(rows):
        left = weight[row].astype(np.float64)
        for place, column in enumerate(order):
            levels = patterns @ alphas[:, row, column // group]
            level = levels[np.abs(levels - left[column]).argmin()]
            error = (left[column] - level) / upper[place, place]
            left[order[place + 1 :]] -= error * upper[place, place + 1 :]
            result[row, column] = level
    return result


@pytest.mark.parametrize(("columns", "group"), [(150, 150), (160, 32)])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_first_sweep_is_gptqs_column_loop(columns: int, group: int, bits: int) -> None:
    weight, moments = problem(3, 20, columns)
    made = Hessian(rounds=0).quantize(weight, bits=bits, moments=moments, **(PLAIN | {"group_size": group}))
    expected = plain_loop(weight, moments, bits, group, Hessian().damping)
    np.testing.assert_allclose(made.dequantize(), expected, atol=1e-5)


@pytest.mark.parametrize("group", [48, 16])
def test_every_round_helps(group: int) -> None:
    weight, moments = problem(4, 50, 48)
    damped = moments + Hessian().damping * np.diag(moments).mean() * np.eye(48)
    options = PLAIN | {"group_size": group, "bits": 2, "moments": moments}
    errors = [damage(weight, damped, Hessian(rounds=r).quantize(weight, **options)) for r in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("group", [64, 16])
def test_scales_are_least_squares_under_the_moments(group: int) -> None:
    """No other scales for the same codes do better, but for their rounding."""
    weight, moments = problem(5, 12, 64)
    options = PLAIN | {"group_size": group, "bits": 2, "scale_dtype": "float32"}
    made = Hessian(rounds=30).quantize(weight, moments=moments, **options)
    damped = moments.astype(np.float64) + Hessian().damping * np.diag(moments).mean() * np.eye(64)
    signs = made.signs().astype(np.float64).reshape(2, 12, -1, group)
    best = np.empty((12, 64))
    for row in range(12):
        basis = np.zeros((64, 2 * 64 // group))
        for place, (plane, g) in enumerate(np.ndindex(2, 64 // group)):
            basis[g * group : (g + 1) * group, place] = signs[plane, row, g]
        scales = np.linalg.solve(basis.T @ damped @ basis, basis.T @ damped @ weight[row])
        best[row] = basis @ scales
    error = weight - best
    assert damage(weight, damped, made) <= np.einsum("nk,kl,nl->", error, damped, error) * 1.001


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_outliers_take_up_the_errors_of_others(bits: int) -> None:
    """Free values: better than the weights' own ones at the same places."""
    weight, moments = problem(9, 100, 256)
    plain = Hessian().quantize(weight, bits=bits, moments=moments, **PLAIN)
    free = Hessian().quantize(weight, bits=bits, moments=moments, outliers=1.0, **PLAIN)
    assert free.outliers is not None
    exact = free.dequantize()
    exact.reshape(-1)[free.outliers.places] = weight.reshape(-1)[free.outliers.places]
    error = (weight - exact).astype(np.float64)
    assert damage(weight, moments, free) < 0.7 * damage(weight, moments, plain)
    assert damage(weight, moments, free) < np.einsum("nk,kl,nl->", error, moments, error)


def test_a_free_weight_is_the_best_value_for_its_row() -> None:
    """At the end no other value of a single outlier lowers the damage by much."""
    weight, moments = problem(10, 30, 64)
    damped = moments.astype(np.float64) + Hessian().damping * np.diag(moments).mean() * np.eye(64)
    made = Hessian(rounds=30).quantize(weight, bits=2, moments=moments, outliers=1.0, **PLAIN)
    assert made.outliers is not None
    rows, columns = made.outliers.places // 64, made.outliers.places % 64
    error = (weight - made.dequantize()).astype(np.float64)
    slope = (error @ damped)[rows, columns]
    gain = slope**2 / damped[columns, columns]
    total = np.einsum("nk,kl,nl->n", error, damped, error)
    assert (gain < 0.02 * total[rows]).all()


def test_result_does_not_depend_on_threads_or_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(6, 90, 64)
    monkeypatch.setattr(module, "CHUNK_ROWS", 20)
    one, four = (
        Hessian(threads=threads).quantize(weight, bits=3, moments=moments, **PLAIN) for threads in (1, 4)
    )
    part = Hessian(threads=1).quantize(weight[20:40], bits=3, moments=moments, **PLAIN)
    assert one.planes.tobytes() == four.planes.tobytes()
    assert one.scales.tobytes() == four.scales.tobytes()
    np.testing.assert_array_equal(one.planes[:, 20:40], part.planes)


@pytest.mark.parametrize("offset", [False, True])
def test_inputs_that_never_move(offset: bool) -> None:
    """Columns that read only zeros, or nothing at all, still get codes."""
    weight, moments = problem(7, 10, 32)
    moments[:8] = moments[:, :8] = 0
    for given_moments in (moments, np.zeros_like(moments)):
        made = Hessian().quantize(weight, bits=4, moments=given_moments, **(PLAIN | {"offset": offset}))
        assert np.abs(weight - made.dequantize()).max() < 0.5 * np.abs(weight).max()


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        (None, "hessian codes need calibration data"),
        (np.eye(7), r"the moments are \(7, 7\); 8 columns need \(8, 8\)"),
        (-np.eye(8), "not positive definite"),
        (np.full((8, 8), np.nan), "the moments hold NaN"),
    ],
)
def test_bad_moments(moments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hessian().quantize(np.ones((2, 8), np.float32), bits=2, moments=moments, **PLAIN)


def test_weights_of_columns_in_the_alternating_fit() -> None:
    """A column that weighs m counts as m columns."""
    rng = np.random.default_rng(8)
    groups, weights = rng.standard_normal((6, 20)).astype(np.float32), rng.integers(1, 4, (1, 20))
    repeated = np.repeat(groups, weights[0], axis=1)
    for offset in (False, True):
        weighted = fit(groups, 2, offset, weights=weights, rounds=60)
        plain = fit(repeated, 2, offset, rounds=60)
        assert weighted_error(groups, weights, weighted, offset) == pytest.approx(
            weighted_error(groups, weights, plain, offset), rel=0.02
        )


def weighted_error(groups: Any, weights: Any, params: NDArray[np.float64], offset: bool) -> float:
    signs = np.array([[a, b, 1][: 2 + offset] for a in (-1, 1) for b in (-1, 1)])
    levels = signs @ params
    return float((weights * np.min((groups[None] - levels[..., None]) ** 2, axis=0)).sum())
