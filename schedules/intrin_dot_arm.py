# SPDX-License-Identifier: Apache-2.0
"""The int8 dot products of ``intrin_dot_x86`` on Arm: smull and sadalp (NEON), sdot, smmla.

All work on one tile of 16 rows at a time, so that four tokens' sums stay in registers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from .intrin_dot_x86 import Levels, Rows, StoredSums
from .level_packing import QUAD, TILE_COLUMNS
from .packing import TILE_ROWS
from .tir import T, as_type, intrinsic, isplat, load, pinned, scratch, shuffle, store

PARTS = TILE_ROWS // QUAD
"""Registers of 4 rows x 4 columns in a quad of levels."""
WORDS = TILE_COLUMNS // 16
"""Registers of 16 columns in a token's step."""


def arm_dot(isa: str, vectors: int) -> TileDot:
    """The emitter of a NEON level for 16 * ``vectors`` rows."""
    match isa:
        case "neon_i8mm":
            return SmmlaDot(vectors)
        case "neon_dotprod":
            return SdotDot(vectors)
        case _:
            return NeonDot(vectors)


class TileDot(StoredSums):
    """Sums of one row tile in int32x4 registers while its steps are added."""

    _registers: int
    """Sums of a token (or of a pair of tokens) in a tile."""

    def accumulate(self, a: Rows, b: Levels, steps: Any) -> None:
        with T.serial(0, self._vectors) as v:
            sums = [[scratch((4,), "int32") for _ in range(self._registers)] for _ in range(self._rows())]
            for buffer in (s for token in sums for s in token):
                store(buffer, (0,), isplat(0, 4), 4)
            with T.serial(0, steps) as s, T.serial(0, WORDS) as w:
                self._word(a, b, (v, s, w), sums)
            for t, token in enumerate(self._sums):
                wide = T.Bind(load(token, (16 * v,), 16) + shuffle(self._finished(sums, t), range(16)))
                store(token, (16 * v,), wide, 16)

    def _rows(self) -> int:
        """Rows of sums: one a token."""
        return len(self._sums)

    def _columns(self, a: Rows, token: int, s: Any, w: Any) -> Any:
        """int8x16: 16 columns of a token."""
        column = a.column + TILE_COLUMNS * s + 16 * w
        return T.Bind(load(a.buffer, (a.row + token, column), 16))

    def _levels(self, b: Levels, where: tuple[Any, Any, Any], quad: int, part: int) -> Any:
        """int8x16: 4 rows x 4 columns of one of a word's four quads."""
        v, s, w = where
        return T.Bind(load(b.buffer, b.at(v, s, 256 * w + 64 * quad + 16 * part), 16))

    @abstractmethod
    def _word(self, a: Rows, b: Levels, where: tuple[Any, Any, Any], sums: list[list[Any]]) -> None:
        """Adds 16 columns of row tile v in step s, word w."""

    def _finished(self, sums: list[list[Any]], token: int) -> list[Any]:
        """Four int32x4: the sums of a token with rows in order."""
        return [T.Bind(load(buffer, (0,), 4)) for buffer in sums[token]]


class NeonDot(TileDot):
    """smull and smlal: two products of 14 bits fit int16; sadalp adds their lanes in twos."""

    token_tiles: tuple[int, ...] = (2, 1)
    _registers = 2 * PARTS

    def _word(self, a: Rows, b: Levels, where: tuple[Any, Any, Any], sums: list[list[Any]]) -> None:
        words = [T.Bind(as_type(self._columns(a, t, *where[1:]), "int32x4")) for t in range(len(sums))]
        for two in range(0, QUAD, 2):
            # Pinned, both halves are read where they are, by smull and smull2.
            fours = [
                [pinned(shuffle([word], [two + i] * 4), "int8x16") for i in range(2)] for word in words
            ]
            for part in range(PARTS):
                quads = [self._levels(b, where, two + i, part) for i in range(2)]
                for token, four in zip(sums, fours, strict=True):
                    for half in range(2):
                        first, second = (
                            _products(*pair, half) for pair in zip(quads, four, strict=True)
                        )
                        into = token[2 * part + half]
                        added = intrinsic("int32x4", "llvm.aarch64.neon.saddlp", first + second)
                        store(into, (0,), pinned(load(into, (0,), 4) + added, "int32x4"), 4)

    def _finished(self, sums: list[list[Any]], token: int) -> list[Any]:
        both = [T.Bind(load(buffer, (0,), 4)) for buffer in sums[token]]
        return [
            T.Bind(intrinsic("int32x4", "llvm.aarch64.neon.addp", *both[i : i + 2]))
            for i in range(0, len(both), 2)
        ]


