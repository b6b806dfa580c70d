# SPDX-License-Identifier: Apache-2.0
"""The inner loop with FP32 tables (BiQGEMM without activation quantization).

A dword of a key tile is one row's eight keys. Every class adds a row's entries in ascending column
groups into one float, so that all ISA levels give the same bits.
"""

from __future__ import annotations

from typing import Any

from targets.spec import vector_isa

from .intrin_x86 import TILES, TileSum, row_keys
from .packing import BLOCK_ROWS, TILE_ROWS
from .tir import T, as_type, fsplat, isplat, load, put, scratch, shuffle, store

NIBBLE_OF_GROUP = (0, 2, 4, 6, 1, 3, 5, 7)
"""Position of a column group's key within a row's dword (low nibbles hold groups 0..3)."""


def exact_sum(isa: str) -> TileSum:
    """The accumulator of FP32 tables for a kernel ISA of ``targets.TargetSpec``."""
    match vector_isa(isa):
        case "avx512_vbmi":
            return Avx512Exact()
        case "avx2":
            return Avx2Exact()
        case "neon":
            from .intrin_arm import NeonExact

            return NeonExact()
        case "ssse3" | "portable":
            return ScalarExact()
        case _:
            raise ValueError(f"no table kernel for {isa!r}; known: avx512_vbmi, avx2, ssse3, neon, portable")


class Avx512Exact:
    """vpermps reads the low four bits of an index dword: one shift looks up a group for 16 rows."""

    def tiles(self, tokens: int) -> int:
        return TILES

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._sums = _cleared(tokens, tiles, TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        *outer, first = where
        dwords = [
            T.Bind(as_type(load(keys, [*outer, first + tile, 0], 64), "int32x16"))
            for tile in range(len(self._sums[0]))
        ]
        for g, nibble in enumerate(NIBBLE_OF_GROUP):
            entries = [T.Bind(load(buffer, (row, group + g, 0), 16)) for buffer, row in tables]
            for tile, keys_of_rows in enumerate(dwords):
                index = T.Bind(T.shift_right(keys_of_rows, isplat(4 * nibble)))
                for token, table in enumerate(entries):
                    found = T.call_llvm_pure_intrin(
                        "float32x16", "llvm.x86.avx512.permvar.sf.512", table, index
                    )
                    _add(self._sums[token][tile], found, TILE_ROWS)

    def total(self, token: int, tile: int) -> Any:
        return load(self._sums[token][tile], (0,), TILE_ROWS)


class Avx2Exact:
    """vpermps reads 8 entries: the entry of key 15 - j is minus that of key j, so half a table is enough."""

    _HALF = 8

    def tiles(self, tokens: int) -> int:
        return max(1, TILES // tokens)

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._sums = _cleared(tokens, 2 * tiles, self._HALF)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        *outer, first = where
        for part in range(len(self._sums[0])):
            raw = load(keys, [*outer, first + part // 2, part % 2 * 32], 32)
            dwords = T.Bind(as_type(raw, "int32x8"))
            # Keys above 7 (bit 3) turn into 15 - key: their low three bits flip, all nibbles at once.
            tops = T.Bind(T.bitwise_and(dwords, isplat(-0x77777778, 8)))
            flips = tops - T.bitwise_and(T.shift_right(tops, isplat(3, 8)), isplat(0x11111111, 8))
            folded = T.Bind(T.bitwise_xor(dwords, flips))
            for g, nibble in enumerate(NIBBLE_OF_GROUP):
                index = T.Bind(T.shift_right(folded, isplat(4 * nibble, 8)))
                raised = T.shift_left(tops, isplat(28 - 4 * nibble, 8))
                sign = T.Bind(T.bitwise_and(raised, isplat(-(2**31), 8)))
                for token, (buffer, row) in enumerate(tables):
                    half = load(buffer, (row, group + g, 0), self._HALF)
                    found = T.call_llvm_pure_intrin("float32x8", "llvm.x86.avx2.permps", half, index)
                    signed = T.bitwise_xor(as_type(found, "int32x8"), sign)
                    _add(self._sums[token][part], as_type(signed, "float32x8"), self._HALF)

    def total(self, token: int, tile: int) -> Any:
        halves = [load(self._sums[token][2 * tile + h], (0,), self._HALF) for h in range(2)]
        return shuffle(halves, range(TILE_ROWS))


class ScalarExact:
    """One row after the other: any CPU."""

    def tiles(self, tokens: int) -> int:
        return TILES

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._sums = [scratch((BLOCK_ROWS,)) for _ in range(tokens)]
        for buffer in self._sums:
            for tile in range(tiles):
                store(buffer, (tile * TILE_ROWS,), fsplat(0.0), TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        # 64 rows in one loop: too long to unroll, or compiling takes seconds and the code kilobytes.
        with T.serial(0, BLOCK_ROWS) as r:
            dword = T.Bind(row_keys(keys, where, r))
            for g, nibble in enumerate(NIBBLE_OF_GROUP):
                key = T.Bind(T.bitwise_and(T.shift_right(dword, T.uint32(4 * nibble)), T.uint32(15)))
                for token, (buffer, row) in enumerate(tables):
                    into = self._sums[token]
                    put(into, (r,), into[r] + buffer[row, group + g, T.Cast("int64", key)])

    def total(self, token: int, tile: int) -> Any:
        return load(self._sums[token], (tile * TILE_ROWS,), TILE_ROWS)


def _cleared(tokens: int, parts: int, lanes: int) -> list[list[Any]]:
    """Zeroed float accumulators [tokens][parts], each of ``lanes``."""
    sums = [[scratch((lanes,)) for _ in range(parts)] for _ in range(tokens)]
    for row in sums:
        for buffer in row:
            store(buffer, (0,), fsplat(0.0, lanes), lanes)
    return sums


def _add(into: Any, value: Any, lanes: int) -> None:
    store(into, (0,), load(into, (0,), lanes) + value, lanes)
