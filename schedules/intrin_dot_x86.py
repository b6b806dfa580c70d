# SPDX-License-Identifier: Apache-2.0
"""The int8 dot product of a few tokens with some rows on each kernel ISA, exact in int32.

Meaning: ``C[t, r] += sum_c A[t, c] * B[r, c]`` with both sides in -127..127. A is row major, B is packed by
``level_packing.pack_levels``; columns come in steps of 64. An emitter is used as ``begin``, any number of
``accumulate``, then ``total`` for each token and vector of 16 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .level_packing import QUAD, TILE_COLUMNS
from .packing import TILE_ROWS
from .tir import T, as_type, isplat, load, put, scratch, shuffle, splat, store

QUADS = TILE_COLUMNS // QUAD
"""Quads of columns in one step."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of activations int8[m, columns]: those from ``row`` on, columns from ``column`` on."""

    buffer: Any
    row: Any
    column: Any


@dataclass(frozen=True, slots=True)
class Levels:
    """Rows of levels int8[..., panels, steps, 2, 1024]: panels from ``panel`` on, steps from ``step`` on."""

    buffer: Any
    outer: tuple[Any, ...]
    panel: Any
    step: Any

    def at(self, tile: Any, step: Any, byte: Any) -> tuple[Any, ...]:
        """Indices of a byte of one of the row tiles."""
        half, odd = (
            (tile // 2, tile % 2) if isinstance(tile, int) else (T.floordiv(tile, 2), T.floormod(tile, 2))
        )
        return (*self.outer, self.panel + half, self.step + step, odd, byte)


class DotProduct(Protocol):
    """Accumulates products of ``tokens`` rows of A with 16 * ``vectors`` rows of B (even, 64 rows at most).

    Attributes:
        token_tiles: numbers of tokens that ``begin`` takes, largest first, 1 last.
        bias: what levels must have been XORed with beforehand.
    """

    token_tiles: tuple[int, ...]
    bias: int

    def begin(self, tokens: int) -> None:
        """Clears the sums."""
        ...

    def accumulate(self, a: Rows, b: Levels, steps: Any) -> None:
        """Adds ``steps`` steps of 64 columns."""
        ...

    def total(self, token: int, vector: int) -> Any:
        """int32x16: the sums of one token with rows 16 * vector .. 16 * vector + 15."""
        ...


def dot_product(isa: str, vectors: int = 4, bias: int = 0) -> DotProduct:
    """The emitter of a kernel ISA of ``targets.TargetSpec``; AMX has one of its own (``intrin_amx``).

    Args:
        isa: the kernel ISA.
        vectors: rows of B in 16s.
        bias: 128 for levels that are XORed with 128 already, which saves VNNI doing so; see
            :func:`preferred_bias`.
    """
    match isa:
        case "avx512_vbmi":
            return VnniDot(vectors, bias)
        case "avx2":
            return Avx2Dot(vectors)
        case "ssse3":
            return Ssse3Dot(vectors)
        case "neon" | "neon_dotprod" | "neon_i8mm":
            from .intrin_dot_arm import arm_dot

            return arm_dot(isa, vectors)
        case "portable":
            return PortableDot(vectors)
        case _:
            known = "avx512_vbmi, avx2, ssse3, neon, neon_dotprod, neon_i8mm, portable"
            raise ValueError(f"no dot product for {isa!r}; known: {known}")


def preferred_bias(isa: str) -> int:
    """What to XOR levels with where they are made anyway."""
    return 128 if isa == "avx512_vbmi" else 0


class VnniDot:
    """vpdpbusd wants one unsigned side: levels + 128, minus 128 times the sum of the activations."""

    def __init__(self, vectors: int, bias: int) -> None:
        self.bias = bias
        self.token_tiles: tuple[int, ...] = (6, 2, 1) if vectors > 2 else (8, 4, 1)
        self._vectors = vectors

    def begin(self, tokens: int) -> None:
        self._sums = [[scratch((16,), "int32") for _ in range(self._vectors)] for _ in range(tokens)]
        for token in self._sums:
            for buffer in token:
                store(buffer, (0,), isplat(0), 16)

    def accumulate(self, a: Rows, b: Levels, steps: Any) -> None:
        self._subtract_bias(a, steps)
        with T.serial(0, steps) as s, T.serial(0, QUADS) as q:
            levels = [self._unsigned(load(b.buffer, b.at(v, s, 64 * q), 64)) for v in range(self._vectors)]
            for t, sums in enumerate(self._sums):
                column = a.column + TILE_COLUMNS * s + QUAD * q
                four = T.Bind(as_type(load(a.buffer, (a.row + t, column), QUAD), "int32"))
                wide = T.Bind(as_type(splat(four), "int8x64"))
                for buffer, level in zip(sums, levels, strict=True):
                    store(buffer, (0,), _vpdpbusd(load(buffer, (0,), 16), level, wide), 16)

    def _unsigned(self, levels: Any) -> Any:
        raw = as_type(levels, "uint8x64")
        return T.Bind(raw if self.bias else T.bitwise_xor(raw, splat(T.uint8(128), 64)))

    def _subtract_bias(self, a: Rows, steps: Any) -> None:
        ones = splat(T.uint8(1), 64)
        for t, sums in enumerate(self._sums):
            lanes = scratch((16,), "int32")
            store(lanes, (0,), isplat(0), 16)
            with T.serial(0, steps) as s:
                columns = load(a.buffer, (a.row + t, a.column + TILE_COLUMNS * s), 64)
                store(lanes, (0,), _vpdpbusd(load(lanes, (0,), 16), ones, columns), 16)
            total = T.Bind(T.shift_left(_sum_lanes(load(lanes, (0,), 16)), T.int32(7)))
            for buffer in sums:
                store(buffer, (0,), load(buffer, (0,), 16) - splat(total), 16)

    def total(self, token: int, vector: int) -> Any:
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


class StoredSums:
    """Sums int32[16 * vectors] of each token in memory; a tile of 16 rows at a time is in registers."""

    token_tiles: tuple[int, ...]
    bias: int = 0

    def __init__(self, vectors: int) -> None:
        self._vectors = vectors

    def begin(self, tokens: int) -> None:
        self._sums = [scratch((TILE_ROWS * self._vectors,), "int32") for _ in range(tokens)]
        for buffer in self._sums:
            for v in range(self._vectors):
                store(buffer, (16 * v,), isplat(0), 16)

    def total(self, token: int, vector: int) -> Any:
        return load(self._sums[token], (16 * vector,), 16)


@dataclass(frozen=True, slots=True)
class _MaddNames:
    """Intrinsics of the multiply-add of bytes in registers of ``lanes`` bytes."""

    lanes: int
    sign: str
    bytes: str
    words: str


class _MaddDot(StoredSums):
    """|level| unsigned times the activation with the level's sign: no pair of products leaves int16."""

    _names: _MaddNames

    def accumulate(self, a: Rows, b: Levels, steps: Any) -> None:
        rows = self._names.lanes // QUAD
        parts = range(TILE_ROWS // rows)
        with T.serial(0, self._vectors) as v:
            sums = [[scratch((rows,), "int32") for _ in parts] for _ in self._sums]
            places = [
                (part, whole, 16 * v + rows * p)
                for whole, token in zip(self._sums, sums, strict=True)
                for p, part in enumerate(token)
            ]
            for part, whole, place in places:
                store(part, (0,), load(whole, (place,), rows), rows)
            with T.serial(0, steps) as s, T.serial(0, QUADS) as q:
                self._quad(a, b, (v, s, q), sums)
            for part, whole, place in places:
                store(whole, (place,), load(part, (0,), rows), rows)

    def _quad(self, a: Rows, b: Levels, where: tuple[Any, Any, Any], sums: list[list[Any]]) -> None:
        v, s, q = where
        lanes, rows = self._names.lanes, self._names.lanes // QUAD
        fours = []
        for t in range(len(sums)):
            four = as_type(load(a.buffer, (a.row + t, a.column + TILE_COLUMNS * s + QUAD * q), QUAD), "int32")
            fours.append(T.Bind(as_type(splat(T.Bind(four), rows), f"int8x{lanes}")))
        ones = splat(T.int16(1), lanes // 2)
        for p in range(len(sums[0])):
            level = T.Bind(load(b.buffer, b.at(v, s, 64 * q + lanes * p), lanes))
            size = T.Bind(T.max(level, splat(T.int8(0), lanes) - level))
            for four, token in zip(fours, sums, strict=True):
                signed = T.call_llvm_pure_intrin(f"int8x{lanes}", self._names.sign, four, level)
                pairs = T.call_llvm_pure_intrin(f"int16x{lanes // 2}", self._names.bytes, size, signed)
                added = T.call_llvm_pure_intrin(f"int32x{rows}", self._names.words, pairs, ones)
                store(token[p], (0,), load(token[p], (0,), rows) + added, rows)


class Avx2Dot(_MaddDot):
    """vpmaddubsw and vpmaddwd on 8 rows."""

    token_tiles: tuple[int, ...] = (4, 1)
    _names = _MaddNames(
        lanes=32,
        sign="llvm.x86.avx2.psign.b",
        bytes="llvm.x86.avx2.pmadd.ub.sw",
        words="llvm.x86.avx2.pmadd.wd",
    )


class Ssse3Dot(_MaddDot):
    """pmaddubsw and pmaddwd on 4 rows."""

    token_tiles: tuple[int, ...] = (2, 1)
    _names = _MaddNames(
        lanes=16,
        sign="llvm.x86.ssse3.psign.b.128",
        bytes="llvm.x86.ssse3.pmadd.ub.sw.128",
        words="llvm.x86.sse2.pmadd.wd",
    )


class PortableDot(StoredSums):
    """Scalar products, one row after the other: any CPU."""

    token_tiles: tuple[int, ...] = (4, 1)

    def accumulate(self, a: Rows, b: Levels, steps: Any) -> None:
        # Bytes of a step in order: 16 quads of 16 rows x 4 columns.
        with T.serial(0, self._vectors) as v, T.serial(0, steps) as s, T.serial(0, QUADS * TILE_ROWS) as i:
            q, r = T.floordiv(i, TILE_ROWS), T.floormod(i, TILE_ROWS)
            for c in range(QUAD):
                level = T.Bind(T.Cast("int32", b.buffer[b.at(v, s, QUAD * i + c)]))
                for t, sums in enumerate(self._sums):
                    column = a.column + TILE_COLUMNS * s + QUAD * q + c
                    product = T.Cast("int32", a.buffer[a.row + t, column]) * level
                    put(sums, (TILE_ROWS * v + r,), sums[TILE_ROWS * v + r] + product)
