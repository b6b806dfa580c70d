# SPDX-License-Identifier: Apache-2.0
"""From token rows to one row per sentence, without padding: mean or first token; unit length.

Sentence s is rows offsets[s]..offsets[s + 1]. Sums run over tokens in order, lane by lane, so a sentence's
row depends on its own tokens only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .lut_table import tree_sum
from .math import for_vectors
from .tir import LANES, KernelBuilder, T, body, fsplat, load, put, scratch, splat, store, times

Pool = Literal["mean", "first"]
SMALLEST_NORM = 1e-12
"""Rows shorter than this are divided by it instead of by their length, as torch's ``normalize`` does."""


def pool_reference(x: NDArray[np.float32], offsets: NDArray[np.int32], pool: Pool) -> NDArray[np.float32]:
    """NumPy meaning of :func:`pooling`: float32[sentences, width]."""
    bounds = pairwise(offsets)
    rows = [x[a] if pool == "first" else x[a:b].astype(np.float64).mean(axis=0) for a, b in bounds]
    return np.stack(rows).astype(np.float32)


def normalize_reference(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """NumPy meaning of :func:`normalize`: rows of float32[m, width] divided by their length."""
    wide = x.astype(np.float64)
    length = np.sqrt((wide**2).sum(axis=1, keepdims=True))
    return (wide / np.maximum(length, SMALLEST_NORM)).astype(np.float32)


def pooling(pool: Pool, width: int, name: str = "pooling") -> Any:
    """PrimFunc (x[tokens, width], offsets[sentences + 1], y[sentences, width])."""
    kernel = KernelBuilder(name)
    with kernel.define():
        tokens, starts, sentences = T.int64(), T.int64(), T.int64()
        x = kernel.param("x", (tokens, width))
        offsets = kernel.param("offsets", (starts,), "int32")
        y = kernel.param("y", (sentences, width))
        with body([y], [x, offsets]), T.serial(0, sentences) as s:
            first = T.Bind(T.Cast("int64", offsets[s]))
            if pool == "first":
                _copy(x, first, y, s, width)
            else:
                _mean(x, first, T.Bind(T.Cast("int64", offsets[s + 1]) - first), y, s, width)
    return kernel.result


def normalize(width: int, name: str = "normalize") -> Any:
    """PrimFunc (x[m, width], y[m, width]): rows of unit length."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        x, y = kernel.param("x", (m, width)), kernel.param("y", (m, width))
        with body([y], [x]), T.serial(0, m) as row:
            length = T.Bind(T.max(T.sqrt(_squares(x, row, width)), T.float32(SMALLEST_NORM)))
            wide = T.Bind(splat(length))
            for_vectors(
                width,
                lambda c: store(y, (row, c), load(x, (row, c), LANES) / wide, LANES),
                lambda c: put(y, (row, c), x[row, c] / length),
            )
    return kernel.result


def _copy(x: Any, source: Any, y: Any, row: Any, width: int) -> None:
    for_vectors(
        width,
        lambda c: store(y, (row, c), load(x, (source, c), LANES), LANES),
        lambda c: put(y, (row, c), x[source, c]),
    )


def _mean(x: Any, first: Any, count: Any, y: Any, row: Any, width: int) -> None:
    size = T.Bind(T.Cast("float32", T.max(count, T.int64(1))))
    wide = T.Bind(splat(size))

    def vector(c: Any) -> None:
        total = scratch((LANES,))
        store(total, (0,), fsplat(0.0), LANES)
        with T.serial(0, count) as t:
            store(total, (0,), load(total, (0,), LANES) + load(x, (first + t, c), LANES), LANES)
        store(y, (row, c), load(total, (0,), LANES) / wide, LANES)

    def scalar(c: Any) -> None:
        total = scratch((1,))
        put(total, (0,), T.float32(0))
        with T.serial(0, count) as t:
            put(total, (0,), total[0] + x[first + t, c])
        put(y, (row, c), total[0] / size)

    for_vectors(width, vector, scalar)


def _squares(x: Any, row: Any, width: int) -> Any:
    """Sum of the squares of a row: lanes first, then the columns beyond the last whole vector."""
    lanes, rest = scratch((LANES,)), scratch((1,))
    store(lanes, (0,), fsplat(0.0), LANES)
    put(rest, (0,), T.float32(0))

    def vector(c: Any) -> None:
        value = T.Bind(load(x, (row, c), LANES))
        store(lanes, (0,), load(lanes, (0,), LANES) + times(value, value), LANES)

    def scalar(c: Any) -> None:
        put(rest, (0,), rest[0] + times(x[row, c], x[row, c], 1))

    for_vectors(width, vector, scalar)
    return tree_sum(load(lanes, (0,), LANES), LANES) + rest[0]
