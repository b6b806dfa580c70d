# SPDX-License-Identifier: Apache-2.0
"""The inner loop with FP32 tables (BiQGEMM without activation quantization).

A dword of a key tile is one row's four bytes; vpermps reads only the low four bits of an index
dword, so shifting the dwords by 4 i selects the i-th column group of all 16 rows at once.
"""

from __future__ import annotations

from typing import Any

from .packing import MU, STEP_COLUMNS, TILE_ROWS
from .tir import T, as_type, fsplat, load, put, scratch, splat, store

GROUPS = STEP_COLUMNS // MU
NIBBLE_OF_GROUP = (0, 2, 4, 6, 1, 3, 5, 7)
"""Position of a column group's nibble within a row's dword (low nibbles hold groups 0..3)."""


class ExactSum:
    """Adds float table entries per row, column groups in ascending order on every ISA."""

    def __init__(self, isa: str) -> None:
        self._vector = isa == "avx512_vbmi"

    def begin(self, tokens: int, tiles: int) -> None:
        self._sums = [[scratch((TILE_ROWS,)) for _ in range(tiles)] for _ in range(tokens)]
        for row in self._sums:
            for buffer in row:
                store(buffer, (0,), fsplat(0.0), TILE_ROWS)

    def step(self, keys: Any, where: list[Any], tables: list[tuple[Any, Any]], group: Any) -> None:
        emit = self._step_vector if self._vector else self._step_scalar
        for tile in range(len(self._sums[0])):
            emit(keys, where, tables, group, tile)

    def _step_vector(self, keys: Any, where: list[Any], tables: Any, group: Any, tile: int) -> None:
        dwords = T.Bind(as_type(load(keys, [*where, tile, 0], 64), "int32x16"))
        for g, nibble in enumerate(NIBBLE_OF_GROUP):
            index = T.Bind(T.shift_right(dwords, splat(T.int32(4 * nibble), TILE_ROWS)))
            for token, (buffer, row) in enumerate(tables):
                entries = load(buffer, (row, group + g, 0), TILE_ROWS)
                found = T.call_llvm_pure_intrin(
                    "float32x16", "llvm.x86.avx512.permvar.sf.512", entries, index
                )
                into = self._sums[token][tile]
                store(into, (0,), load(into, (0,), TILE_ROWS) + found, TILE_ROWS)

    def _step_scalar(self, keys: Any, where: list[Any], tables: Any, group: Any, tile: int) -> None:
        with T.serial(0, TILE_ROWS) as r:
            for g, nibble in enumerate(NIBBLE_OF_GROUP):
                byte = T.Cast("int32", keys[(*where, tile, r * 4 + nibble // 2)])
                key = T.Bind(T.bitwise_and(T.shift_right(byte, T.int32(4 * (nibble % 2))), 15))
                for token, (buffer, row) in enumerate(tables):
                    into = self._sums[token][tile]
                    put(into, (r,), into[r] + buffer[row, group + g, key])

    def integers(self, token: int, tile: int) -> Any:
        """float32x16: the sums of one row tile (exact tables need no scale)."""
        return load(self._sums[token][tile], (0,), TILE_ROWS)


assert MU == 4
