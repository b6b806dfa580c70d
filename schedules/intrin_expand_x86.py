# SPDX-License-Identifier: Apache-2.0
"""Binary planes to int8 levels on each kernel ISA: from a tile of keys to eight quads of levels.

A tile of keys is 16 rows x 32 columns (``packing.pack_keys``), a quad of levels 16 rows x 4 columns as in
``level_packing.pack_levels``. Column group g of the keys is quad g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from targets.spec import vector_isa

from .packing import MU, STEP_COLUMNS, TILE_ROWS
from .tir import T, as_type, load, scratch, shuffle, splat, store

GROUPS = STEP_COLUMNS // MU
HALF = GROUPS // 2
TILES = 4


Write = Callable[[int, Any, Any, int], None]
"""``write(quad, offset, levels, lanes)``: puts ``lanes`` levels ``offset`` bytes into one of eight quads."""


@dataclass(frozen=True, slots=True)
class Planes:
    """Row tiles ``first`` to ``first + tiles - 1`` of one block in one column group.

    Attributes:
        keys: uint8[blocks, bits, steps, 4, 64].
        alphas: int8[blocks, bits, groups, 64].
    """

    keys: Any
    alphas: Any
    block: Any
    group: Any
    bits: int
    first: Any = 0
    tiles: int = TILES


class Expansion(Protocol):
    """Expands tiles of keys."""

    def begin(self, planes: Planes) -> None:
        """Prepares the codebooks of the planes' row tiles."""
        ...

    def tile(self, step: Any, tile: Any, write: Write) -> None:
        """Expands one of the planes' row tiles (counted from their first) in one step of columns."""
        ...


