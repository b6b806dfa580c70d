# SPDX-License-Identifier: Apache-2.0
"""Embedding lookup from packed storage: words of different bit widths, or FP32 rows.

Meaning: ``y[r] = factor * dequantize(W)[ids[r]]``. ``rank`` maps a word id to its storage row (words are
stored by frequency, in segments of equal bits).
Out-of-range ids read row 0: callers check ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .outlier_loops import each_outlier
from .outliers import tile_rows
from .packing import BLOCK_ROWS, STEP_COLUMNS, TILE_ROWS, ColumnLayout, row_blocks
from .segment import Segment, SegmentBuffers, pow2_factor, segment_params
from .tir import KernelBuilder, T, as_type, body, put, times


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherSpec:
    """Words, width, the row segments (empty for FP32), rank dtype ("" for none) and a constant factor.

    ``packed`` tells whether an FP32 table is stored as ``float_gemm.pack`` or as plain rows.
    """

    words: int
    width: int
    segments: tuple[Segment, ...]
    rank_dtype: str = ""
    factor: float = 1.0
    packed: bool = True


def gather(spec: GatherSpec, name: str = "gather") -> Any:
    """PrimFunc (ids[m], [rank[words]], the buffers of each segment or the FP32 table, y[m, width])."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        ids = kernel.param("ids", (m,), "int32")
        rank = kernel.param("rank", (spec.words,), spec.rank_dtype) if spec.rank_dtype else None
        tables = [segment_params(kernel, s, spec.width, i, s.bits) for i, s in enumerate(spec.segments)]
        floats = [] if tables else [_declare_float(kernel, spec)]
        y = kernel.param("y", (m, spec.width))
        reads = [ids, *([] if rank is None else [rank]), *floats, *(b for t in tables for b in t.present())]
        with body([y], reads), T.serial(0, m) as row:
            word = T.Bind(T.Cast("int64", ids[row]))
            safe = T.Bind(T.if_then_else(T.And(word >= 0, word < spec.words), word, T.int64(0)))
            place = safe if rank is None else T.Bind(T.Cast("int64", rank[safe]))
            for table in floats:
                _float_row(spec, table, y, row, place)
            for segment, table in zip(spec.segments, tables, strict=True):
                start, stop = segment.start, segment.start + segment.rows
                with T.If(T.And(place >= start, place < stop)), T.Then():
                    _segment_row(spec, segment, table, y, row, place - start)
    return kernel.result


def _declare_float(kernel: KernelBuilder, spec: GatherSpec) -> Any:
    packed = (row_blocks(spec.words), spec.width, BLOCK_ROWS)
    return kernel.param("table", packed if spec.packed else (spec.words, spec.width))


def _float_row(spec: GatherSpec, table: Any, y: Any, row: Any, place: Any) -> None:
    if not spec.packed:
        with T.serial(0, spec.width) as c:
            put(y, (row, c), table[place, c] * T.float32(spec.factor))
        return
    block, lane = T.Bind(T.floordiv(place, BLOCK_ROWS)), T.Bind(T.floormod(place, BLOCK_ROWS))
    with T.serial(0, spec.width) as c:
        put(y, (row, c), table[block, c, lane] * T.float32(spec.factor))


def _segment_row(
    spec: GatherSpec, segment: Segment, table: SegmentBuffers, y: Any, row: Any, place: Any
) -> None:
    """Dequantizes one storage row column by column: sum of +-alpha over the planes, plus the offset."""
    layout = ColumnLayout(k=spec.width, group_size=segment.group_size)
    block = T.Bind(T.floordiv(place, BLOCK_ROWS))
    lane = T.Bind(T.floormod(place, BLOCK_ROWS))
    tile, tile_row = T.Bind(T.floordiv(lane, TILE_ROWS)), T.Bind(T.floormod(lane, TILE_ROWS))
    with T.serial(0, layout.groups) as g, T.serial(0, segment.group_size) as c:
        padded = T.Bind(g * layout.padded_group + c)
        step, within = T.floordiv(padded, STEP_COLUMNS), T.Bind(T.floormod(padded, STEP_COLUMNS))
        half, pair = T.floordiv(within, 16), T.floordiv(T.floormod(within, 16), 4)
        shift = T.Bind(T.Cast("int32", half * 4 + T.floormod(within, 4)))
        total: Any = T.float32(0)
        power = None if table.exponents is None else T.Bind(pow2_factor(table.exponents[block, g, lane], 1))
        for plane in range(segment.bits):
            byte = T.Cast("int32", table.keys[block, plane, step, tile, tile_row * 4 + pair])
            clear = T.bitwise_and(T.shift_right(T.bitwise_not(byte), shift), 1)
            alpha = as_type(_float32(table.scales[block, plane, g, lane], power), "int32")
            total = total + as_type(T.bitwise_xor(alpha, T.shift_left(clear, T.int32(31))), "float32")
        if table.offsets is not None:
            total = total + _float32(table.offsets[block, g, lane], power)
        put(y, (row, g * segment.group_size + c), total * T.float32(spec.factor))
    if segment.outliers:
        _add_outliers(spec, table, y, row, T.Bind(T.Cast("int32", place)))


def _add_outliers(spec: GatherSpec, table: SegmentBuffers, y: Any, row: Any, place: Any) -> None:
    """The row's own entries among those of its tile."""
    rows = tile_rows(spec.width)
    tile, wanted = T.floordiv(place, T.int32(rows)), T.floormod(place, T.int32(rows))
    with each_outlier(table, tile, spec.width) as (r, column, value), T.If(r == wanted), T.Then():
        put(y, (row, column), y[row, column] + times(value, T.float32(spec.factor), 1))


def _float32(value: Any, power: Any | None) -> Any:
    """A scale or offset, times its power of two where it has one (exactly)."""
    wide = T.Cast("float32", value)
    return wide if power is None else times(wide, power, 1)
