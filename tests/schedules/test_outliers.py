# SPDX-License-Identifier: Apache-2.0
"""Stored outliers unpack to what they came from, take what is predicted, and damaged ones are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schedules.outliers import (
    Outliers,
    outlier_arrays,
    outlier_bytes,
    outlier_count,
    pack_outliers,
    tile_rows,
    unpack_outliers,
)
from schedules.packing import BitPlanes

Arrays = dict[str, NDArray[Any]]


def sparse(n: int, k: int, percent: float, seed: int = 0) -> Outliers:
    rng = np.random.default_rng(seed)
    count = outlier_count(percent, n, k)
    places = np.sort(rng.choice(n * k, count, replace=False))
    return Outliers(places=places.astype(np.int64), values=rng.standard_normal(count).astype(np.float16))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 200),
    st.sampled_from([1, 7, 512, 1024, 1025, 2048, 40_000, 65_536, 70_000]),
    st.floats(0, 5),
    st.integers(0, 2**32),
)
def test_round_trip_and_size(n: int, k: int, percent: float, seed: int) -> None:
    n = min(n, 2_000_000 // k)
    outliers = sparse(n, k, percent, seed)
    arrays = pack_outliers(outliers, n, k)
    back = unpack_outliers(**arrays, n=n, k=k)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(back.places, outliers.places)
    assert np.array_equal(back.values, outliers.values)
    if len(outliers.places):
        expected = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
        assert outlier_arrays(percent, n, k) == expected
        assert outlier_bytes(percent, n, k) == sum(array.nbytes for array in arrays.values())
    else:
        assert outlier_arrays(percent, n, k) == {}


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.sampled_from([7, 512, 2048]), st.integers(0, 2**32))
def test_documented_layout(n: int, k: int, seed: int) -> None:
    outliers = sparse(n, k, 1.0, seed)
    arrays, rows = pack_outliers(outliers, n, k), tile_rows(k)
    found = []
    for tile, (first, last) in enumerate(zip(arrays["starts"], arrays["starts"][1:], strict=False)):
        for place in arrays["places"][first:last].tolist():
            found.append((tile * rows + place // k) * k + place % k)
    assert found == outliers.places.tolist()


def test_tiles() -> None:
    assert [tile_rows(k) for k in (1, 512, 1024, 1025, 4096, 65_536, 65_537)] == [64, 64, 64, 32, 16, 1, 1]
    assert outlier_arrays(0.1, 512, 70_000)["places"][1] == "int32"


def test_planes_with_outliers() -> None:
    rng = np.random.default_rng(1)
    outliers = sparse(5, 40, 3.0)
    plain = BitPlanes(
        planes=rng.integers(0, 256, (2, 5, 5)).astype(np.uint8),
        scales=rng.random((2, 5, 1)).astype(np.float16),
        offsets=None,
        shape=(5, 40),
        group_size=40,
    )
    both = replace(plain, outliers=outliers)
    difference = both.dequantize() - plain.dequantize()
    expected = np.zeros(200, np.float32)
    expected[outliers.places] = outliers.values
    np.testing.assert_allclose(difference.reshape(-1), expected, atol=1e-6)
    assert both.nbytes == plain.nbytes + outlier_bytes(3.0, 5, 40)
    with pytest.raises(ValueError, match="outliers lie beyond the 5 x 40 weights"):
        replace(plain, outliers=Outliers(places=np.array([200]), values=np.zeros(1, np.float16)))
    with pytest.raises(ValueError, match="places of outliers for"):
        Outliers(places=np.array([1, 2]), values=np.zeros(1, np.float16))


DEFECTS: dict[str, tuple[str, Any, Any, str]] = {
    "later start": ("starts", 0, 1, "do not rise from 0"),
    "earlier end": ("starts", -1, 3, "do not rise from 0"),
    "falling starts": ("starts", 1, -2, "do not rise from 0"),
    "a place twice": ("places", 1, 0, "do not ascend"),
    "beyond its rows": ("places", 3, 64 * 10, "do not ascend"),
    "beyond the matrix": ("places", -1, 9 * 10, "beyond the last of 72 rows"),
    "not a number": ("values", 2, np.nan, "an outlier is not finite"),
    "infinite": ("values", 2, -np.inf, "an outlier is not finite"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_damaged_arrays(defect: str) -> None:
    name, place, value, message = DEFECTS[defect]
    places = np.array([0, 15, 70, 300, 650, 700], np.int64)
    arrays = pack_outliers(Outliers(places=places, values=np.ones(6, np.float16)), 72, 10)
    arrays[name][place] = value
    with pytest.raises(ValueError, match=message):
        unpack_outliers(**arrays, n=72, k=10)  # pyright: ignore[reportArgumentType]
