# SPDX-License-Identifier: Apache-2.0
"""The inner loop of the table product on each kernel ISA: look up one tile of keys, add per row.

A *tile* is 64 bytes of keys (16 rows x 32 columns of one plane, layout in ``packing.pack_keys``).
Each class accumulates tiles into int32[16] per row tile; all give the same integers.
"""

from __future__ import annotations

from typing import Any, Protocol

from .packing import MU, STEP_COLUMNS, TILE_ROWS
from .tir import T, as_type, isplat, load, put, scratch, shuffle, splat, store

GROUPS = STEP_COLUMNS // MU
HALF = GROUPS // 2


class TileSum(Protocol):
    """Accumulates table look-ups of row tiles over the steps of one chunk of columns."""

    def begin(self, tokens: int, tiles: int) -> None:
        """Clears the accumulators of ``tokens`` activations x ``tiles`` row tiles."""
        ...

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        """Adds one step. ``keys`` at ``where`` holds tile 0; ``tables`` are (buffer, row) per token."""
        ...

    def integers(self, token: int, tile: int) -> Any:
        """int32x16: the sums of one row tile in row order."""
        ...


def tile_sum(isa: str) -> TileSum:
    """The accumulator for a kernel ISA of ``targets.TargetSpec``."""
    match isa:
        case "avx512_vbmi":
            return VbmiSum()
        case "avx2":
            return Avx2Sum()
        case "portable":
            return PortableSum()
        case _:
            raise ValueError(f"no table kernel for {isa!r}; known: avx512_vbmi, avx2, portable")


