# SPDX-License-Identifier: Apache-2.0
"""The inner loops of the table products on NEON: the Arm twins of ``intrin_x86`` and ``intrin_exact``.

One ``tbl`` reads two tables of 16 entries as fast as one, four at a third of the speed (Neoverse N1). So
keys are paired: the bytes of two column groups of 8 rows lie side by side, one ``tbl`` looks up both, and
``sadalp`` adds each pair to its row's 16-bit lane. By the models of Neoverse N1, V1, N2 and V2 that beats
``tbl`` of four tables with ``sdot`` (cycles for 128 weight bits: 4.0 against 6.0, 2.7 against 3.0, 4.0
against 7.0, 2.1 against 3.0), so all Arm levels share it.
"""

from __future__ import annotations

from typing import Any

from .intrin_x86 import GROUPS
from .packing import TILE_ROWS
from .tir import T, as_type, fsplat, intrinsic, load, pinned, scratch, shuffle, splat, store

QUARTER, QUARTERS = 4, 4
"""Rows that a register of floats holds, and such registers in a tile."""
ROWS = 8
"""Rows of one accumulator; a tile has two."""
PAIRS = 4
"""Pairs of column groups in a step: 0 1, 2 3, 4 5, 6 7."""


class NeonSum:
    """tbl looks up two column groups of 8 rows, sadalp adds them to int16 lanes.

    A chunk has 128 columns at most, 32 entries a row: 32 * 127 < 2^15.
    """

    def tiles(self, tokens: int) -> int:
        return 2 if tokens == 1 else 1

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._tokens, self._tiles = tokens, tiles
        self._sums = scratch((tokens, 2 * tiles, ROWS), "int16")
        for token in range(tokens):
            for half in range(2 * tiles):
                store(self._sums, (token, half, 0), splat(T.int16(0), ROWS), ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        *outer, first = where
        buffer, row = tables[0]
        for tile in range(self._tiles):
            indices = self._indices(keys, [*outer, first + tile])
            if self._tokens == 1:
                self._add(0, tile, buffer, row, group, indices)
                continue
            # Unrolled, the look-ups of all tokens would be done before their sums, and spilled. LLVM does
            # not see that there are always ``tokens`` rows left.
            count = T.min(T.int64(self._tokens), buffer.shape[0] - row)
            with T.serial(0, count) as token:
                self._add(token, tile, buffer, row + token, group, indices)

    def _add(
        self, token: Any, tile: int, buffer: Any, row: Any, group: Any, indices: list[list[Any]]
    ) -> None:
        """Adds the entries of one tile for the token in one row of the tables."""
        sums = [load(self._sums, (token, 2 * tile + half, 0), ROWS) for half in range(2)]
        for pair, keys in enumerate(indices):
            two = [T.Bind(load(buffer, (row, group + 2 * pair + g, 0), 16)) for g in range(2)]
            for half, index in enumerate(keys):
                found = intrinsic("int8x16", "llvm.aarch64.neon.tbl2", *two, index)
                # Reordered, sums would not be one sadalp each.
                added = sums[half] + intrinsic("int16x8", "llvm.aarch64.neon.saddlp", found)
                sums[half] = pinned(added, "int16x8")
        for half, value in enumerate(sums):
            store(self._sums, (token, 2 * tile + half, 0), value, ROWS)

    def _indices(self, keys: Any, tile: list[Any]) -> list[list[Any]]:
        """For each pair of column groups: keys of 8 and 8 rows, odd bytes + 16 for the second table."""
        found: list[list[Any]] = [[] for _ in range(PAIRS)]
        for half in range(2):
            raw = [load(keys, [*tile, 32 * half + 16 * i], 16) for i in range(2)]
            words = [T.Bind(as_type(part, "uint16x8")) for part in raw]
            for odd in range(2):
                packed = T.Bind(as_type(shuffle(words, range(odd, 16, 2)), "uint8x16"))
                second = as_type(splat(T.uint16(0x0100), 8), "uint8x16")
                low = intrinsic("uint8x16", "llvm.aarch64.neon.vsli", packed, second, T.int32(4))
                high = T.shift_right(packed, splat(T.uint8(4), 16))
                high = T.bitwise_or(high, as_type(splat(T.uint16(0x1000), 8), "uint8x16"))
                found[odd].append(T.Bind(as_type(low, "int8x16")))
                found[2 + odd].append(T.Bind(as_type(high, "int8x16")))
        return found

    def total(self, token: int, tile: int) -> Any:
        halves = [T.Bind(load(self._sums, (token, 2 * tile + h, 0), ROWS)) for h in range(2)]
        return T.Cast("int32x16", shuffle(halves, range(TILE_ROWS)))


class NeonExact:
    """tbl of four registers reads one table of 16 floats for 4 rows: key * 4 + 0, 1, 2, 3 are its bytes."""

    def tiles(self, tokens: int) -> int:
        return 1

    def begin(self, tokens: int, tiles: int, steps: int) -> None:
        self._sums = [[scratch((QUARTER,)) for _ in range(QUARTERS)] for _ in range(tokens)]
        for buffer in (b for token in self._sums for b in token):
            store(buffer, (0,), fsplat(0.0, QUARTER), QUARTER)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        raw = [load(keys, [*where, 16 * q], 16) for q in range(QUARTERS)]
        dwords = [T.Bind(as_type(part, f"uint32x{QUARTER}")) for part in raw]
        # Unrolled, the indices of all groups would be made at once, and spilled.
        with T.serial(0, GROUPS) as g:
            nibble = 2 * T.floormod(g, GROUPS // 2) + T.floordiv(g, GROUPS // 2)
            shift = T.Bind(splat(T.Cast("uint32", 4 * nibble), QUARTER))
            indices = [T.Bind(_float_bytes(T.shift_right(part, shift))) for part in dwords]
            for token, (buffer, row) in enumerate(tables):
                parts = [load(buffer, (row, group + g, 4 * i), 4) for i in range(4)]
                table = [T.Bind(as_type(part, "int8x16")) for part in parts]
                for q, index in enumerate(indices):
                    into = self._sums[token][q]
                    found = intrinsic("int8x16", "llvm.aarch64.neon.tbl4", *table, index)
                    total = load(into, (0,), QUARTER) + as_type(found, f"float32x{QUARTER}")
                    store(into, (0,), total, QUARTER)

    def total(self, token: int, tile: int) -> Any:
        quarters = [T.Bind(load(buffer, (0,), QUARTER)) for buffer in self._sums[token]]
        return shuffle(quarters, range(TILE_ROWS))


def _float_bytes(dwords: Any) -> Any:
    """int8x16: places of the bytes of four table entries, one for the key in each dword's lowest bits."""
    key = T.bitwise_and(dwords, splat(T.uint32(15), QUARTER))
    bytes_of = key * splat(T.uint32(0x04040404), QUARTER) + splat(T.uint32(0x03020100), QUARTER)
    return as_type(bytes_of, "int8x16")
