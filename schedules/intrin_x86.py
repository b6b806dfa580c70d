# SPDX-License-Identifier: Apache-2.0
"""The inner loop of the table product on each kernel ISA: look up tiles of keys, add per row.

A *tile* is 64 bytes of keys (16 rows x 32 columns of one plane, layout in ``packing.pack_keys``).
Each class accumulates tiles into int32[16] per row tile; all give the same integers.
"""

from __future__ import annotations

from typing import Any, Protocol

from targets.spec import vector_isa

from .packing import BLOCK_ROWS, MU, STEP_COLUMNS, TILE_ROWS
from .tir import T, as_type, isplat, load, pinned, put, scratch, shuffle, splat, store

TILES = BLOCK_ROWS // TILE_ROWS
GROUPS = STEP_COLUMNS // MU
HALF = GROUPS // 2


class TileSum(Protocol):
    """Accumulates table look-ups of row tiles over the steps of one chunk of columns."""

    def tiles(self, tokens: int, wanted: int) -> int:
        """Row tiles summed at once for ``tokens`` activations: a divisor of 4.

        ``wanted`` of 0 asks for as many as registers hold; emitters with one form only have that one.
        """
        ...

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        """Clears the accumulators of ``tokens`` activations x ``tiles`` row tiles, for ``steps`` steps."""
        ...

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        """Adds one step.

        Args:
            keys: the keys of a segment.
            where: [block, plane, step, first tile].
            tables: (buffer, row) per token.
            group: the step's first column group.
        """
        ...

    def total(self, token: int, tile: int) -> Any:
        """The sums of one row tile in row order: int32x16, or float32x16 where they are floats already."""
        ...


def tile_sum(isa: str) -> TileSum:
    """The accumulator of int8 tables for a kernel ISA of ``targets.TargetSpec``."""
    match vector_isa(isa):
        case "avx512_vbmi":
            return VbmiSum()
        case "avx2":
            return Avx2Sum()
        case "ssse3":
            return Ssse3Sum()
        case "neon":
            from .intrin_arm import NeonSum

            return NeonSum()
        case "portable":
            return PortableSum()
        case _:
            raise ValueError(f"no table kernel for {isa!r}; known: avx512_vbmi, avx2, ssse3, neon, portable")


