# SPDX-License-Identifier: Apache-2.0
"""Rows of tables added in integers: planes, levels, words with bits of their own, ids out of range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedules.block_gather import (
    BlockGatherSpec,
    RowSegment,
    RowTable,
    block_gather,
    pack_row_planes,
    reference,
)
from schedules.packing import BitPlanes

WIDTH = 48


def stored(planes: BitPlanes) -> list[Any]:
    packed = pack_row_planes(planes)
    return [packed["exponents"], packed["bits"], packed["alphas"]]


def levels(planes: BitPlanes) -> Any:
    return (planes.signs() * planes.scales.astype(np.int32)).sum(axis=0).astype(np.int8)


@pytest.mark.emulated("arm64_v8")
def test_kernel_equals_reference(build: Any, weights: Any, kernel_level: Any) -> None:
    rng = np.random.default_rng(0)
    four, two, one = (
        weights.planes(n, WIDTH, bits, WIDTH, dtype="pow2") for n, bits in ((20, 4), (10, 2), (7, 1))
    )
    whole, powers = (
        rng.integers(-127, 128, (9, WIDTH)).astype(np.int8),
        rng.integers(-9, -3, 9).astype(np.int8),
    )
    order = rng.permutation(30)
    rank = np.empty(30, np.uint16)
    rank[order] = np.arange(30)
    words = RowTable(segments=(RowSegment(rows=20, bits=4), RowSegment(rows=10, bits=2)), rank_dtype="uint16")
    places, types = (RowTable(segments=(RowSegment(rows=n, bits=b),)) for n, b in ((9, 8), (7, 1)))
    spec = BlockGatherSpec(width=WIDTH, tables=(words, places, types))
    ids = [rng.integers(0, n, 11).astype(np.int32) for n in (30, 9, 7)]
    ids[0][:2], ids[1][0] = (-1, 99), 1 << 30
    safe = [np.where((i >= 0) & (i < n), i, 0) for i, n in zip(ids, (30, 9, 7), strict=True)]
    at = rank[safe[0]]
    rows = [np.concatenate([levels(four), levels(two)])[at], whole[safe[1]], levels(one)[safe[2]]]
    found = np.concatenate([four.exponents, two.exponents])[:, 0][at]  # type: ignore[list-item]
    exponents = [found, powers[safe[1]], one.exponents[safe[2], 0]]
    wanted = reference(rows, exponents)
    inputs = [*ids, rank, *stored(four), *stored(two), powers, whole, *stored(one)]
    y = build(block_gather(spec), kernel_level)(inputs, ((11, WIDTH), np.int32), ((11,), np.int32))
    np.testing.assert_array_equal(y[0], wanted[0])
    np.testing.assert_array_equal(y[1], wanted[1])
    exact = sum(
        np.ldexp(r.astype(float), e.astype(int)[:, None]) for r, e in zip(rows, exponents, strict=True)
    )
    assert np.abs(np.ldexp(wanted[0].astype(float), wanted[1][:, None]) - exact).max() <= 3 * 2.0 ** (
        wanted[1].max() - 1
    )


def test_refusals(weights: Any) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        BlockGatherSpec(width=40, tables=())
    with pytest.raises(ValueError, match="power-of-two scales"):
        pack_row_planes(weights.planes(4, WIDTH, 2, WIDTH))
