# SPDX-License-Identifier: Apache-2.0
"""Softmax attention of single rows: over decoder caches, and over encoder memory.

Both walk keys and values in blocks of 16 with a running maximum (online softmax), so no score matrix
exists. ``cached`` first writes the new key and value into the caches, in place. Whole sentences:
``ragged_attention``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .lut_table import Tables, tree_reduce, tree_sum
from .math import first_lane, vector_exp
from .packing import ColumnLayout
from .table_output import TableOutput
from .tir import LANES, KernelBuilder, T, body, fsplat, load, put, scratch, splat, store, times

Kind = Literal["cached", "cross"]
LOWEST = -3.0e38


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Which keys a row sees, heads, model width, and the table that follows (or None)."""

    kind: Kind
    heads: int
    width: int
    table: ColumnLayout | None = None
    tables: Tables = "int8"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.width}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def reference(
    q: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32], heads: int
) -> NDArray[np.float32]:
    """NumPy meaning for one row: q[width] over keys and values [t, width] -> float32[width]."""
    d = q.shape[0] // heads
    qh, kh = q.reshape(heads, d).astype(np.float64), keys.reshape(-1, heads, d).astype(np.float64)
    scores = np.einsum("hd,thd->ht", qh, kh) / np.sqrt(d)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.einsum("ht,thd->hd", p, values.reshape(-1, heads, d)).reshape(-1).astype(np.float32)


def attention(spec: AttentionSpec, name: str = "attention") -> Any:
    """PrimFunc of one attention.

    cached: (q, k, v [m, D], k_cache, v_cache [slots, Tmax, D], position[m], ancestry[m, Tmax], out);
    cross: (q[m, D], k[T, D], v[T, D], offsets[B + 1], sentences[m], out). Then table, scale, sums if any.
    """
    kernel = KernelBuilder(name)
    with kernel.define():
        match spec.kind:
            case "cached":
                _cached(kernel, spec)
            case "cross":
                _cross(kernel, spec)
    return kernel.result


def _cached(kernel: KernelBuilder, spec: AttentionSpec) -> None:
    m, slots, limit = T.int64(), T.int64(), T.int64()
    q, k, v = (kernel.param(n, (m, spec.width)) for n in "qkv")
    k_cache, v_cache = (kernel.param(n, (slots, limit, spec.width)) for n in ("k_cache", "v_cache"))
    position = kernel.param("position", (m,), "int32")
    ancestry = kernel.param("ancestry", (m, limit), "int32")
    out = kernel.param("out", (m, spec.width))
    table = TableOutput.declare(kernel, m, spec.table, spec.tables)
    reads = [q, k, v, k_cache, v_cache, position, ancestry]
    with body([out, k_cache, v_cache, *table.buffers], reads), T.serial(0, m) as row:
        now = T.Bind(T.Cast("int64", position[row]))
        _copy_row(k, row, k_cache, (row, now), spec.width)
        _copy_row(v, row, v_cache, (row, now), spec.width)

        def slot(t: Any) -> tuple[Any, Any]:
            return T.if_then_else(t < now, T.Cast("int64", ancestry[row, t]), row), t

        _emit_row(spec, q, row, now + 1, lambda t: (k_cache, slot(t)), lambda t: (v_cache, slot(t)), out)
        table.emit(out, row)


def _cross(kernel: KernelBuilder, spec: AttentionSpec) -> None:
    m, tokens, starts = T.int64(), T.int64(), T.int64()
    q = kernel.param("q", (m, spec.width))
    k, v = (kernel.param(n, (tokens, spec.width)) for n in "kv")
    offsets = kernel.param("offsets", (starts,), "int32")
    sentences = kernel.param("sentences", (m,), "int32")
    out = kernel.param("out", (m, spec.width))
    table = TableOutput.declare(kernel, m, spec.table, spec.tables)
    with body([out, *table.buffers], [q, k, v, offsets, sentences]), T.serial(0, m) as row:
        s = T.Bind(sentences[row])
        first = T.Bind(T.Cast("int64", offsets[s]))
        count = T.Bind(T.Cast("int64", offsets[s + 1]) - first)
        _emit_row(spec, q, row, count, lambda t: (k, (first + t,)), lambda t: (v, (first + t,)), out)
        table.emit(out, row)


