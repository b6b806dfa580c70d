# SPDX-License-Identifier: Apache-2.0
"""Gathered rows equal the dequantized words; ids outside the vocabulary read word 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedules.embedding import GatherSpec, gather
from schedules.float_gemm import pack
from schedules.lut_gemm import Segment
from schedules.packing import WordPlanes

WORDS, WIDTH = 205, 96
IDS = np.array([0, 5, 204, 42, 7, 7, 100, -1, 205, 2**31 - 1, -(2**31)], np.int32)
KNOWN = np.where((IDS >= 0) & (IDS < WORDS), IDS, 0)
PARTS = (
    (70, 3, True, "float16", 3.0),
    (5, 8, False, "float32", 0.0),
    (20, 3, True, "pow2", 2.0),
    (110, 1, True, "float32", 1.0),
)


@pytest.mark.parametrize(("rank_dtype", "group"), [("uint16", 32), ("int32", 48), ("", 96)])
def test_words_of_different_bits(build: Any, level: Any, weights: Any, rank_dtype: str, group: int) -> None:
    order = np.arange(WORDS, dtype=np.int32)
    if rank_dtype:
        order = np.random.default_rng(0).permutation(order)
    planes, segments, start = [], [], 0
    for rows, bits, offset, dtype, outliers in PARTS:
        planes.append(
            weights.planes(rows, WIDTH, bits, group, offset=offset, dtype=dtype, outliers=outliers)
        )
        segments.append(
            Segment(
                rows=rows, bits=bits, group_size=group, offset=offset, scale_dtype=dtype,
                output=0, start=start, outliers=outliers > 0,
            )
        )  # fmt: skip
        start += rows
    spec = GatherSpec(words=WORDS, width=WIDTH, segments=tuple(segments), rank_dtype=rank_dtype, factor=2.5)
    inputs = [IDS, *([np.argsort(order).astype(rank_dtype)] if rank_dtype else [])]
    for part in planes:
        inputs += weights.arguments(part)
    (y, *_) = build(gather(spec), level)(inputs, ((len(IDS), WIDTH), "float32"))
    expected = 2.5 * WordPlanes(order=order, segments=tuple(planes)).dequantize()[KNOWN]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_float_rows_are_copied(build: Any, level: Any, packed: bool) -> None:
    table = np.random.default_rng(1).standard_normal((WORDS, 10)).astype(np.float32)
    spec = GatherSpec(words=WORDS, width=10, segments=(), packed=packed)
    (y, *_) = build(gather(spec), level)([IDS, pack(table) if packed else table], ((len(IDS), 10), "float32"))
    assert np.array_equal(y, table[KNOWN])
