# SPDX-License-Identifier: Apache-2.0
"""Binary planes to int8 levels on each kernel ISA: from a step of keys to eight quads of levels.

Keys are tiles of 16 rows x 32 columns (``packing.pack_keys``); the levels come out as
``level_packing.pack_levels`` lays them out. Alphas are those of one block and group, int8[bits, 64].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .packing import MU, STEP_COLUMNS, TILE_ROWS
from .tir import T, as_type, load, put, scratch, shuffle, splat, store

GROUPS = STEP_COLUMNS // MU
HALF = GROUPS // 2
TILES = 4


@dataclass(frozen=True, slots=True)
class Planes:
    """Keys uint8[blocks, bits, steps, 4, 64] and alphas int8[blocks, bits, groups, 64] of one block and group."""

    keys: Any
    alphas: Any
    block: Any
    group: Any
    bits: int


class Expansion(Protocol):
    """Expands steps of one block and group."""

    def begin(self, planes: Planes) -> None:
        """Prepares the codebooks of the group."""
        ...

    def step(self, step: Any, out: Any, quad: Any) -> None:
        """Writes the levels of 64 rows x 32 columns to ``out`` int8[quads, 256] from ``quad`` on."""
        ...


def expansion(isa: str) -> Expansion:
    """The expansion for a kernel ISA of ``targets.TargetSpec``."""
    match isa:
        case "amx" | "avx512_vbmi":
            return VbmiExpansion()
        case "avx2":
            return ShuffleExpansion(32, "llvm.x86.avx2.pshuf.b")
        case "ssse3":
            return ShuffleExpansion(16, "llvm.x86.ssse3.pshuf.b.128")
        case "portable":
            return PortableExpansion()
        case _:
            raise ValueError(f"no expansion for {isa!r}; known: amx, avx512_vbmi, avx2, ssse3, portable")


def constant_bytes(values: Sequence[int]) -> Any:
    """A vector of unsigned bytes."""
    words = [T.uint32(int.from_bytes(bytes(values[i : i + 4]), "little")) for i in range(0, len(values), 4)]
    return as_type(shuffle(words, range(len(words))), f"uint8x{len(values)}")


_ROW_OF = [(i >> 1 & 7) | (i >> 5 & 1) << 3 for i in range(64)]
"""Row of a tile that an entry of a codebook belongs to; bits 0 and 4 of its index are two key bits."""


class VbmiExpansion:
    """vpmultishiftqb spreads the keys of two planes to bytes, vpermb looks the levels up.

    The nibbles of two planes make one byte a quad; the window of eight bits that starts at bit c holds
    column c's key bits at 0 and 4. The row fills bits 1, 2, 3 and 5: an index into 64 levels.
    """

    def begin(self, planes: Planes) -> None:
        self._planes = planes
        self._books = []
        for first in range(0, planes.bits, 2):
            pair = range(first, min(first + 2, planes.bits))
            rows = [T.Bind(load(planes.alphas, (planes.block, p, planes.group, 0), 64)) for p in pair]
            books = scratch((TILES * 64,), "uint8")
            for tile in range(TILES):
                store(books, (64 * tile,), self._book(rows, tile), 64)
            self._books.append(books)

    def _book(self, rows: list[Any], tile: int) -> Any:
        where = constant_bytes([16 * tile + row for row in _ROW_OF])
        total = None
        for bit, alphas in zip((0, 4), rows, strict=False):
            minus = constant_bytes([0 if i >> bit & 1 else 255 for i in range(64)])
            picked = T.call_llvm_pure_intrin(
                "uint8x64", "llvm.x86.avx512.permvar.qi.512", as_type(alphas, "uint8x64"), where
            )
            signed = T.bitwise_xor(picked, minus) - minus
            total = signed if total is None else total + signed
        return total

    def step(self, step: Any, out: Any, quad: Any) -> None:
        with T.serial(0, TILES) as tile:
            levels: list[Any] = [None] * GROUPS
            for index, books in enumerate(self._books):
                book = T.Bind(load(books, (64 * tile,), 64))
                for g, found in enumerate(self._look_up(2 * index, step, tile, book)):
                    levels[g] = found if levels[g] is None else levels[g] + found
            for g in range(GROUPS):
                store(out, (quad + g, 64 * tile), as_type(levels[g], "int8x64"), 64)

    def _look_up(self, plane: int, step: Any, tile: Any, book: Any) -> list[Any]:
        pair = range(plane, min(plane + 2, self._planes.bits))
        rows = constant_bytes([(i // 4 & 7) << 1 | i // 4 >> 3 << 5 for i in range(64)])
        mask = splat(T.uint8(0x11 if len(pair) == 2 else 0x01), 64)
        found = []
        for nibbles in self._merge(pair, step, tile):
            for g in range(HALF):
                window = constant_bytes([8 * g + c + 32 * odd for odd in range(2) for c in range(MU)] * 8)
                spread = T.call_llvm_pure_intrin(
                    "uint8x64", "llvm.x86.avx512.pmultishift.qb.512", window, nibbles
                )
                index = T.bitwise_or(T.bitwise_and(spread, mask), rows)
                found.append(
                    T.call_llvm_pure_intrin("uint8x64", "llvm.x86.avx512.permvar.qi.512", book, index)
                )
        return found

    def _merge(self, pair: range, step: Any, tile: Any) -> list[Any]:
        """Low and high nibbles of up to two planes: the first plane in bits 0..3, the second in 4..7."""
        keys = [
            T.Bind(as_type(load(self._planes.keys, (self._planes.block, p, step, tile, 0), 64), "uint32x16"))
            for p in pair
        ]
        four, low, high = (splat(T.uint32(v), 16) for v in (4, 0x0F0F0F0F, 0xF0F0F0F0))
        if len(keys) == 1:
            both = [keys[0], T.shift_right(keys[0], four)]
        else:
            both = [
                T.bitwise_or(T.bitwise_and(keys[0], low), T.bitwise_and(T.shift_left(keys[1], four), high)),
                T.bitwise_or(T.bitwise_and(T.shift_right(keys[0], four), low), T.bitwise_and(keys[1], high)),
            ]
        return [T.Bind(as_type(nibbles, "uint8x64")) for nibbles in both]


class ShuffleExpansion:
    """pshufb spreads a key byte over four columns, a compare makes +alpha or -alpha of its bits."""

    def __init__(self, lanes: int, shuffle_bytes: str) -> None:
        self._lanes, self._shuffle = lanes, shuffle_bytes

    def begin(self, planes: Planes) -> None:
        self._planes = planes

    def step(self, step: Any, out: Any, quad: Any) -> None:
        parts = TILE_ROWS * 4 // self._lanes
        with T.serial(0, TILES) as tile, T.serial(0, parts) as part:
            self._part(step, tile, part, out, quad)

    def _part(self, step: Any, tile: Any, part: Any, out: Any, quad: Any) -> None:
        lanes, planes = self._lanes, self._planes
        rows = lanes // 4
        twice, base = [], splat(T.uint8(0), lanes)
        keys = []
        for p in range(planes.bits):
            row = tile * TILE_ROWS + part * rows
            alphas = load(planes.alphas, (planes.block, p, planes.group, row), rows)
            narrow = T.Bind(as_type(alphas, f"uint8x{rows}"))
            alpha = T.Bind(shuffle([narrow] * 4, [i // 4 for i in range(lanes)]))
            base = base - alpha
            twice.append(T.Bind(alpha + alpha))
            keys.append(T.Bind(load(planes.keys, (planes.block, p, step, tile, lanes * part), lanes)))
        base = T.Bind(base)
        for g in range(GROUPS):
            spread = constant_bytes([(4 * (i // 4) + g % HALF) % 16 for i in range(lanes)])
            bit = constant_bytes([1 << (i % 4 + (4 if g >= HALF else 0)) for i in range(lanes)])
            level = base
            for p in range(planes.bits):
                four = T.call_llvm_pure_intrin(f"uint8x{lanes}", self._shuffle, keys[p], spread)
                plus = T.Select(T.bitwise_and(four, bit) == bit, twice[p], splat(T.uint8(0), lanes))
                level = level + plus
            store(out, (quad + g, 64 * tile + lanes * part), as_type(level, f"int8x{lanes}"), lanes)


class PortableExpansion:
    """Bit after bit: any CPU."""

    def begin(self, planes: Planes) -> None:
        self._planes = planes

    def step(self, step: Any, out: Any, quad: Any) -> None:
        planes = self._planes
        with T.serial(0, TILES * TILE_ROWS) as row:
            tile, lane = T.floordiv(row, TILE_ROWS), T.floormod(row, TILE_ROWS)
            keys = [
                T.Bind(as_type(load(planes.keys, (planes.block, p, step, tile, lane * 4), 4), "uint32"))
                for p in range(planes.bits)
            ]
            with T.serial(0, GROUPS) as g, T.serial(0, MU) as c:
                place = 8 * T.floormod(g, HALF) + 4 * T.floordiv(g, HALF) + c
                level: Any = T.int8(0)
                for p in range(planes.bits):
                    alpha = planes.alphas[planes.block, p, planes.group, row]
                    bit = T.bitwise_and(T.shift_right(keys[p], T.Cast("uint32", place)), T.uint32(1))
                    level = level + T.Select(bit == T.uint32(1), alpha, T.int8(0) - alpha)
                put(out, (quad + g, 4 * row + c), level)
