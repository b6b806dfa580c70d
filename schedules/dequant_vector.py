# SPDX-License-Identifier: Apache-2.0
"""The integer product on vector instructions: panels of 32 rows, tokens in tiles that registers hold.

Planes are expanded a panel at a time for all tokens, into memory that stays in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .dequant_finish import Finish
from .dequant_spec import MOST_TOKENS, Buffers, Chunks, DequantSpec, Tokens, worth_threads
from .intrin_dot_x86 import DotProduct, Levels, Rows, dot_product, preferred_bias
from .intrin_expand_x86 import GROUPS, Expansion, Planes, expansion
from .level_packing import TILE_BYTES, TILE_COLUMNS
from .schedule import DEQUANT_RULE, DequantSchedule
from .tir import T, isplat, load, store

VECTORS = 2
"""Vectors of 16 rows in a panel."""


def vector_product(
    spec: DequantSpec,
    isa: str,
    buffers: Buffers,
    tokens: Tokens,
    schedule: DequantSchedule = DEQUANT_RULE,
) -> None:
    """Emits the product of a piece of the tokens."""
    loop = T.parallel if worth_threads(spec, schedule) else T.serial
    with loop(0, spec.panels) as panel:
        _Panel(spec, isa, buffers, tokens, panel, schedule).emit()


def panel_dot(spec: DequantSpec, isa: str) -> DotProduct:
    """The dot products of a panel."""
    return dot_product(isa, VECTORS, preferred_bias(isa) if spec.planes else 0)


def level_tokens(spec: DequantSpec, isa: str) -> tuple[int, ...]:
    """Sizes of the token tiles where the schedule leaves them to the level."""
    return panel_dot(spec, isa).token_tiles


class _Panel:
    """Emits one panel for all tokens of a piece, chunk by chunk of its columns."""

    def __init__(
        self,
        spec: DequantSpec,
        isa: str,
        buffers: Buffers,
        tokens: Tokens,
        panel: Any,
        schedule: DequantSchedule,
    ) -> None:
        self._spec, self._isa, self._b, self._tokens, self._panel = spec, isa, buffers, tokens, panel
        self._schedule = schedule
        self._chunks = Chunks.of(spec, schedule.chunk_steps)
        self._finish = Finish(spec, buffers, tokens, panel, range(VECTORS))

    def emit(self) -> None:
        if self._chunks.count > 1:
            self._sums = workspace((MOST_TOKENS, 16 * VECTORS), "int32")
        if self._spec.planes:
            self._expanded = workspace((1, self._chunks.steps, 2, TILE_BYTES), "int8")
        self._finish.bind()
        with counted(self._chunks.count) as chunk:
            if self._spec.planes:
                self._expand(chunk)
            self._tiles(chunk)

    def _tiles(self, chunk: Any) -> None:
        done: Any = T.int64(0)
        for tokens in self._schedule.tokens or level_tokens(self._spec, self._isa):
            count = T.floordiv(self._tokens.count - done, tokens)
            with T.serial(0, count) as i:
                self._tile(chunk, T.Bind(done + i * tokens), tokens)
            done = T.Bind(done + count * tokens)

    def _dot(self) -> DotProduct:
        return panel_dot(self._spec, self._isa)

    def _expand(self, chunk: Any) -> None:
        expand, first = expansion(self._isa, preferred_bias(self._isa)), chunk * self._chunks.steps
        expand.begin(panel_planes(self._spec, self._b, self._panel, chunk))
        with T.serial(0, self._chunks.length(chunk)) as s:
            expand_step(expand, self._spec, first + s, range(VECTORS), self._expanded, (0, s))

    def _tile(self, chunk: Any, token: Any, tokens: int) -> None:
        dot, first = self._dot(), chunk * self._chunks.steps
        levels = Levels(self._b.weights[0], (), self._panel, first)
        if self._spec.planes:
            levels = Levels(self._expanded, (), 0, 0)
        dot.begin(tokens)
        columns = Rows(self._b.x, self._tokens.first + token, first * TILE_COLUMNS)
        dot.accumulate(columns, levels, self._chunks.length(chunk))
        for t in range(tokens):
            self._add(chunk, token + t, [dot.total(t, v) for v in range(VECTORS)])

    def _add(self, chunk: Any, token: Any, values: list[Any]) -> None:
        """Adds a chunk's sums of one token to those of the chunks before; ends with the last."""
        if self._chunks.count == 1:
            self._finish.token(token, values)
            return
        first = T.broadcast(chunk == 0, 16)
        before = [T.Select(first, isplat(0), load(self._sums, (token, 16 * v), 16)) for v in range(VECTORS)]
        if self._chunks.grouped:
            values = self._finish.add_group(token, chunk, values, before)
        else:
            values = [value + old for value, old in zip(values, before, strict=True)]
        values = [T.Bind(value) for value in values]
        with T.If(chunk == self._chunks.count - 1):
            with T.Then():
                self._finish.token(token, values)
            with T.Else():
                for v, value in enumerate(values):
                    store(self._sums, (token, 16 * v), value, 16)


def panel_planes(spec: DequantSpec, buffers: Buffers, panel: Any, group: Any, tiles: int = VECTORS) -> Planes:
    """The planes of row tiles from a panel's first on, in one column group."""
    keys, alphas = buffers.weights
    block, half = T.floordiv(panel, 2), T.floormod(panel, 2)
    return Planes(keys, alphas, block, group if spec.w_groups > 1 else 0, spec.bits, 2 * half, tiles)


def expand_step(
    expand: Expansion, spec: DequantSpec, step: Any, tiles: range, out: Any, where: tuple[Any, ...]
) -> None:
    """Expands one step of 64 columns of row tiles into ``out[*where, 0, :]``, ``out[*where, 1, :]``.

    Steps count from the first column on. The keys of the last one may lack its second half: those columns
    have activations of zero.
    """
    for half in range(2):
        at = 2 * step + half
        guarded = spec.groups == 1 and spec.key_steps % 2 == 1 and half == 1
        with ExitStack() as stack:
            if guarded:
                stack.enter_context(T.If(at < spec.key_steps))
                stack.enter_context(T.Then())
            tile = stack.enter_context(T.serial(tiles.start, tiles.stop))

            def write(
                quad: int, offset: Any, levels: Any, lanes: int, half: int = half, tile: Any = tile
            ) -> None:
                byte = 64 * (GROUPS * half + quad) + offset
                store(out, (*where, tile - tiles.start, byte), levels, lanes)

            expand.tile(at, tile, write)


def workspace(shape: tuple[int, ...], dtype: str) -> Any:
    """Memory from the thread's pool: where TVM puts buffers of 1 KB and more."""
    return T.alloc_buffer(list(shape), dtype, align=64, layout=None)


@contextmanager
def counted(extent: int) -> Iterator[Any]:
    """A serial loop; a single pass needs none and keeps its index a constant."""
    if extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as i:
            yield i
