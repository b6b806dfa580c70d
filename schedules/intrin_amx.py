# SPDX-License-Identifier: Apache-2.0
"""AMX tiles: tdpbssd adds the products of 16 tokens x 64 columns with 64 columns x 16 rows, exact in int32.

A thread configures its tile registers once (``tile_session``); nothing may use them outside. TVM sizes a
buffer by the elements that it sees used, and tile instructions hide theirs: what a tile stores must also be
loaded, what it loads also be stored, element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .intrin_dot_x86 import Levels, Rows
from .level_packing import TILE_BYTES, TILE_COLUMNS
from .packing import TILE_ROWS
from .tir import T, load, put, scratch, splat, store

TOKENS = 16
"""Tokens of one tile."""
ROW_BYTES = 64
"""Bytes in a row of a tile register: 64 columns of a token, 16 rows x 4 columns of levels, or 16 sums."""


class AmxDot:
    """The dot product of ``intrin_dot_x86`` for up to 16 tokens, a number that may be known only at run time.

    Used as the others are, but inside :meth:`session`, and with :meth:`finish` before ``total``.
    """

    _A, _B = 4, (5, 6, 7)

    def __init__(self, vectors: int = 4) -> None:
        self._vectors = vectors

    @contextmanager
    def session(self, tokens: Any) -> Iterator[None]:
        """Tile registers for ``tokens`` rows of A (1 to 16), given back at the end."""
        self._sums = T.alloc_buffer([self._vectors, TOKENS, TILE_ROWS], "int32", align=64, layout=None)
        with tile_session(tokens, levels=self._B):
            yield

    def begin(self) -> None:
        """Clears the sums."""
        for v in range(self._vectors):
            tile_call("tilezero", T.int8(v))

    def accumulate(
        self, a: Rows, b: Levels, steps: Any, beside: Callable[[Any], None] | None = None
    ) -> None:
        """Adds ``steps`` steps of 64 columns; ``beside(step)`` emits what else happens in each."""
        width = int(a.buffer.shape[-1])
        with T.serial(0, steps) as s:
            if beside is not None:
                beside(s)
            load_tile(self._A, a.buffer, (a.row, a.column + TILE_COLUMNS * s), width)
            for v in range(self._vectors):
                register = self._B[v % len(self._B)]
                load_tile(register, b.buffer, b.at(v, s, 0))
                tile_call("tdpbssd", T.int8(v), T.int8(self._A), T.int8(register))

    def finish(self) -> None:
        """Moves the sums to memory."""
        for v in range(self._vectors):
            store_tile(v, self._sums, (v, 0, 0))

    def total(self, token: Any, vector: int) -> Any:
        """int32x16: the sums of one token with rows 16 * vector .. 16 * vector + 15."""
        return load(self._sums, (vector, token, 0), 16)


@contextmanager
def tile_session(tokens: Any, levels: Sequence[int]) -> Iterator[None]:
    """Configures the eight tile registers of this thread: ``tokens`` rows, 16 in those that hold levels."""
    config = scratch((64,), "uint8")
    store(config, (0,), splat(T.uint8(0), 64), 64)
    put(config, (0,), T.uint8(1))
    for tile in range(8):
        put(config, (16 + 2 * tile,), T.uint8(ROW_BYTES))
        put(config, (48 + tile,), T.uint8(16) if tile in levels else T.Cast("uint8", tokens))
    tile_call("ldtilecfg", T.address_of(config[0]))
    yield
    tile_call("tilerelease")


def load_tile(
    register: int, buffer: Any, where: Sequence[Any], stride: int = ROW_BYTES, *, once: bool = False
) -> None:
    """Loads rows of 64 bytes that lie ``stride`` bytes apart; ``once`` keeps them out of the first cache."""
    name = "tileloaddt164" if once else "tileloadd64"
    tile_call(name, T.int8(register), T.address_of(buffer[tuple(where)]), T.int64(stride))


def store_tile(register: int, buffer: Any, where: Sequence[Any]) -> None:
    """Stores a tile register as 1024 consecutive bytes."""
    tile_call("tilestored64", T.int8(register), T.address_of(buffer[tuple(where)]), T.int64(ROW_BYTES))


def prefetch_panel(levels: Any, step: Sequence[Any], part: Any, parts: Any) -> None:
    """Asks for one of equal parts of a step of 32 rows in the second-level cache; nothing beyond the buffer.

    ``levels`` int8[panels, steps, 2, 1024] are read at ``step``, (panel, step).
    """
    share = T.floordiv(2 * TILE_BYTES // ROW_BYTES - 1 + parts, parts)
    prefetch(levels, (*step, 0, ROW_BYTES * part * share), share)


def prefetch(buffer: Any, where: Sequence[Any], lines: Any) -> None:
    """Asks for ``lines`` lines of 64 bytes of an int8 buffer from ``where`` on in the second-level cache."""
    read, second_level, data = T.int32(0), T.int32(2), T.int32(1)
    *outer, first = where
    with T.serial(0, lines) as i:
        address = T.address_of(buffer[(*outer, first + ROW_BYTES * i)])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", address, read, second_level, data))


def tile_call(name: str, *arguments: Any) -> None:
    """One AMX instruction."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


__all__ = [
    "TILE_BYTES",
    "TOKENS",
    "AmxDot",
    "load_tile",
    "prefetch",
    "prefetch_panel",
    "store_tile",
    "tile_call",
    "tile_session",
]
