# SPDX-License-Identifier: Apache-2.0
"""The end of a decode step: the best next tokens of each row of logits.

``argmax`` gives the best allowed id; ``topk`` the k best allowed ids with their log-probabilities under
the softmax over the whole vocabulary. Banned ids count in the softmax but are never returned. Logits may
be in storage order: ``order`` maps a storage column to its word id. Ties go to the earlier column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .lut_table import tree_reduce, tree_sum
from .math import first_lane, vector_exp, vector_log
from .tir import LANES, KernelBuilder, T, body, fsplat, load, put, scratch, splat, store

BANNED = -3.0e38
BLOCK = 256
"""Columns whose maximum is kept, so that the k-th best needs no pass over all logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """Vocabulary size, dtype of the order table ("" when columns are word ids), number of banned ids."""

    vocabulary: int
    order_dtype: str = ""
    banned: int = 0

    @property
    def blocks(self) -> int:
        return -(-self.vocabulary // BLOCK)


def reference(
    logits: NDArray[np.float32], k: int, order: NDArray[Any] | None, banned: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """NumPy meaning of :func:`topk`: (log-probabilities, ids), both [m, k], best first."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    logp = wide - top - np.log(np.exp(wide - top).sum(axis=1, keepdims=True))
    allowed = logits.copy()
    allowed[:, banned] = BANNED
    best = np.argsort(-allowed, axis=1, kind="stable")[:, :k]
    ids = best if order is None else order.astype(np.int64)[best]
    return np.take_along_axis(logp, best, axis=1).astype(np.float32), ids.astype(np.int32)


def argmax(spec: SearchSpec, name: str = "argmax") -> Any:
    """PrimFunc (logits[m, V], banned[b], [order[V]], ids[m]); overwrites banned logits."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m, logits, banned, order = _declare(kernel, spec)
        ids = kernel.param("ids", (m,), "int32")
        with body([ids, logits], _inputs(logits, banned, order)), T.serial(0, m) as row:
            _ban(spec, logits, banned, row)
            blocks = scratch((spec.blocks,))
            _block_maxima(spec, logits, row, blocks)
            put(ids, (row,), _word(order, _take_best(spec, logits, row, blocks)))
    return kernel.result


def topk(spec: SearchSpec, name: str = "topk") -> Any:
    """PrimFunc (logits[m, V], banned[b], [order[V]], logp[m, k], ids[m, k]); overwrites logits."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m, logits, banned, order = _declare(kernel, spec)
        k = T.int64()
        logp = kernel.param("logp", (m, k))
        ids = kernel.param("ids", (m, k), "int32")
        with body([logp, ids, logits], _inputs(logits, banned, order)), T.serial(0, m) as row:
            blocks = scratch((spec.blocks,))
            _block_maxima(spec, logits, row, blocks)
            top = _maximum(spec, blocks)
            log_sum = _log_sum(spec, logits, row, top)
            for word in _ban(spec, logits, banned, row):
                _refresh_block(spec, logits, row, blocks, T.floordiv(word, BLOCK))
            with T.serial(0, k) as i:
                place = _take_best(spec, logits, row, blocks)
                put(logp, (row, i), (logits[row, place] - top) - log_sum)
                put(ids, (row, i), _word(order, place))
                put(logits, (row, place), T.float32(BANNED))
                _refresh_block(spec, logits, row, blocks, T.floordiv(place, BLOCK))
    return kernel.result


def _declare(kernel: KernelBuilder, spec: SearchSpec) -> tuple[Any, Any, Any, Any]:
    m = T.int64()
    logits = kernel.param("logits", (m, spec.vocabulary))
    banned = kernel.param("banned", (spec.banned,), "int32") if spec.banned else None
    order = kernel.param("order", (spec.vocabulary,), spec.order_dtype) if spec.order_dtype else None
    return m, logits, banned, order


def _inputs(*buffers: Any) -> list[Any]:
    return [b for b in buffers if b is not None]


def _ban(spec: SearchSpec, logits: Any, banned: Any, row: Any) -> list[Any]:
    """Overwrites the banned logits; their columns."""
    columns = [] if banned is None else [T.Bind(T.Cast("int64", banned[i])) for i in range(spec.banned)]
    for column in columns:
        put(logits, (row, column), T.float32(BANNED))
    return columns


def _word(order: Any, place: Any) -> Any:
    return T.Cast("int32", place) if order is None else T.Cast("int32", order[place])


def _block_maxima(spec: SearchSpec, logits: Any, row: Any, blocks: Any) -> None:
    with T.serial(0, spec.blocks) as b:
        _refresh_block(spec, logits, row, blocks, b)


def _refresh_block(spec: SearchSpec, logits: Any, row: Any, blocks: Any, block: Any) -> None:
    """Recomputes the maximum of one block of columns."""
    start = T.Bind(T.Cast("int64", block) * BLOCK)
    if spec.vocabulary % BLOCK == 0:
        put(blocks, (block,), _full_maximum(logits, row, start))
        return
    with T.If(start + BLOCK <= spec.vocabulary):
        with T.Then():
            put(blocks, (block,), _full_maximum(logits, row, start))
        with T.Else():
            put(blocks, (block,), T.float32(BANNED))
            with T.serial(start, T.int64(spec.vocabulary)) as c:
                put(blocks, (block,), T.max(blocks[block], logits[row, c]))


def _full_maximum(logits: Any, row: Any, start: Any) -> Any:
    best = T.Bind(load(logits, (row, start), LANES))
    for i in range(1, BLOCK // LANES):
        best = T.Bind(T.max(best, load(logits, (row, start + i * LANES), LANES)))
    return tree_reduce(best, LANES, T.max)


def _take_best(spec: SearchSpec, logits: Any, row: Any, blocks: Any) -> Any:
    """First column that holds the largest logit."""
    best, where = scratch((1,)), scratch((1,), "int64")
    put(best, (0,), blocks[0])
    put(where, (0,), T.int64(0))
    with T.serial(1, spec.blocks) as b, T.If(blocks[b] > best[0]), T.Then():
        put(best, (0,), blocks[b])
        put(where, (0,), T.Cast("int64", b))
    column = scratch((1,), "int64")
    put(column, (0,), where[0] * BLOCK)
    limit = T.int64(spec.vocabulary - 1)
    with T.While(T.And(column[0] < limit, logits[row, column[0]] < best[0])):
        put(column, (0,), column[0] + 1)
    return T.Bind(column[0])


def _maximum(spec: SearchSpec, blocks: Any) -> Any:
    """The largest of the block maxima."""
    best = scratch((1,))
    put(best, (0,), blocks[0])
    with T.serial(1, spec.blocks) as b:
        put(best, (0,), T.max(best[0], blocks[b]))
    return T.Bind(best[0])


def _log_sum(spec: SearchSpec, logits: Any, row: Any, top: Any) -> Any:
    """Log of the sum of exp(logit - top): lanes first, then the columns beyond the last whole vector."""
    whole = spec.vocabulary // LANES
    total, tail = scratch((LANES,)), scratch((1,))
    store(total, (0,), fsplat(0.0), LANES)
    wide = T.Bind(splat(top))
    with T.serial(0, whole) as i:
        term = vector_exp(load(logits, (row, i * LANES), LANES) - wide)
        store(total, (0,), load(total, (0,), LANES) + term, LANES)
    put(tail, (0,), tree_sum(load(total, (0,), LANES), LANES))
    with T.serial(whole * LANES, spec.vocabulary) as c:
        put(tail, (0,), tail[0] + first_lane(vector_exp(splat(logits[row, c] - top, 4), 4)))
    return T.Bind(first_lane(vector_log(splat(tail[0], 4), 4)))
