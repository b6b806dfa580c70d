# SPDX-License-Identifier: Apache-2.0
"""The int8 dot product of a few tokens with 64 rows on each kernel ISA, exact in int32.

Meaning: ``C[t, r] += sum_c A[t, c] * B[r, c]`` with both sides in -127..127. A is row major; B is in the
layout of ``level_packing.pack_levels``: 256 bytes (64 rows x 4 columns) for every quad of columns. An
emitter is used as ``begin``, any number of ``accumulate``, then ``total`` for each token and vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .packing import BLOCK_ROWS
from .tir import T, as_type, isplat, load, put, scratch, shuffle, splat, store

VECTORS = BLOCK_ROWS // 16
"""int32x16 vectors that hold the sums of 64 rows."""
QUADS = 16
"""Quads of columns in one tile of 64: columns come in multiples of this."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of activations int8[m, columns]: those from ``row`` on, columns from ``column`` on."""

    buffer: Any
    row: Any
    column: Any


@dataclass(frozen=True, slots=True)
class Levels:
    """A block of 64 rows of levels int8[..., quads, 256]: ``outer`` indices, quads from ``quad`` on."""

    buffer: Any
    outer: tuple[Any, ...]
    quad: Any


class DotProduct(Protocol):
    """Accumulates products of ``tokens`` rows of A with 64 rows of B.

    Attributes:
        token_tiles: numbers of tokens that ``begin`` takes, largest first, 1 last.
    """

    token_tiles: tuple[int, ...]

    def begin(self, tokens: int) -> None:
        """Clears the sums."""
        ...

    def accumulate(self, a: Rows, b: Levels, quads: Any) -> None:
        """Adds ``quads`` quads of columns (a multiple of 16)."""
        ...

    def total(self, token: Any, vector: int) -> Any:
        """int32x16: the sums of one token with rows 16 * vector .. 16 * vector + 15."""
        ...


def dot_product(isa: str) -> Any:
    """The emitter of a kernel ISA of ``targets.TargetSpec``; AMX has its own, ``AmxDot``."""
    match isa:
        case "avx512_vbmi":
            return VnniDot()
        case "avx2":
            return Avx2Dot()
        case "ssse3":
            return Ssse3Dot()
        case "portable":
            return PortableDot()
        case _:
            raise ValueError(f"no dot product for {isa!r}; known: avx512_vbmi, avx2, ssse3, portable")


class VnniDot:
    """vpdpbusd wants one unsigned side: levels + 128, minus 128 times the sum of the activations."""

    token_tiles = (6, 2, 1)

    def begin(self, tokens: int) -> None:
        self._sums = [[scratch((16,), "int32") for _ in range(VECTORS)] for _ in range(tokens)]
        for token in self._sums:
            for buffer in token:
                store(buffer, (0,), isplat(0), 16)

    def accumulate(self, a: Rows, b: Levels, quads: Any) -> None:
        self._subtract_bias(a, quads)
        bias = splat(T.uint8(128), 64)
        with T.serial(0, quads) as q:
            levels = [
                T.Bind(
                    T.bitwise_xor(
                        as_type(load(b.buffer, (*b.outer, b.quad + q, 64 * v), 64), "uint8x64"), bias
                    )
                )
                for v in range(VECTORS)
            ]
            for t, sums in enumerate(self._sums):
                four = T.Bind(
                    as_type(
                        splat(as_type(load(a.buffer, (a.row + t, a.column + 4 * q), 4), "int32")), "int8x64"
                    )
                )
                for v in range(VECTORS):
                    store(sums[v], (0,), _vpdpbusd(load(sums[v], (0,), 16), levels[v], four), 16)

    def _subtract_bias(self, a: Rows, quads: Any) -> None:
        ones = splat(T.uint8(1), 64)
        for t, sums in enumerate(self._sums):
            lanes = scratch((16,), "int32")
            store(lanes, (0,), isplat(0), 16)
            with T.serial(0, T.floordiv(quads, QUADS)) as step:
                columns = load(a.buffer, (a.row + t, a.column + 64 * step), 64)
                store(lanes, (0,), _vpdpbusd(load(lanes, (0,), 16), ones, columns), 16)
            total = T.Bind(splat(T.Bind(T.shift_left(_sum_lanes(load(lanes, (0,), 16)), T.int32(7)))))
            for buffer in sums:
                store(buffer, (0,), load(buffer, (0,), 16) - total, 16)

    def total(self, token: Any, vector: int) -> Any:
        return load(self._sums[token][vector], (0,), 16)


