# SPDX-License-Identifier: Apache-2.0
"""Loops over stored outliers: what products and gathers add to what the planes give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .outliers import row_tiles, tile_rows
from .packing import BLOCK_ROWS
from .segment import Segment, SegmentBuffers
from .tir import LANES, T, fsplat, half_to_float, load, put, scratch, store, times


@contextmanager
def each_outlier(
    buffers: SegmentBuffers, tile: Any, k: int, *, f16c: bool = False
) -> Iterator[tuple[Any, Any, Any]]:
    """A loop over the entries of one tile of rows, in their order: row within it, column, float32 value.

    Neither loop nor row leaves its bounds, whatever the arrays hold. ``f16c``: the CPU converts halves.
    """
    count = T.Cast("int32", buffers.places.shape[0])
    first, last = (
        T.Bind(T.max(T.min(buffers.starts[edge], count), T.int32(0))) for edge in (tile, tile + 1)
    )
    with T.serial(0, T.max(last - first, T.int32(0))) as i:
        place = T.Bind(T.Cast("int32", buffers.places[first + i]))
        half = buffers.values[first + i]
        value = T.Bind(T.Cast("float32", half) if f16c else half_to_float(half, 1))
        row = T.Bind(T.min(T.floordiv(place, T.int32(k)), T.int32(tile_rows(k) - 1)))
        yield row, T.Bind(T.floormod(place, T.int32(k))), value


def add_sparse_product(
    segment: Segment,
    buffers: SegmentBuffers,
    k: int,
    block: Any,
    x: Any,
    row: Any,
    acc: list[Any],
    *,
    f16c: bool,
) -> None:
    """Adds S x for one block of 64 rows to the accumulators of ``len(acc)`` tokens from ``row`` on.

    The sums run in buffers of their own, so that the accumulators can stay in registers.
    """
    sums = [scratch((BLOCK_ROWS,)) for _ in acc]
    for token in sums:
        for lane in range(0, BLOCK_ROWS, LANES):
            store(token, (lane,), fsplat(0.0), LANES)
    rows = tile_rows(k)
    per_block = BLOCK_ROWS // rows
    first = T.Bind(block * per_block)
    count = T.min(T.int64(per_block), T.int64(row_tiles(segment.rows, k)) - first)
    with T.serial(0, count) as tile, each_outlier(buffers, first + tile, k, f16c=f16c) as entry:
        within, column, value = entry
        place = T.Bind(T.Cast("int32", tile) * T.int32(rows) + within)
        for t, token in enumerate(sums):
            put(token, (place,), token[place] + times(value, x[row + t, column], 1))
    for into, token in zip(acc, sums, strict=True):
        for lane in range(0, BLOCK_ROWS, LANES):
            store(into, (lane,), load(into, (lane,), LANES) + load(token, (lane,), LANES), LANES)
