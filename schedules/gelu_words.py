# SPDX-License-Identifier: Apache-2.0
"""GELU of integer rows on AVX-512 with VBMI and VNNI, 64 columns at a time, equal to ``integer_tables.gelu``.

Segments are looked up in bytes and interpolated in 16 bits, two columns a lane: a third of the instructions
of 32-bit lanes. That holds for inputs below 16 in magnitude; a row with larger ones (or one that a move to
Q16 would limit) is found out at its end and computed again in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .block_format import magnitude
from .integer_tables import GELU_SEGMENT, SEGMENTS
from .intrin_expand_x86 import constant_bytes
from .lut_table import tree_reduce
from .rounding_shift import MOVED_LIMIT, clamp_shift, psrav, rounding_half
from .tir import LANES, T, as_type, isplat, load, put, scratch, splat, store

VECTORS = 4
COLUMNS = VECTORS * LANES
"""Columns that are computed together."""
_RANGE_BITS = GELU_SEGMENT + 8
"""Magnitudes below 2**20 in Q16: the number of their segment is one byte."""
_STEP_UP = 16 - GELU_SEGMENT
"""Steps are kept shifted up, so that the high half of a 16-bit product is the interpolation."""
_LIMIT_BITS = MOVED_LIMIT.bit_length()
_VALUE, _STEP = 0, 2


class GeluWords:
    """GELU of a row from ``table``, int32[64] of ``integer_tables``."""

    def __init__(self, table: Any) -> None:
        self._bytes = scratch((4, SEGMENTS), "uint8")
        for first in range(0, SEGMENTS, LANES):
            entry = T.Bind(load(table, (first,), LANES))
            step = T.Bind(T.shift_left(entry, isplat(_STEP_UP)))
            parts = (T.shift_right(entry, isplat(16)), T.shift_right(entry, isplat(24)))
            for row, part in enumerate((*parts, step, T.shift_right(step, isplat(8)))):
                store(self._bytes, (row, first), T.Cast("uint8x16", part), LANES)

    def row(self, source: Callable[[Any], Any], out: Any, columns: int, shift: Any) -> Any:
        """GELU of ``source(column)``, int32x16 moved by ``shift`` (see ``move``), to ``out`` int32[columns].

        Returns:
            a condition: whether the results are valid.
        """
        seen, limit = scratch((LANES,), "int32"), scratch((1,), "uint32")
        store(seen, (0,), isplat(0), LANES)
        down, up = T.Bind(clamp_shift(shift)), T.Bind(clamp_shift(T.int32(0) - shift))
        with T.If(shift >= 0):
            with T.Then():
                # What the move limits, 2**30 and more, is at least 2**(30 - shift) after the shift.
                self._limit(limit, T.min(T.int32(_RANGE_BITS), T.int32(_LIMIT_BITS) - down))
                wide = T.Bind(splat(down))
                half = T.Bind(rounding_half(wide, LANES))
                self._loop(lambda c: psrav(source(c) + half, wide), None, out, columns, seen)
            with T.Else():
                self._limit(limit, T.int32(_RANGE_BITS) - up)
                wide_up = T.Bind(splat(up))
                self._loop(lambda c: T.shift_left(source(c), wide_up), source, out, columns, seen)
        largest = tree_reduce(load(seen, (0,), LANES), LANES, T.bitwise_or)
        return T.Bind(as_type(T.Bind(largest), "uint32")) < limit[0]

    def _limit(self, limit: Any, bits: Any) -> None:
        put(limit, (0,), T.shift_left(T.uint32(1), T.Cast("uint32", T.max(bits, T.int32(0)))))

    def _loop(self, moved: Any, checked: Any, out: Any, columns: int, seen: Any) -> None:
        """GELU of all columns; ORs the magnitudes of ``checked`` (or of what was moved) into ``seen``."""
        tables = [T.Bind(load(self._bytes, (row, 0), SEGMENTS)) for row in range(4)]
        with T.serial(0, columns // COLUMNS) as i:
            places = [T.Bind(i * COLUMNS + v * LANES) for v in range(VECTORS)]
            x = [T.Bind(moved(c)) for c in places]
            sizes = [T.Bind(magnitude(value)) for value in x]
            magnitudes = sizes if checked is None else [magnitude(T.Bind(checked(c))) for c in places]
            total = load(seen, (0,), LANES)
            for size in magnitudes:
                total = T.bitwise_or(total, size)
            store(seen, (0,), total, LANES)
            for v in range(0, VECTORS, 2):
                bumps = T.Bind(_bumps(tables, sizes[v], sizes[v + 1]))
                for half, minus_one in enumerate((0x0000FFFF, -0x10000)):
                    positive = T.max(x[v + half], isplat(0))
                    value = _dpwssd(positive, bumps, isplat(minus_one))
                    store(out, (places[v + half],), value, LANES)


def _bumps(tables: list[Any], even: Any, odd: Any) -> Any:
    """int32x16 of two 16-bit bumps each, from the magnitudes of two vectors below 2**20."""
    segments = T.Bind(_in_halves(_segments(even), _segments(odd)))
    rest = T.bitwise_and(_in_halves(even, T.shift_left(odd, isplat(16))), isplat(0x0FFF0FFF))
    value, step = (_look_up(tables[row], tables[row + 1], segments) for row in (_VALUE, _STEP))
    rise = T.call_llvm_pure_intrin(
        "int16x32", "llvm.x86.avx512.pmulh.w.512", as_type(step, "int16x32"), as_type(rest, "int16x32")
    )
    words = T.Bind(as_type(value, "int16x32") + rise)
    # Both bytes of a word hold the segment; there is no bump beyond the last.
    inside = as_type(segments, "uint16x32") < splat(T.uint16(SEGMENTS << 8), 2 * LANES)
    return as_type(T.Select(inside, words, splat(T.int16(0), 2 * LANES)), "int32x16")


def _segments(size: Any) -> Any:
    """Bits 12 to 19 of every lane in all of its four bytes."""
    window = [GELU_SEGMENT] * 4 + [32 + GELU_SEGMENT] * 4
    control = constant_bytes(window * 8)
    spread = T.call_llvm_pure_intrin(
        "uint8x64", "llvm.x86.avx512.pmultishift.qb.512", control, as_type(size, "uint8x64")
    )
    return T.Bind(as_type(spread, "int32x16"))


def _in_halves(low: Any, high: Any) -> Any:
    """The low halves of one vector's lanes and the high halves of another's."""
    return T.bitwise_or(T.bitwise_and(low, isplat(0xFFFF)), T.bitwise_and(high, isplat(-0x10000)))


def _look_up(low: Any, high: Any, segments: Any) -> Any:
    """16-bit entries, whose bytes lie in two tables, for the segments in both bytes of a word."""
    index = as_type(segments, "uint8x64")
    found = [
        T.Bind(
            as_type(
                T.call_llvm_pure_intrin("uint8x64", "llvm.x86.avx512.permvar.qi.512", t, index), "int32x16"
            )
        )
        for t in (low, high)
    ]
    return T.bitwise_or(
        T.bitwise_and(found[0], isplat(0x00FF00FF)), T.bitwise_and(found[1], isplat(-0x00FF0100))
    )


def _dpwssd(sums: Any, a: Any, b: Any) -> Any:
    """``sums`` plus the products of both 16-bit halves."""
    return T.call_llvm_pure_intrin(
        "int32x16", "llvm.x86.avx512.vpdpwssd.512", sums, as_type(a, "int16x32"), as_type(b, "int16x32")
    )


__all__ = ["COLUMNS", "GeluWords"]