def _vpdpbusd(sums: Any, unsigned: Any, signed: Any) -> Any:
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", sums, unsigned, signed)


def _sum_lanes(vector: Any) -> Any:
    """The int32 sum of 16 lanes."""
    lanes = 16
    while lanes > 1:
        half = lanes // 2
        bound = T.Bind(vector)
        vector = shuffle([bound], range(half)) + shuffle([bound], range(half, lanes))
        lanes = half
    return vector


@dataclass(frozen=True, slots=True)
class _MaddNames:
    """Intrinsics of the multiply-add of bytes in registers of ``lanes`` bytes."""

    lanes: int
    sign: str
    bytes: str
    words: str


class _MaddDot:
    """|level| unsigned times the activation with the level's sign: no pair of products leaves int16."""

    token_tiles: tuple[int, ...]
    _names: _MaddNames

    def begin(self, tokens: int) -> None:
        self._sums = [scratch((BLOCK_ROWS,), "int32") for _ in range(tokens)]
        for buffer in self._sums:
            for v in range(VECTORS):
                store(buffer, (16 * v,), isplat(0), 16)

    def accumulate(self, a: Rows, b: Levels, quads: Any) -> None:
        rows = self._names.lanes // 4
        parts = 16 // rows
        with T.serial(0, VECTORS) as v:
            sums = [[scratch((rows,), "int32") for _ in range(parts)] for _ in self._sums]
            for t, token in enumerate(sums):
                for p, buffer in enumerate(token):
                    store(buffer, (0,), load(self._sums[t], (16 * v + rows * p,), rows), rows)
            with T.serial(0, quads) as q:
                self._quad(a, b, q, v, sums)
            for t, token in enumerate(sums):
                for p, buffer in enumerate(token):
                    store(self._sums[t], (16 * v + rows * p,), load(buffer, (0,), rows), rows)

    def _quad(self, a: Rows, b: Levels, q: Any, v: Any, sums: list[list[Any]]) -> None:
        lanes = self._names.lanes
        rows = lanes // 4
        fours = [
            T.Bind(
                as_type(
                    splat(as_type(load(a.buffer, (a.row + t, a.column + 4 * q), 4), "int32"), rows),
                    f"int8x{lanes}",
                )
            )
            for t in range(len(sums))
        ]
        ones = splat(T.int16(1), lanes // 2)
        for p in range(len(sums[0])):
            level = T.Bind(load(b.buffer, (*b.outer, b.quad + q, 64 * v + lanes * p), lanes))
            size = T.Bind(T.max(level, splat(T.int8(0), lanes) - level))
            for t, four in enumerate(fours):
                signed = T.call_llvm_pure_intrin(f"int8x{lanes}", self._names.sign, four, level)
                pairs = T.call_llvm_pure_intrin(f"int16x{lanes // 2}", self._names.bytes, size, signed)
                four_sums = T.call_llvm_pure_intrin(f"int32x{rows}", self._names.words, pairs, ones)
                store(sums[t][p], (0,), load(sums[t][p], (0,), rows) + four_sums, rows)

    def total(self, token: Any, vector: int) -> Any:
        return load(self._sums[token], (16 * vector,), 16)


class Avx2Dot(_MaddDot):
    """vpmaddubsw and vpmaddwd on 8 rows."""

    token_tiles = (4, 1)
    _names = _MaddNames(
        lanes=32,
        sign="llvm.x86.avx2.psign.b",
        bytes="llvm.x86.avx2.pmadd.ub.sw",
        words="llvm.x86.avx2.pmadd.wd",
    )


class Ssse3Dot(_MaddDot):
    """pmaddubsw and pmaddwd on 4 rows."""

    token_tiles = (2, 1)
    _names = _MaddNames(
        lanes=16,
        sign="llvm.x86.ssse3.psign.b.128",
        bytes="llvm.x86.ssse3.pmadd.ub.sw.128",
        words="llvm.x86.sse2.pmadd.wd",
    )


class PortableDot:
    """Scalar products, one row after the other: any CPU."""

    token_tiles = (4, 1)

    def begin(self, tokens: int) -> None:
        self._sums = [scratch((BLOCK_ROWS,), "int32") for _ in range(tokens)]
        for buffer in self._sums:
            for v in range(VECTORS):
                store(buffer, (16 * v,), isplat(0), 16)

    def accumulate(self, a: Rows, b: Levels, quads: Any) -> None:
        with T.serial(0, quads) as q, T.serial(0, BLOCK_ROWS) as r:
            for c in range(4):
                level = T.Bind(T.Cast("int32", b.buffer[(*b.outer, b.quad + q, 4 * r + c)]))
                for t, sums in enumerate(self._sums):
                    product = T.Cast("int32", a.buffer[a.row + t, a.column + 4 * q + c]) * level
                    put(sums, (r,), sums[r] + product)

    def total(self, token: Any, vector: int) -> Any:
        return load(self._sums[token], (16 * vector,), 16)


class AmxDot:
    """tdpbssd multiplies 16 tokens x 64 columns by 64 columns x 16 rows.

    Unlike the others it needs :meth:`session` around its use, once a thread, and takes up to 16 tokens
    at once, a number that may be known only at run time.
    """

    TOKENS = 16
    _A, _B = 4, (5, 6, 7)

    @contextmanager
    def session(self, tokens: Any) -> Iterator[None]:
        """Tile registers for A of ``tokens`` rows (1 to 16), given back at the end."""
        self._tile = T.alloc_buffer([self.TOKENS, BLOCK_ROWS], "int32", align=64, layout=None)
        with tile_session(tokens, levels=self._B):
            yield

    def begin(self) -> None:
        for v in range(VECTORS):
            tile_call("tilezero", T.int8(v))

    def accumulate(self, a: Rows, b: Levels, quads: Any) -> None:
        width = int(a.buffer.shape[-1])
        with T.serial(0, T.floordiv(quads, QUADS)) as step:
            load_tile(self._A, a.buffer, (a.row, a.column + 64 * step), width)
            for v in range(VECTORS):
                tile = self._B[v % len(self._B)]
                where = (*b.outer, b.quad + QUADS * step, 64 * v)
                load_tile(tile, b.buffer, where, BLOCK_ROWS * 4)
                tile_call("tdpbssd", T.int8(v), T.int8(self._A), T.int8(tile))

    def finish(self) -> None:
        """Moves the sums to memory, where ``total`` reads them."""
        for v in range(VECTORS):
            address = T.address_of(self._tile[0, 16 * v])
            tile_call("tilestored64", T.int8(v), address, T.int64(BLOCK_ROWS * 4))

    def total(self, token: Any, vector: int) -> Any:
        return load(self._tile, (token, 16 * vector), 16)


@contextmanager
def tile_session(tokens: Any, levels: Sequence[int] = (6, 7)) -> Iterator[None]:
    """Configures the eight tile registers of this thread: ``tokens`` rows, 16 in those that hold levels."""
    config = scratch((64,), "uint8")
    store(config, (0,), splat(T.uint8(0), 64), 64)
    put(config, (0,), T.uint8(1))
    for tile in range(8):
        put(config, (16 + 2 * tile,), T.uint8(64))
        put(config, (48 + tile,), T.uint8(16) if tile in levels else T.Cast("uint8", tokens))
    tile_call("ldtilecfg", T.address_of(config[0]))
    yield
    tile_call("tilerelease")


def load_tile(register: int, buffer: Any, where: Sequence[Any], stride: int, *, once: bool = False) -> None:
    """Loads rows of 64 bytes that lie ``stride`` bytes apart; ``once`` keeps them out of the first cache."""
    name = "tileloaddt164" if once else "tileloadd64"
    tile_call(name, T.int8(register), T.address_of(buffer[tuple(where)]), T.int64(stride))


def tile_call(name: str, *arguments: Any) -> None:
    """One AMX instruction."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))
