# SPDX-License-Identifier: Apache-2.0
"""Quantizers: errors at or below the published table, codes that are optimal, awkward shapes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schedules.packing import BitPlanes
from schedules.pow2 import scale_storage
from tvmq import quantizers
from tvmq.quantizers import NEED_MOMENTS, get_quantizer, quantizer_names
from tvmq.quantizers.alternating import Alternating
from tvmq.quantizers.greedy import Greedy
from tvmq.quantizers.rtn import planes_from_uniform

ERRORS = {
    # source, group: (first bit width, errors of greedy, alternating, alternating with offset)
    ("gauss", 512): (
        1, (0.363, 0.1303, 0.0584, 0.0329), (0.363, 0.1168, 0.0366, 0.0115), (0.361, 0.1153, 0.0360, 0.0113)
    ),
    ("gauss", 128): (2, (0.1281, 0.0570, 0.0316), (0.1141, 0.0350, 0.0108), (0.1093, 0.0333, 0.0099)),
    ("laplace", 128): (2, (0.226, 0.138, 0.091), (0.167, 0.0498, 0.0161), (0.156, 0.0454, 0.0143)),
    ("t5", 128): (2, (0.221, 0.140, 0.101), (0.170, 0.0553, 0.0165), (0.162, 0.0511, 0.0151)),
}  # fmt: skip


def sample(source: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    rng = np.random.default_rng(7)
    match source:
        case "gauss":
            values = rng.standard_normal(shape)
        case "laplace":
            values = rng.laplace(size=shape)
        case _:
            values = rng.standard_t(5, size=shape)
    return values.astype(np.float32)


def error(weight: NDArray[np.floating], planes: BitPlanes) -> float:
    return float(((weight - planes.dequantize()) ** 2).sum() / (weight.astype(np.float64) ** 2).sum())


def quantize(name: str, weight: NDArray[Any], bits: int, **changed: Any) -> BitPlanes:
    options = {"group_size": None, "offset": False, "scale_dtype": "float16"} | changed
    if name in NEED_MOMENTS:
        options = {"moments": np.eye(weight.shape[-1])} | options
    return get_quantizer(name).quantize(weight, bits=bits, **options)


@pytest.mark.parametrize(("source", "group"), ERRORS)
@pytest.mark.parametrize("method", range(3))
def test_errors_stay_at_or_below_the_table(source: str, group: int, method: int) -> None:
    weight = sample(source, (400, 512))
    name = "greedy" if method == 0 else "alternating"
    first, *errors = ERRORS[source, group]
    for bits, expected in enumerate(errors[method], first):
        found = error(weight, quantize(name, weight, bits, group_size=group, offset=method == 2))
        assert found <= expected * 1.02, (source, group, name, bits)


@pytest.mark.parametrize("name", quantizer_names())
@pytest.mark.parametrize("offset", [False, True])
def test_error_falls_with_every_bit(name: str, offset: bool) -> None:
    weight = sample("t5", (64, 96))
    errors = [error(weight, quantize(name, weight, bits, offset=offset)) for bits in range(1, 9)]
    assert all(more < less for less, more in pairwise(errors))


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("scale_dtype", ["float16", "float32", "pow2"])
def test_alternating_codes_are_nearest_for_the_stored_scales(
    bits: int, offset: bool, scale_dtype: str
) -> None:
    weight = sample("gauss", (20, 48)) * np.float32(1e-3)
    planes = quantize("alternating", weight, bits, group_size=16, offset=offset, scale_dtype=scale_dtype)
    assert planes.scales.dtype == scale_storage(scale_dtype)
    signs = np.array([[1 if code >> i & 1 else -1 for i in range(bits)] for code in range(1 << bits)])
    levels = np.einsum("cb,bng->cng", signs, planes.alphas().astype(np.float64))
    offsets = planes.float_offsets()
    if offsets is not None:
        levels += offsets
    nearest = np.abs(weight.reshape(20, 3, 16)[None] - levels[..., None]).min(0).reshape(weight.shape)
    np.testing.assert_allclose(np.abs(weight - planes.dequantize()), nearest, atol=1e-9)


def test_greedy_is_the_papers() -> None:
    weight = sample("gauss", (3, 40))
    planes = quantize("greedy", weight, 3, scale_dtype="float32")
    residual = weight.astype(np.float64)
    for plane in range(3):
        alpha = np.abs(residual).mean(1)
        np.testing.assert_allclose(planes.scales[plane, :, 0], alpha, rtol=1e-5)
        code = np.where(residual >= 0, 1, -1)
        np.testing.assert_array_equal(planes.signs()[plane], code)
        residual = residual - alpha[:, None] * code


@pytest.mark.parametrize("scale_dtype", ["float16", "pow2"])
@pytest.mark.parametrize("name", ["alternating", "hessian"])
def test_scales_are_largest_first(name: str, scale_dtype: str) -> None:
    scales = quantize(name, sample("t5", (50, 128)), 4, group_size=32, scale_dtype=scale_dtype).scales
    assert (np.diff(scales, axis=0) <= 0).all()


@pytest.mark.parametrize("name", ["alternating", "greedy", "hessian"])
@pytest.mark.parametrize("offset", [False, True])
def test_pow2_scales_cost_little(name: str, offset: bool) -> None:
    weight = sample("t5", (300, 512)) * np.exp2(np.arange(300, dtype=np.float32) % 40 - 20)[:, None]
    for bits, limit in enumerate((1.001, 1.003, 1.02, 1.06), 1):
        made = quantize(name, weight, bits, offset=offset, scale_dtype="pow2")
        assert made.exponents is not None
        mantissas = made.scales if made.offsets is None else np.concatenate([made.scales, made.offsets[None]])
        assert np.abs(mantissas.astype(int)).sum(0).max() <= 127
        exact = quantize(name, weight, bits, offset=offset, scale_dtype="float32")
        assert error(weight, made) <= limit * error(weight, exact)


@pytest.mark.parametrize("name", quantizer_names())
@pytest.mark.parametrize(("offset", "group"), [(False, 64), (True, 16)])
def test_outliers_are_nearly_exact_and_leave_the_others(name: str, offset: bool, group: int) -> None:
    weight = sample("gauss", (50, 64)) * np.float32(0.1)
    where = np.random.default_rng(3).choice(weight.size, 16, replace=False)
    spiked = weight.copy()
    spiked.reshape(-1)[where] = np.where(np.arange(16) % 2, 3.0, -5.0)
    options: dict[str, Any] = {"offset": offset, "group_size": group, "bits": 3}
    plain = quantize(name, weight, **options)
    made = quantize(name, spiked, outliers=0.5, **options)
    assert made.outliers is not None
    assert np.array_equal(made.outliers.places, np.sort(where))
    others = np.ones(weight.size, bool)
    others[where] = False
    found = made.dequantize().reshape(-1)
    np.testing.assert_allclose(found[where], spiked.reshape(-1)[where], rtol=2e-3)
    error_of = lambda planes: ((planes.dequantize() - weight).reshape(-1)[others] ** 2).sum()  # noqa: E731
    assert error_of(made) < 1.1 * error_of(plain)
    assert error(spiked, made) < error(spiked, quantize(name, spiked, **options)) * 0.6


@pytest.mark.parametrize("name", ["alternating", "hessian"])
def test_outliers_do_not_depend_on_threads(name: str) -> None:
    weight = sample("t5", (700, 512))
    made = [
        replace(get_quantizer(name), threads=threads).quantize(  # pyright: ignore[reportArgumentType]
            weight, bits=2, group_size=None, offset=False, scale_dtype="float16", outliers=0.2,
            moments=np.eye(512),
        )
        for threads in (1, 4)
    ]  # fmt: skip
    one, other = (planes.outliers for planes in made)
    assert one is not None
    assert other is not None
    assert one.places.tobytes() == other.places.tobytes()
    assert one.values.tobytes() == other.values.tobytes()
    assert made[0].planes.tobytes() == made[1].planes.tobytes()


def test_few_weights_have_no_outliers() -> None:
    assert quantize("alternating", sample("gauss", (4, 100)), 2, outliers=0.1).outliers is None


@pytest.mark.parametrize("percent", [6, -1])
def test_impossible_outliers(percent: float) -> None:
    with pytest.raises(ValueError, match=f"{percent} percent of outliers"):
        quantize("greedy", sample("gauss", (4, 8)), 2, outliers=percent)


def test_huge_outliers_are_named() -> None:
    weight = sample("gauss", (10, 100))
    weight[3, 3] = 1e6
    with pytest.raises(ValueError, match="an outlier exceeds float16"):
        quantize("alternating", weight, 2, outliers=0.1)


def test_rtn_has_no_pow2_scales() -> None:
    with pytest.raises(ValueError, match="rtn codes have no pow2 scales"):
        quantize("rtn", sample("gauss", (2, 8)), 2, scale_dtype="pow2")


@pytest.mark.parametrize("kind", [Greedy, Alternating])
def test_result_does_not_depend_on_threads(kind: type[Greedy | Alternating]) -> None:
    weight = sample("t5", (700, 512))
    one, four = (
        kind(threads=threads).quantize(weight, bits=3, group_size=128, offset=True, scale_dtype="float16")
        for threads in (1, 4)
    )
    assert one.planes.tobytes() == four.planes.tobytes()
    assert one.scales.tobytes() == four.scales.tobytes()


def test_result_does_not_depend_on_other_rows() -> None:
    weight = sample("t5", (40, 64))
    whole = quantize("alternating", weight, 3)
    part = quantize("alternating", weight[10:20], 3)
    np.testing.assert_array_equal(whole.planes[:, 10:20], part.planes)


@given(
    st.sampled_from(quantizer_names()),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(["random", "zero", "constant", "two values", "tiny", "huge", "one outlier"]),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_and_content(
    name: str, n: int, k: int, bits: int, offset: bool, kind: str, data: st.DataObject
) -> None:
    group = data.draw(st.sampled_from([size for size in range(1, k + 1) if k % size == 0]))
    weight = sample("gauss", (n, k))
    match kind:
        case "zero":
            weight[:] = 0
        case "constant":
            weight[:] = 0.3
        case "two values":
            weight = np.sign(weight)
        case "tiny":
            weight *= np.float32(1e-38)
        case "huge":
            weight *= np.float32(1e37)
        case "one outlier":
            weight[0, 0] = 1e6
    planes = quantize(name, weight, bits, group_size=group, offset=offset, scale_dtype="float32")
    assert (planes.bits, planes.shape, planes.group_size) == (bits, (n, k), group)
    assert not (np.unpackbits(planes.planes, axis=2, bitorder="little")[..., k:]).any()
    with np.errstate(over="ignore"):
        found = planes.dequantize().astype(np.float64)
    assert np.isfinite(found).all()
    wide = weight.astype(np.float64)
    mean = wide.reshape(n, -1, group).mean(2, keepdims=True) if offset else 0.0
    spread = ((wide.reshape(n, -1, group) - mean) ** 2).sum()
    if name != "rtn" and kind != "tiny":
        assert ((wide - found) ** 2).sum() <= spread * (1 + 1e-5) + 1e-10 * (wide**2).sum()
    if kind in ("zero", "constant") and (offset or kind == "zero" or name != "rtn"):
        np.testing.assert_allclose(found, wide, rtol=1e-5)


def test_two_values_are_exact_with_one_plane_and_an_offset() -> None:
    weight = np.where(sample("gauss", (8, 64)) > 0, np.float32(3), np.float32(-1))
    for name in ("alternating", "rtn"):
        np.testing.assert_allclose(quantize(name, weight, 1, offset=True).dequantize(), weight, rtol=1e-6)


def test_uniform_codes_are_imported_exactly() -> None:
    rng = np.random.default_rng(0)
    for bits in range(1, 9):
        codes = rng.integers(0, 1 << bits, (6, 24)).astype(np.uint8)
        step = rng.integers(1, 50, (6, 3)).astype(np.float32) / 1024
        zero = rng.integers(0, 1 << bits, (6, 3)).astype(np.float32)
        planes = planes_from_uniform(codes, step, zero, bits=bits, scale_dtype="float32")
        exact = step.repeat(8, 1) * (codes - zero.repeat(8, 1))
        np.testing.assert_array_equal(planes.dequantize(), exact)


@pytest.mark.parametrize(
    ("codes", "step", "bits", "message"),
    [
        (np.full((2, 4), 4), np.ones((2, 1)), 2, "codes reach 4, which 2 bits do not hold"),
        (np.zeros((2, 4)), np.ones((2, 3)), 2, r"step \(2, 3\) and zero point"),
    ],
)
def test_impossible_uniform_codes(codes: NDArray[Any], step: NDArray[Any], bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planes_from_uniform(codes.astype(np.uint8), step, step, bits=bits, scale_dtype="float32")


def test_rtn_keeps_a_uniform_int8_matrix() -> None:
    codes = np.random.default_rng(1).integers(0, 256, (16, 64))
    codes[:, 0], codes[:, 1] = 0, 255
    weight = (codes - 128).astype(np.float32) / 64
    np.testing.assert_array_equal(
        quantize("rtn", weight, 8, offset=True, scale_dtype="float32").dequantize(), weight
    )


@pytest.mark.parametrize("name", quantizer_names())
@pytest.mark.parametrize(
    ("weight", "changed", "message"),
    [
        (np.full((2, 8), np.nan, np.float32), {}, "holds NaN or infinite values"),
        (np.full((2, 8), np.inf, np.float32), {}, "holds NaN or infinite values"),
        (np.full((2, 8), 1e6, np.float32), {}, "exceeds float16 .*use scales in float32"),
        (np.zeros((2, 0), np.float32), {}, r"shape \(2, 0\)"),
        (np.zeros((0, 2), np.float32), {}, r"shape \(0, 2\)"),
        (np.zeros(8, np.float32), {}, r"shape \(8,\); expected a matrix"),
        (np.zeros((2, 8), np.int64), {}, "the weight is int64; expected floating point"),
        (np.zeros((2, 8), np.float32), {"bits": 9}, r"9 bits cannot be quantized to \(expected 1 to 8\)"),
        (np.zeros((2, 8), np.float32), {"bits": 0}, "0 bits cannot be quantized to"),
        (np.zeros((2, 8), np.float32), {"group_size": 3}, "group size 3 does not divide 8 columns"),
        (np.zeros((2, 8), np.float32), {"group_size": 0}, "group size 0 does not divide 8 columns"),
    ],
)
def test_bad_weights_are_named(
    name: str, weight: NDArray[Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(name, weight, **({"bits": 2} | changed))


def test_unknown_quantizer_lists_the_known() -> None:
    known = "alternating, greedy, hessian, rtn, weighted"
    with pytest.raises(ValueError, match=f"unknown quantizer 'greddy': known are {known}; did"):
        get_quantizer("greddy")


def test_registry_matches_the_folder() -> None:
    files = {path.stem for path in Path(quantizers.__path__[0]).glob("*.py")} - {"__init__", "quantizer"}
    assert files == set(quantizer_names())


def test_weighted_codes_care_about_large_inputs() -> None:
    """Scales by weighted least squares: less output error where columns differ, else the same."""
    weight = sample("t5", (60, 128))
    diagonal = np.exp(np.linspace(-4, 4, 128))
    moments = np.diag(diagonal)
    plain = quantize("alternating", weight, 2)
    ours = quantize("weighted", weight, 2, moments=moments)
    damage = lambda planes: float(((weight - planes.dequantize()) ** 2 * diagonal).sum())  # noqa: E731
    assert damage(ours) < 0.9 * damage(plain)
    even = quantize("weighted", weight, 2, moments=np.eye(128))
    assert error(weight, even) < 1.01 * error(weight, plain)


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        (None, "weighted codes need calibration data"),
        (np.eye(7), r"the moments are \(7, 7\); 8 columns need \(8, 8\)"),
        (-np.eye(8), "NaN, infinite or negative"),
        (np.full((8, 8), np.nan), "NaN, infinite or negative"),
    ],
)
def test_bad_moments_of_weighted_codes(moments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize("weighted", sample("gauss", (2, 8)), 2, moments=moments)