def _products(a: Any, b: Any, half: int) -> Any:
    """int16x8: the products of 8 of 16 lanes."""
    lanes = range(8 * half, 8 * half + 8)
    return intrinsic("int16x8", "llvm.aarch64.neon.smull", *(shuffle([v], lanes) for v in (a, b)))


class SdotDot(TileDot):
    """sdot multiplies 4 rows x 4 columns by one quad of a token, chosen by lane."""

    token_tiles: tuple[int, ...] = (4, 1)
    _registers = PARTS

    def _word(self, a: Rows, b: Levels, where: tuple[Any, Any, Any], sums: list[list[Any]]) -> None:
        words = [T.Bind(as_type(self._columns(a, t, *where[1:]), "int32x4")) for t in range(len(sums))]
        for quad in range(QUAD):
            for part in range(PARTS):
                levels = self._levels(b, where, quad, part)
                for token, word in zip(sums, words, strict=True):
                    four = as_type(shuffle([word], [quad] * 4), "int8x16")
                    total = intrinsic(
                        "int32x4", "llvm.aarch64.neon.sdot", load(token[part], (0,), 4), levels, four
                    )
                    store(token[part], (0,), total, 4)


class SmmlaDot(SdotDot):
    """smmla multiplies 2 rows by 2 tokens, 8 columns at once; an odd number of tokens runs on sdot.

    Two quads of levels, zipped, are rows of 8 columns; so are the halves of two tokens' columns.
    """

    _registers = 2 * PARTS

    def begin(self, tokens: int) -> None:
        super().begin(tokens)
        self._registers = 2 * PARTS if self._paired else PARTS

    @property
    def _paired(self) -> bool:
        return len(self._sums) % 2 == 0

    def _rows(self) -> int:
        return len(self._sums) // 2 if self._paired else len(self._sums)

    def _word(self, a: Rows, b: Levels, where: tuple[Any, Any, Any], sums: list[list[Any]]) -> None:
        if not self._paired:
            super()._word(a, b, where, sums)
            return
        words = [
            T.Bind(as_type(self._columns(a, t, *where[1:]), "int64x2")) for t in range(len(self._sums))
        ]
        for half in range(2):
            pairs = [
                T.Bind(as_type(shuffle(words[t : t + 2], [half, 2 + half]), "int8x16"))
                for t in range(0, len(words), 2)
            ]
            for part in range(PARTS):
                quads = [
                    T.Bind(as_type(self._levels(b, where, 2 * half + i, part), "int32x4")) for i in range(2)
                ]
                for two, lanes in enumerate(((0, 4, 1, 5), (2, 6, 3, 7))):
                    rows = T.Bind(as_type(shuffle(quads, lanes), "int8x16"))
                    for row, pair in zip(sums, pairs, strict=True):
                        into = row[2 * part + two]
                        total = intrinsic(
                            "int32x4", "llvm.aarch64.neon.smmla", load(into, (0,), 4), pair, rows
                        )
                        store(into, (0,), total, 4)

    def _finished(self, sums: list[list[Any]], token: int) -> list[Any]:
        if not self._paired:
            return super()._finished(sums, token)
        both = [T.Bind(load(buffer, (0,), 4)) for buffer in sums[token // 2]]
        odd = 2 * (token % 2)
        return [
            T.Bind(shuffle(both[i : i + 2], [odd, odd + 1, 4 + odd, 5 + odd])) for i in range(0, len(both), 2)
        ]
