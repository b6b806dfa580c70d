# SPDX-License-Identifier: Apache-2.0
"""Softmax attention within sentences of any lengths, without padding, four queries at a time.

Keys are turned over first, so that 16 of them meet a query's column in one vector: scores need no sums
across lanes. A query's numbers come from its own sentence in one order, whatever tile or batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attention import LOWEST, pieces_of
from .attention import reference as row_reference
from .lut_table import Tables, tree_reduce, tree_sum
from .math import vector_exp
from .packing import ColumnLayout
from .table_output import TableOutput
from .tir import LANES, KernelBuilder, T, body, fsplat, load, put, scratch, shuffle, splat, store, times

QUERIES = 4
"""Queries of a tile: their sums and one vector of keys fit the registers of every level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedSpec:
    """Heads, model width, and the table that follows (or None)."""

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

    @property
    def work_rows(self) -> int:
        """Rows of the work space: keys turned over, then the scores of a tile for each head."""
        return self.width + QUERIES * self.heads


def work_columns(tokens: Any) -> Any:
    """Columns of the work space: blocks of keys may reach beyond the last token."""
    return tokens + LANES


def reference(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    offsets: NDArray[np.int32],
    heads: int,
) -> NDArray[np.float32]:
    """NumPy meaning: q, k, v [T, width], sentence s is rows offsets[s]..offsets[s + 1] -> [T, width]."""
    out = np.zeros_like(q)
    for first, last in pairwise(offsets):
        for row in range(first, last):
            out[row] = row_reference(q[row], k[first:last], v[first:last], heads)
    return out


def ragged_attention(spec: RaggedSpec, name: str = "ragged_attention") -> Any:
    """PrimFunc (q, k, v [T, D], offsets[B + 1], out[T, D], [table, scale, sums], work).

    ``work`` is float32[``work_rows``, ``work_columns``(T)], an output without meaning.
    """
    kernel = KernelBuilder(name)
    with kernel.define():
        tokens, starts, padded = T.int64(), T.int64(), T.int64()
        q, k, v = (kernel.param(n, (tokens, spec.width)) for n in "qkv")
        offsets = kernel.param("offsets", (starts,), "int32")
        out = kernel.param("out", (tokens, spec.width))
        table = TableOutput.declare(kernel, tokens, spec.table, spec.tables)
        work = kernel.param("work", (spec.work_rows, padded))
        with body([out, *table.buffers, work], [q, k, v, offsets]):
            with T.parallel(0, spec.heads) as head:
                emit = _HeadEmitter(spec, (q, k, v, out, work), head)
                emit.turn_keys(tokens)
                with T.serial(0, starts - 1) as s:
                    first = T.Bind(T.Cast("int64", offsets[s]))
                    emit.sentence(first, T.Bind(T.Cast("int64", offsets[s + 1]) - first))
            if spec.table is not None:
                with T.parallel(0, tokens) as row:
                    table.emit(out, row)
    return kernel.result


