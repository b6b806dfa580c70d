# SPDX-License-Identifier: Apache-2.0
"""Pooling and normalisation equal their NumPy meaning; a sentence's row does not depend on its neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from schedules.pooling import normalize, normalize_reference, pool_reference, pooling

OFFSETS = np.array([0, 1, 4, 21], np.int32)


def rows(width: int) -> np.ndarray:
    return np.random.default_rng(width).standard_normal((21, width)).astype(np.float32)


@pytest.mark.parametrize("pool", ["mean", "first"])
@pytest.mark.parametrize("width", [32, 21, 3])
def test_pooling(build: Any, level: Any, pool: Any, width: int) -> None:
    x = rows(width)
    (y, *_) = build(pooling(pool, width), level)([x, OFFSETS], ((3, width), "float32"))
    np.testing.assert_allclose(y, pool_reference(x, OFFSETS, pool), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_a_sentence_alone_gives_the_same_bits(build: Any, level: Any, pool: Any) -> None:
    x = rows(21)
    kernel = build(pooling(pool, 21), level)
    (together, *_) = kernel([x, OFFSETS], ((3, 21), "float32"))
    for s, (a, b) in enumerate(pairwise(OFFSETS)):
        (alone, *_) = kernel([x[a:b], np.array([0, b - a], np.int32)], ((1, 21), "float32"))
        assert alone.tobytes() == together[s].tobytes()


@pytest.mark.parametrize("width", [32, 21, 3])
def test_normalize(build: Any, level: Any, width: int) -> None:
    x = rows(width)
    x[3] = 0
    (y, *_) = build(normalize(width), level)([x], (x.shape, "float32"))
    np.testing.assert_allclose(y, normalize_reference(x), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(np.delete((y**2).sum(axis=1), 3), 1, rtol=1e-5)
    assert not y[3].any()