def _copy_row(source: Any, row: Any, target: Any, where: tuple[Any, ...], width: int) -> None:
    for start, lanes in pieces_of(width):
        store(target, (*where, start), load(source, (row, start), lanes), lanes)


def pieces_of(width: int) -> list[tuple[int, int]]:
    """(start, lanes) that cover ``width`` columns with vectors of 16, 8, 4, 2 and 1."""
    pieces, start = [], 0
    for lanes in (LANES, 8, 4, 2, 1):
        while width - start >= lanes:
            pieces.append((start, lanes))
            start += lanes
    return pieces


Place = Callable[[Any], tuple[Any, tuple[Any, ...]]]


def _emit_row(spec: AttentionSpec, q: Any, row: Any, count: Any, key: Place, value: Place, out: Any) -> None:
    """One row over ``count`` keys and values, head by head."""
    pieces = pieces_of(spec.head_width)
    with T.serial(0, spec.heads) as head:
        base = T.Bind(head * spec.head_width)
        scores, top, weight = scratch((LANES,)), scratch((1,)), scratch((1,))
        put(top, (0,), T.float32(LOWEST))
        put(weight, (0,), T.float32(0))
        acc = [scratch((lanes,)) for _, lanes in pieces]
        for buffer, (_, lanes) in zip(acc, pieces, strict=True):
            store(buffer, (0,), fsplat(0.0, lanes), lanes)
        queries = [T.Bind(load(q, (row, base + start), lanes)) for start, lanes in pieces]
        with T.serial(0, T.floordiv(count + (LANES - 1), LANES)) as block:
            first = T.Bind(block * LANES)
            size = T.Bind(T.min(count - first, T.int64(LANES)))
            store(scores, (0,), fsplat(LOWEST), LANES)
            with T.serial(0, size) as t:
                dot = _dot(queries, pieces, key(first + t), base)
                put(scores, (t,), times(dot, T.float32(spec.head_width**-0.5), 1))
            _rescale(scores, top, weight, acc, pieces)
            with T.serial(0, size) as t:
                buffer, where = value(first + t)
                p = scores[t]
                for into, (start, lanes) in zip(acc, pieces, strict=True):
                    term = times(splat(p, lanes), load(buffer, (*where, base + start), lanes), lanes)
                    store(into, (0,), load(into, (0,), lanes) + term, lanes)
        inverse = T.Bind(T.float32(1) / weight[0])
        for buffer, (start, lanes) in zip(acc, pieces, strict=True):
            store(out, (row, base + start), load(buffer, (0,), lanes) * splat(inverse, lanes), lanes)


def _dot(queries: list[Any], pieces: list[tuple[int, int]], place: Any, base: Any) -> Any:
    """Sum over a head's columns: vectors of equal width are added first, then lanes pairwise."""
    buffer, where = place
    by_lanes: dict[int, Any] = {}
    for query, (start, lanes) in zip(queries, pieces, strict=True):
        product = times(query, load(buffer, (*where, base + start), lanes), lanes)
        by_lanes[lanes] = product if lanes not in by_lanes else by_lanes[lanes] + product
    total = None
    for lanes, vector in by_lanes.items():
        part = tree_sum(vector, lanes)
        total = part if total is None else total + part
    return total


def _rescale(scores: Any, top: Any, weight: Any, acc: list[Any], pieces: list[tuple[int, int]]) -> None:
    """Turns a block's scores into weights under the new maximum; shrinks what was summed before."""
    block_top = tree_reduce(load(scores, (0,), LANES), LANES, T.max)
    new_top = T.Bind(T.max(top[0], block_top))
    shrink = T.Bind(vector_exp(splat(top[0] - new_top, 4), 4))
    factor = T.Bind(first_lane(shrink))
    weights = T.Bind(vector_exp(load(scores, (0,), LANES) - splat(new_top)))
    valid = T.Bind(T.Select(load(scores, (0,), LANES) > fsplat(LOWEST), weights, fsplat(0.0)))
    store(scores, (0,), valid, LANES)
    put(weight, (0,), times(weight[0], factor, 1) + tree_sum(valid, LANES))
    put(top, (0,), new_top)
    for buffer, (_, lanes) in zip(acc, pieces, strict=True):
        store(buffer, (0,), times(load(buffer, (0,), lanes), splat(factor, lanes), lanes), lanes)