class _HeadEmitter:
    """Emits the loops of one head."""

    def __init__(self, spec: RaggedSpec, buffers: Any, head: Any) -> None:
        self.spec, self.head = spec, head
        self.q, self.k, self.v, self.out, self.work = buffers
        self.base = T.Bind(head * spec.head_width)
        self.scores = T.Bind(spec.width + head * QUERIES)

    def turn_keys(self, tokens: Any) -> None:
        """Row base + d of the work space gets column base + d of the keys."""
        with T.serial(0, tokens) as t, T.serial(0, self.spec.head_width) as d:
            put(self.work, (self.base + d, t), self.k[t, self.base + d])

    def sentence(self, first: Any, count: Any) -> None:
        done: Any = T.int64(0)
        for queries in (QUERIES, 1):
            tiles = T.floordiv(count - done, queries)
            with T.serial(0, tiles) as i:
                self._tile(first, count, first + done + i * queries, queries)
            done = T.Bind(done + tiles * queries)

    def _tile(self, first: Any, count: Any, row: Any, queries: int) -> None:
        """Queries ``row``.. of the sentence of ``count`` tokens from ``first`` on."""
        blocks = T.Bind(T.floordiv(count + (LANES - 1), LANES))
        tops = [scratch((LANES,)) for _ in range(queries)]
        for top in tops:
            store(top, (0,), fsplat(LOWEST), LANES)
        with T.serial(0, blocks) as block:
            self._scores(first, count, row, block, tops)
        weights = [scratch((LANES,)) for _ in range(queries)]
        for weight in weights:
            store(weight, (0,), fsplat(0.0), LANES)
        peaks = [T.Bind(splat(tree_reduce(load(top, (0,), LANES), LANES, T.max))) for top in tops]
        with T.serial(0, blocks) as block:
            for i, (peak, weight) in enumerate(zip(peaks, weights, strict=True)):
                self._powers(i, block, peak, weight)
        inverses = [T.Bind(T.float32(1) / tree_sum(load(weight, (0,), LANES), LANES)) for weight in weights]
        for start, lanes in pieces_of(self.spec.head_width):
            self._mix(first, count, row, start, lanes, inverses)

    def _scores(self, first: Any, count: Any, row: Any, block: Any, tops: list[Any]) -> None:
        """Scores of 16 keys for every query of the tile, and their running maxima lane by lane."""
        sums = [scratch((LANES,)) for _ in tops]
        for total in sums:
            store(total, (0,), fsplat(0.0), LANES)
        with T.serial(0, self.spec.head_width) as d:
            keys = T.Bind(load(self.work, (self.base + d, first + block * LANES), LANES))
            for i, total in enumerate(sums):
                term = times(splat(self.q[row + i, self.base + d]), keys)
                store(total, (0,), load(total, (0,), LANES) + term, LANES)
        scale = fsplat(self.spec.head_width**-0.5)
        left = T.Bind(splat(T.Cast("int32", count - block * LANES)))
        lane = shuffle([T.int32(i) for i in range(LANES)], list(range(LANES)))
        for i, (total, top) in enumerate(zip(sums, tops, strict=True)):
            score = T.Bind(T.Select(lane < left, load(total, (0,), LANES) * scale, fsplat(LOWEST)))
            store(self.work, (self.scores + i, block * LANES), score, LANES)
            store(top, (0,), T.max(load(top, (0,), LANES), score), LANES)

    def _powers(self, i: int, block: Any, peak: Any, weight: Any) -> None:
        """Turns 16 scores into exp(score - peak), 0 where there is no key, and sums them lane by lane."""
        score = T.Bind(load(self.work, (self.scores + i, block * LANES), LANES))
        power = T.Bind(vector_exp(score - peak))
        power = T.Bind(T.Select(score > fsplat(LOWEST), power, fsplat(0.0)))
        store(self.work, (self.scores + i, block * LANES), power, LANES)
        store(weight, (0,), load(weight, (0,), LANES) + power, LANES)

    def _mix(self, first: Any, count: Any, row: Any, start: int, lanes: int, inverses: list[Any]) -> None:
        """Weighted mean of some columns of the values."""
        sums = [scratch((lanes,)) for _ in inverses]
        for total in sums:
            store(total, (0,), fsplat(0.0, lanes), lanes)
        with T.serial(0, count) as t:
            value = T.Bind(load(self.v, (first + t, self.base + start), lanes))
            for i, total in enumerate(sums):
                term = times(splat(self.work[self.scores + i, t], lanes), value, lanes)
                store(total, (0,), load(total, (0,), lanes) + term, lanes)
        for i, (total, inverse) in enumerate(zip(sums, inverses, strict=True)):
            value = load(total, (0,), lanes) * splat(inverse, lanes)
            store(self.out, (row + i, self.base + start), value, lanes)