class VbmiSum:
    """vpermb looks up 64 bytes in four tables at once, vpdpbusd adds each row's four bytes."""

    def begin(self, tokens: int, tiles: int) -> None:
        self._sums = [[scratch((TILE_ROWS,), "int32") for _ in range(tiles)] for _ in range(tokens)]
        for row in self._sums:
            for buffer in row:
                store(buffer, (0,), isplat(0), TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        lanes = as_type(splat(T.uint32(0x30201000), TILE_ROWS), "uint8x64")
        nibble = splat(T.uint8(15), 64)
        ones = splat(T.uint8(1), 64)
        loaded = [
            [T.Bind(as_type(_four_tables(buffer, row, group + h * HALF), "uint8x64")) for h in range(2)]
            for buffer, row in tables
        ]
        for tile in range(len(self._sums[0])):
            packed = T.Bind(load(keys, [*where, tile, 0], 64))
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

    def integers(self, token: int, tile: int) -> Any:
        return load(self._sums[token][tile], (0,), TILE_ROWS)


def _four_tables(buffer: Any, row: Any, group: Any) -> Any:
    """64 bytes: the tables of four consecutive column groups."""
    return buffer.vload([row, group, 0], "int8x64")


class Avx2Sum:
    """pshufb looks up two tables per 32 bytes; bytes are added as 16-bit pairs and split at the end.

    Entries are biased to unsigned bytes (+128), so that a 16-bit lane holds ``even + 256 * odd`` of two
    rows; ``odd`` is also summed apart, and ``even = pair - 256 * odd`` modulo 2^16. A chunk adds at most
    16 bytes to a lane (16 * 255 < 2^16); the bias leaves at the end.
    """

    _MERGED_ROWS = (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15)

    def begin(self, tokens: int, tiles: int) -> None:
        self._steps = 0
        self._pairs = [[scratch((16,), "uint16") for _ in range(tiles)] for _ in range(tokens)]
        self._odds = [[scratch((16,), "uint16") for _ in range(tiles)] for _ in range(tokens)]
        for kind in (self._pairs, self._odds):
            for row in kind:
                for buffer in row:
                    store(buffer, (0,), T.broadcast(T.uint16(0), 16), 16)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        nibble, bias = splat(T.uint8(15), 32), splat(T.uint8(128), 32)
        self._steps += 1
        loaded = {
            (token, pair, half): T.Bind(
                T.bitwise_xor(
                    as_type(load(buffer, (row, group + half * HALF + 2 * pair, 0), 32), "uint8x32"), bias
                )
            )
            for token, (buffer, row) in enumerate(tables)
            for pair in range(2)
            for half in range(2)
        }
        for tile in range(len(self._pairs[0])):
            by_group = self._gather_groups(keys, where, tile)
            for pair, packed in enumerate(by_group):
                high = as_type(T.shift_right(as_type(packed, "uint16x16"), splat(T.uint16(4), 16)), "uint8x32")
                for half, source in enumerate((packed, high)):
                    index = T.Bind(T.bitwise_and(source, nibble))
                    for token in range(len(tables)):
                        two = loaded[token, pair, half]
                        found = T.call_llvm_pure_intrin("uint8x32", "llvm.x86.avx2.pshuf.b", two, index)
                        self._add(token, tile, T.Bind(as_type(found, "uint16x16")))

    def _gather_groups(self, keys: Any, where: list[Any], tile: int) -> list[Any]:
        """Two uint8x32: [group 0 of 16 rows | group 1], [group 2 | group 3], rows as _MERGED_ROWS."""
        order = shuffle([T.uint32(v) for v in (0x0C080400, 0x0D090501, 0x0E0A0602, 0x0F0B0703) * 2], range(8))
        order = as_type(order, "uint8x32")
        halves = []
        for h in range(2):
            raw = load(keys, [*where, tile, h * 32], 32)
            sorted_lane = T.call_llvm_pure_intrin("uint8x32", "llvm.x86.avx2.pshuf.b", raw, order)
            halves.append(T.Bind(as_type(sorted_lane, "int32x8")))
        # Lane layout of a half: dwords g0 g1 g2 g3 of 4 rows each, twice.
        low = shuffle(halves, [0, 8, 4, 12, 1, 9, 5, 13])
        high = shuffle(halves, [2, 10, 6, 14, 3, 11, 7, 15])
        return [T.Bind(as_type(low, "uint8x32")), T.Bind(as_type(high, "uint8x32"))]

    def _add(self, token: int, tile: int, values: Any) -> None:
        pairs, odds = self._pairs[token][tile], self._odds[token][tile]
        store(pairs, (0,), load(pairs, (0,), 16) + values, 16)
        store(odds, (0,), load(odds, (0,), 16) + T.shift_right(values, T.broadcast(T.uint16(8), 16)), 16)

    def integers(self, token: int, tile: int) -> Any:
        pairs, odds = (T.Bind(load(kind[token][tile], (0,), 16)) for kind in (self._pairs, self._odds))
        even = T.Bind(pairs - T.shift_left(odds, T.broadcast(T.uint16(8), 16)))
        wide = []
        for part in (even, odds):
            halves = [T.Cast("int32x8", shuffle([part], range(h * 8, h * 8 + 8))) for h in range(2)]
            wide.append(T.Bind(halves[0] + halves[1] - splat(T.int32(128 * GROUPS * self._steps), 8)))
        # Lane i of ``wide[p]`` is merged position 2 i + p; find every row's position.
        position = {row: place for place, row in enumerate(self._MERGED_ROWS)}
        lanes = [position[row] // 2 + 8 * (position[row] % 2) for row in range(TILE_ROWS)]
        return shuffle(wide, lanes)


class PortableSum:
    """Plain scalar look-ups: any CPU."""

    def begin(self, tokens: int, tiles: int) -> None:
        self._sums = [[scratch((TILE_ROWS,), "int32") for _ in range(tiles)] for _ in range(tokens)]
        for row in self._sums:
            for buffer in row:
                store(buffer, (0,), isplat(0), TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        for tile in range(len(self._sums[0])):
            with T.serial(0, TILE_ROWS) as r:
                packed = [T.Bind(T.Cast("int32", keys[(*where, tile, r * HALF + g)])) for g in range(HALF)]
                for token, (buffer, row) in enumerate(tables):
                    total = self._sums[token][tile][r]
                    for g, byte in enumerate(packed):
                        low = buffer[row, group + g, T.bitwise_and(byte, 15)]
                        high = buffer[row, group + HALF + g, T.shift_right(byte, T.int32(4))]
                        total = total + T.Cast("int32", low) + T.Cast("int32", high)
                    put(self._sums[token][tile], (r,), total)

    def integers(self, token: int, tile: int) -> Any:
        return load(self._sums[token][tile], (0,), TILE_ROWS)