class VbmiSum:
    """vpermb looks up 64 bytes in four tables at once, vpdpbusd adds each row's four bytes."""

    def tiles(self, tokens: int, wanted: int) -> int:
        return wanted or TILES

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._sums = [[scratch((TILE_ROWS,), "int32") for _ in range(tiles)] for _ in range(tokens)]
        for row in self._sums:
            for buffer in row:
                store(buffer, (0,), isplat(0), TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        *outer, first = where
        lanes = as_type(splat(T.uint32(0x30201000), TILE_ROWS), "uint8x64")
        nibble = splat(T.uint8(15), 64)
        ones = splat(T.uint8(1), 64)
        loaded = [
            [T.Bind(as_type(_four_tables(buffer, row, group + h * HALF), "uint8x64")) for h in range(2)]
            for buffer, row in tables
        ]
        for tile in range(len(self._sums[0])):
            packed = T.Bind(load(keys, [*outer, first + tile, 0], 64))
            shifted = as_type(T.shift_right(as_type(packed, "uint32x16"), splat(T.uint32(4), 16)), "uint8x64")
            for half, source in enumerate((packed, shifted)):
                index = T.Bind(T.bitwise_or(T.bitwise_and(source, nibble), lanes))
                for token, row in enumerate(self._sums):
                    values = T.call_llvm_pure_intrin(
                        "uint8x64", "llvm.x86.avx512.permvar.qi.512", loaded[token][half], index
                    )
                    added = T.call_llvm_pure_intrin(
                        "int32x16", "llvm.x86.avx512.vpdpbusd.512",
                        load(row[tile], (0,), TILE_ROWS), ones, as_type(values, "int8x64"),
                    )  # fmt: skip
                    store(row[tile], (0,), added, TILE_ROWS)

    def total(self, token: int, tile: int) -> Any:
        return load(self._sums[token][tile], (0,), TILE_ROWS)


def _four_tables(buffer: Any, row: Any, group: Any) -> Any:
    """64 bytes: the tables of four consecutive column groups."""
    return buffer.vload([row, group, 0], "int8x64")


class PairSums:
    """16-bit lanes that add unsigned bytes of two rows: ``even + 256 * odd``, and ``odd`` apart.

    Table entries are biased to unsigned bytes (+128). ``even = pair - 256 * odd`` modulo 2^16; a chunk
    adds at most 32 bytes to a lane (32 * 255 < 2^16); the bias leaves at the end.
    """

    def __init__(self, tokens: int, tiles: int) -> None:
        self._pairs, self._odds = (
            [[scratch((8,), "uint16") for _ in range(tiles)] for _ in range(tokens)] for _ in range(2)
        )
        for buffer in (b for kind in (self._pairs, self._odds) for row in kind for b in row):
            store(buffer, (0,), T.broadcast(T.uint16(0), 8), 8)

    def add(self, token: int, tile: int, found: Any) -> None:
        """Adds 16 bytes."""
        values = T.Bind(as_type(found, "uint16x8"))
        pairs, odds = self._pairs[token][tile], self._odds[token][tile]
        store(pairs, (0,), load(pairs, (0,), 8) + values, 8)
        high = T.shift_right(values, T.broadcast(T.uint16(8), 8))
        store(odds, (0,), load(odds, (0,), 8) + high, 8)

    def rows(self, token: int, tile: int, bias: int) -> list[Any]:
        """Two int32x8: the sums of even and of odd bytes, without the bias."""
        pairs, odds = (T.Bind(load(kind[token][tile], (0,), 8)) for kind in (self._pairs, self._odds))
        even = T.Bind(pairs - T.shift_left(odds, T.broadcast(T.uint16(8), 8)))
        return [T.Bind(isplat(-bias, 8) + T.Cast("int32x8", part)) for part in (even, odds)]


def _nibbles(packed: Any, lanes: int) -> tuple[Any, Any]:
    """Low and high nibbles of ``lanes`` bytes: table indices of groups g and g + 4."""
    nibble = splat(T.uint8(15), lanes)
    words = as_type(packed, f"uint16x{lanes // 2}")
    high = as_type(T.shift_right(words, splat(T.uint16(4), lanes // 2)), f"uint8x{lanes}")
    return T.Bind(T.bitwise_and(packed, nibble)), T.Bind(T.bitwise_and(high, nibble))


def _biased(buffer: Any, row: Any, group: Any, lanes: int) -> Any:
    """``lanes`` table bytes from a column group on, as unsigned bytes."""
    signed = as_type(load(buffer, (row, group, 0), lanes), f"uint8x{lanes}")
    return T.Bind(T.bitwise_xor(signed, splat(T.uint8(128), lanes)))


BYTES_BY_GROUP = (0x0C080400, 0x0D090501, 0x0E0A0602, 0x0F0B0703)
"""pshufb control: sorts four rows' dwords into one dword per column group."""


class Avx2Sum:
    """vpshufb looks up one table for two row tiles; vpmaddubsw adds the low and the high nibble's entries.

    Row tiles go in pairs: what is unpacked from both halves of a register is then one tile each, and no
    register lane is crossed until the end. Sums are 16-bit: a chunk adds at most 32 entries of 7 bits.
    """

    def tiles(self, tokens: int, wanted: int) -> int:
        return max(2, wanted) if wanted else max(2, TILES // tokens)

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._tokens, self._tiles = tokens, tiles
        self._sums = [[scratch((TILE_ROWS,), "int16") for _ in range(tiles)] for _ in range(tokens)]
        for buffer in (b for row in self._sums for b in row):
            store(buffer, (0,), T.broadcast(T.int16(-SUM_BIAS), TILE_ROWS), TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        *outer, first = where
        pairs = [
            [_nibbles(packed, 32) for packed in self._gather_groups(keys, outer, first + tile)]
            for tile in range(0, self._tiles, 2)
        ]
        for g in range(HALF):
            for token, (buffer, row) in enumerate(tables):
                twice = [_twice(buffer, row, group + half * HALF + g) for half in range(2)]
                for pair, by_group in enumerate(pairs):
                    found = [
                        T.Bind(T.call_llvm_pure_intrin("uint8x32", "llvm.x86.avx2.pshuf.b", table, index))
                        for table, index in zip(twice, by_group[g], strict=True)
                    ]
                    for side in range(2):
                        self._add(token, 2 * pair + side, shuffle(found, UNPACKED[side]))

    def _add(self, token: int, tile: int, entries: Any) -> None:
        """Adds 16 pairs of neighbours."""
        ones = splat(T.uint8(1), 32)
        signed = as_type(entries, "int8x32")
        added = T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", ones, signed)
        buffer = self._sums[token][tile]
        store(buffer, (0,), load(buffer, (0,), TILE_ROWS) + added, TILE_ROWS)

    def _gather_groups(self, keys: Any, outer: list[Any], tile: Any) -> list[Any]:
        """Four uint8x32, one column group of two row tiles each.

        A register lane holds rows 0-3 and 8-11 (the other 4-7, 12-15) of the first tile, then of the second.
        """
        order = as_type(shuffle([T.uint32(v) for v in BYTES_BY_GROUP * 2], range(8)), "uint8x32")
        halves = []
        for t in range(2):
            for h in range(2):
                raw = load(keys, [*outer, tile + t, h * 32], 32)
                sorted_lane = T.call_llvm_pure_intrin("uint8x32", "llvm.x86.avx2.pshuf.b", raw, order)
                # LLVM would undo the sort in the shuffles that follow.
                halves.append(pinned(sorted_lane, "int32x8"))
        groups = []
        for low in (0, 2):
            lanes = [low, low + 8, low + 1, low + 9, low + 4, low + 12, low + 5, low + 13]
            one, two = (
                T.Bind(as_type(shuffle(halves[2 * t : 2 * t + 2], lanes), "int64x4")) for t in range(2)
            )
            groups += [shuffle([one, two], lanes) for lanes in ((0, 4, 2, 6), (1, 5, 3, 7))]
        return [T.Bind(as_type(packed, "uint8x32")) for packed in groups]

    def total(self, token: int, tile: int) -> Any:
        """float32x16: 0x4B00 above 16 bits u is 2^23 + u; unpacking puts the rows in order on the way."""
        sums = T.Bind(as_type(load(self._sums[token][tile], (0,), TILE_ROWS), "uint16x16"))
        top = T.Bind(splat(T.uint16(0x4B00), TILE_ROWS))
        halves = []
        for side in range(2):
            lanes = [4 * side + 8 * high + word for high in range(2) for word in range(4)]
            both = [lane + 16 * source for lane in lanes for source in range(2)]
            halves.append(T.Bind(as_type(shuffle([sums, top], both), "float32x8")))
        return shuffle(halves, range(16)) - splat(T.float32(2**23 + SUM_BIAS), 16)


SUM_BIAS = 1 << 15
"""Where 16-bit sums begin (modulo 2^16), so that as unsigned numbers they are in order."""
UNPACKED = tuple(
    [8 * side + lane + 32 * source for lane in (*range(8), *range(16, 24)) for source in range(2)]
    for side in range(2)
)
"""Lanes of vpunpcklbw and vpunpckhbw of two uint8x32."""


def _twice(buffer: Any, row: Any, group: Any) -> Any:
    """uint8x32: the table of a column group in both register lanes."""
    table = T.Bind(as_type(load(buffer, (row, group, 0), 16), "uint8x16"))
    return T.Bind(shuffle([table, table], range(32)))


class Ssse3Sum:
    """pshufb looks up one table for 16 rows."""

    def tiles(self, tokens: int, wanted: int) -> int:
        return wanted or max(1, TILES // 2 // tokens)

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._tokens, self._tiles, self._steps = tokens, tiles, steps
        self._sums = PairSums(tokens, tiles)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        *outer, first = where
        by_group = [self._gather_groups(keys, [*outer, first + tile]) for tile in range(self._tiles)]
        for g in range(HALF):
            indices = [_nibbles(groups[g], 16) for groups in by_group]
            for half in range(2):
                for token, (buffer, row) in enumerate(tables):
                    table = _biased(buffer, row, group + half * HALF + g, 16)
                    for tile in range(self._tiles):
                        found = T.call_llvm_pure_intrin(
                            "uint8x16", "llvm.x86.ssse3.pshuf.b.128", table, indices[tile][half]
                        )
                        self._sums.add(token, tile, found)

    def _gather_groups(self, keys: Any, tile: list[Any]) -> list[Any]:
        """Four uint8x16: one column group each, rows in order."""
        order = as_type(shuffle([T.uint32(v) for v in BYTES_BY_GROUP], range(4)), "uint8x16")
        quads = []
        for q in range(4):
            raw = load(keys, [*tile, q * 16], 16)
            sorted_rows = T.call_llvm_pure_intrin("uint8x16", "llvm.x86.ssse3.pshuf.b.128", raw, order)
            quads.append(T.Bind(as_type(sorted_rows, "int32x4")))
        pairs = [
            T.Bind(shuffle([quads[q], quads[q + 1]], [2 * h, 2 * h + 4, 2 * h + 1, 2 * h + 5]))
            for q in (0, 2)
            for h in range(2)
        ]
        return [
            T.Bind(as_type(shuffle([pairs[h], pairs[2 + h]], lanes), "uint8x16"))
            for h in range(2)
            for lanes in ((0, 1, 4, 5), (2, 3, 6, 7))
        ]

    def total(self, token: int, tile: int) -> Any:
        wide = self._sums.rows(token, tile, 128 * GROUPS * self._steps)
        return shuffle(wide, [row // 2 + 8 * (row % 2) for row in range(TILE_ROWS)])


class PortableSum:
    """Plain scalar look-ups, one row after the other: any CPU."""

    def tiles(self, tokens: int, wanted: int) -> int:
        return TILES

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._sums = [scratch((BLOCK_ROWS,), "int32") for _ in range(tokens)]
        for buffer in self._sums:
            for tile in range(tiles):
                store(buffer, (tile * TILE_ROWS,), isplat(0), TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        # 64 rows in one loop: too long to unroll, or compiling takes seconds and the code kilobytes.
        with T.serial(0, BLOCK_ROWS) as r:
            dword = T.Bind(row_keys(keys, where, r))
            for g in range(HALF):
                for half in range(2):
                    shifted = T.shift_right(dword, T.uint32(8 * g + 4 * half))
                    key = T.Bind(T.Cast("int64", T.bitwise_and(shifted, T.uint32(15))))
                    for token, (buffer, row) in enumerate(tables):
                        found = T.Cast("int32", buffer[row, group + half * HALF + g, key])
                        put(self._sums[token], (r,), self._sums[token][r] + found)

    def total(self, token: int, tile: int) -> Any:
        return load(self._sums[token], (tile * TILE_ROWS,), TILE_ROWS)


def row_keys(keys: Any, where: list[Any], row: Any) -> Any:
    """uint32: the eight keys of one of 64 rows; byte g holds the keys of groups g and g + 4."""
    *outer, first = where
    tile, lane = first + T.floordiv(row, TILE_ROWS), T.floormod(row, TILE_ROWS)
    return as_type(load(keys, [*outer, tile, lane * 4], 4), "uint32")