def expansion(isa: str, bias: int = 0) -> Expansion:
    """The expansion for a kernel ISA of ``targets.TargetSpec``; AVX-512 can XOR levels with 128."""
    match vector_isa(isa):
        case "avx512_vbmi":
            return VbmiExpansion(bias)
        case "avx2":
            return ShuffleExpansion(32, "llvm.x86.avx2.pshuf.b")
        case "ssse3":
            return ShuffleExpansion(16, "llvm.x86.ssse3.pshuf.b.128")
        case "neon":
            from .intrin_expand_arm import NeonExpansion

            return NeonExpansion()
        case "portable":
            return PortableExpansion()
        case _:
            raise ValueError(f"no expansion for {isa!r}; known: avx512_vbmi, avx2, ssse3, neon, portable")


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

    def __init__(self, bias: int = 0) -> None:
        self._bias = bias

    def begin(self, planes: Planes) -> None:
        self._planes = planes
        self._books = []
        for plane in range(0, planes.bits, 2):
            pair = range(plane, min(plane + 2, planes.bits))
            alphas = [T.Bind(load(planes.alphas, (planes.block, p, planes.group, 0), 64)) for p in pair]
            book = scratch((planes.tiles, 64), "uint8")
            for tile in range(planes.tiles):
                levels = self._book(alphas, tile)
                biased = plane == 0 and self._bias
                store(book, (tile, 0), levels + splat(T.uint8(self._bias), 64) if biased else levels, 64)
            self._books.append(book)

    def _book(self, alphas: list[Any], tile: int) -> Any:
        """64 levels: the sums of two planes by key bits and row."""
        start = splat(T.Cast("uint8", (self._planes.first + tile) * TILE_ROWS), 64)
        where = T.Bind(constant_bytes(_ROW_OF) + start)
        total = None
        for bit, rows in zip((0, 4), alphas, strict=False):
            minus = constant_bytes([0 if i >> bit & 1 else 255 for i in range(64)])
            signed = T.bitwise_xor(_vpermb(as_type(rows, "uint8x64"), where), minus) - minus
            total = signed if total is None else total + signed
        return total

    def tile(self, step: Any, tile: Any, write: Write) -> None:
        levels: list[Any] = [None] * GROUPS
        for index, book in enumerate(self._books):
            for g, found in enumerate(self._look_up(2 * index, step, tile, book)):
                levels[g] = found if levels[g] is None else levels[g] + found
        for g, level in enumerate(levels):
            write(g, 0, as_type(level, "int8x64"), 64)

    def _look_up(self, plane: int, step: Any, tile: Any, book: Any) -> list[Any]:
        """The levels of up to two planes by column group."""
        pair = range(plane, min(plane + 2, self._planes.bits))
        rows = constant_bytes([(i // 4 & 7) << 1 | i // 4 >> 3 << 5 for i in range(64)])
        mask = splat(T.uint8(0x11 if len(pair) == 2 else 0x01), 64)
        table = T.Bind(load(book, (tile, 0), 64))
        found = []
        for nibbles in self._merge(pair, step, self._planes.first + tile):
            for g in range(HALF):
                window = constant_bytes([8 * g + c + 32 * odd for odd in range(2) for c in range(MU)] * 8)
                spread = T.call_llvm_pure_intrin(
                    "uint8x64", "llvm.x86.avx512.pmultishift.qb.512", window, nibbles
                )
                found.append(_vpermb(table, T.bitwise_or(T.bitwise_and(spread, mask), rows)))
        return found

    def _merge(self, pair: range, step: Any, tile: Any) -> list[Any]:
        """Low and high nibbles of up to two planes: the first plane in bits 0..3, the second in 4..7."""
        where = [(self._planes.block, p, step, tile, 0) for p in pair]
        keys = [T.Bind(as_type(load(self._planes.keys, w, 64), "uint32x16")) for w in where]
        four, low, high = (splat(T.uint32(v), 16) for v in (4, 0x0F0F0F0F, 0xF0F0F0F0))
        if len(keys) == 1:
            both = [keys[0], T.shift_right(keys[0], four)]
        else:
            both = [
                T.bitwise_or(T.bitwise_and(keys[0], low), T.bitwise_and(T.shift_left(keys[1], four), high)),
                T.bitwise_or(T.bitwise_and(T.shift_right(keys[0], four), low), T.bitwise_and(keys[1], high)),
            ]
        return [T.Bind(as_type(nibbles, "uint8x64")) for nibbles in both]


def _vpermb(table: Any, index: Any) -> Any:
    return T.call_llvm_pure_intrin("uint8x64", "llvm.x86.avx512.permvar.qi.512", table, index)


class ShuffleExpansion:
    """pshufb spreads a key byte over four columns, a compare makes +alpha or -alpha of its bits."""

    def __init__(self, lanes: int, shuffle_bytes: str) -> None:
        self._lanes, self._shuffle = lanes, shuffle_bytes

    def begin(self, planes: Planes) -> None:
        self._planes = planes

    def tile(self, step: Any, tile: Any, write: Write) -> None:
        with T.serial(0, TILE_ROWS * 4 // self._lanes) as part:
            self._part(step, self._planes.first + tile, part, write)

    def _part(self, step: Any, tile: Any, part: Any, write: Write) -> None:
        """The rows of one register."""
        lanes, planes, rows = self._lanes, self._planes, self._lanes // 4
        zero = splat(T.uint8(0), lanes)
        keys, twice, base = [], [], zero
        for p in range(planes.bits):
            alphas = load(
                planes.alphas, (planes.block, p, planes.group, tile * TILE_ROWS + part * rows), rows
            )
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
            for key, plus in zip(keys, twice, strict=True):
                four = T.call_llvm_pure_intrin(f"uint8x{lanes}", self._shuffle, key, spread)
                level = level + self._chosen(four, bit, plus)
            write(g, lanes * part, as_type(level, f"int8x{lanes}"), lanes)

    def _chosen(self, four: Any, bit: Any, plus: Any) -> Any:
        """``plus`` in the lanes whose bit is set, else 0."""
        return T.Select(T.bitwise_and(four, bit) == bit, plus, splat(T.uint8(0), self._lanes))


class PortableExpansion:
    """Bit after bit: any CPU."""

    def begin(self, planes: Planes) -> None:
        self._planes = planes

    def tile(self, step: Any, tile: Any, write: Write) -> None:
        planes = self._planes
        tile = planes.first + tile
        with T.serial(0, TILE_ROWS) as row:
            where = [(planes.block, p, step, tile, row * 4) for p in range(planes.bits)]
            keys = [T.Bind(as_type(load(planes.keys, w, 4), "uint32")) for w in where]
            with T.serial(0, MU) as c:
                for g in range(GROUPS):
                    write(
                        g, 4 * row + c, self._level(keys, 8 * (g % HALF) + 4 * (g // HALF) + c, tile, row), 1
                    )

    def _level(self, keys: list[Any], place: Any, tile: Any, row: Any) -> Any:
        level: Any = T.int8(0)
        for p, key in enumerate(keys):
            alpha = self._planes.alphas[self._planes.block, p, self._planes.group, tile * TILE_ROWS + row]
            bit = T.bitwise_and(T.shift_right(key, T.Cast("uint32", place)), T.uint32(1))
            level = level + T.Select(bit == T.uint32(1), alpha, T.int8(0) - alpha)
        return level
