# SPDX-License-Identifier: Apache-2.0
"""The integer product on AMX tiles: tdpbssd multiplies 16 tokens x 64 columns by 64 columns x 16 rows.

Up to 16 tokens go straight through (``_Few``). More are copied into tiles once, and panels of 32 rows meet
pairs of token tiles in four accumulators (``_Many``; column groups: ``dequant_amx_groups``). While the tile
unit works on one pair, the vector unit finishes the pair before it and expands the next panel from its
planes; the panel that was read last is overwritten in place, so that it stays in the first-level cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .dequant_amx_groups import grouped_product
from .dequant_finish import Finish
from .dequant_spec import MOST_TOKENS, Buffers, Chunks, DequantSpec, Tokens
from .dequant_tiles import panel_parts, share, token_tiles
from .dequant_vector import counted, expand_step, panel_planes, workspace
from .intrin_amx import TOKENS, AmxDot, load_tile, prefetch_panel, store_tile, tile_call, tile_session
from .intrin_dot_x86 import Levels, Rows
from .intrin_expand_x86 import VbmiExpansion
from .level_packing import TILE_BYTES, TILE_COLUMNS
from .tir import T, isplat, load, store

PAIR = 2 * TOKENS
FEW_VECTORS = 4
"""Vectors of 16 rows that few tokens meet at once."""


def amx_product(spec: DequantSpec, buffers: Buffers, tokens: Tokens) -> None:
    """Emits the product of a piece of the tokens."""
    with T.If(tokens.count <= TOKENS):
        with T.Then():
            _Few(spec, buffers, tokens).emit()
        with T.Else():
            if spec.groups > 1:
                grouped_product(spec, buffers, tokens)
            else:
                _Many(spec, buffers, tokens).emit()


class _Few:
    """Emits the product of 1 to 16 tokens: pairs of panels, planes expanded one step ahead of the tiles."""

    def __init__(self, spec: DequantSpec, buffers: Buffers, tokens: Tokens) -> None:
        self._spec, self._b, self._tokens = spec, buffers, tokens
        self._first, self._count = tokens.first, tokens.count

    def emit(self) -> None:
        spec = self._spec
        parts = panel_parts(spec)
        with (T.parallel if parts > 1 else T.serial)(0, parts) as part:
            self._dot = AmxDot(FEW_VECTORS)
            if spec.groups > 1:
                self._sums = workspace((TOKENS, 16 * FEW_VECTORS), "int32")
            if spec.planes:
                self._ring = workspace((2, 2, 1, 2, TILE_BYTES), "int8")
            with self._dot.session(self._count), T.serial(*share(spec.blocks, part, parts)) as block:
                self._block(block)

    def _block(self, block: Any) -> None:
        spec, dot = self._spec, self._dot
        finish = Finish(spec, self._b, self._tokens, 2 * block, range(FEW_VECTORS))
        with counted(spec.groups) as g:
            dot.begin()
            if spec.planes:
                self._planes(block, g)
            else:
                columns = Rows(self._b.x, self._first, g * spec.tile_steps * TILE_COLUMNS)
                levels = Levels(self._b.weights[0], (), 2 * block, g * spec.tile_steps)
                dot.accumulate(columns, levels, spec.tile_steps, partial(self._ask, block, g))
            dot.finish()
            if spec.groups > 1:
                self._add_group(finish, g)
        finish.bind()
        with T.serial(0, self._count) as t:
            finish.token(t, self._totals(t))

    def _ask(self, block: Any, group: Any, step: Any) -> None:
        """Prefetches the levels that the next block reads at a step."""
        at = group * self._spec.tile_steps + step
        for panel in range(2):
            prefetch_panel(self._b.weights[0], (2 * (block + 1) + panel, at), 0, 1)

    def _totals(self, token: Any) -> list[Any]:
        if self._spec.groups > 1:
            return [load(self._sums, (token, 16 * v), 16) for v in range(FEW_VECTORS)]
        return [self._dot.total(token, v) for v in range(FEW_VECTORS)]

    def _add_group(self, finish: Finish, group: Any) -> None:
        first = T.broadcast(group == 0, 16)
        with T.serial(0, self._count) as t:
            before = [T.Select(first, isplat(0), old) for old in self._totals(t)]
            values = [self._dot.total(t, v) for v in range(FEW_VECTORS)]
            for v, value in enumerate(finish.add_group(t, group, values, before)):
                store(self._sums, (t, 16 * v), value, 16)

    def _planes(self, block: Any, group: Any) -> None:
        spec, expand = self._spec, VbmiExpansion()
        expand.begin(panel_planes(spec, self._b, 2 * block, group, FEW_VECTORS))
        self._expand(expand, group, 0)
        with T.serial(0, spec.tile_steps) as s:
            with T.If(s + 1 < spec.tile_steps), T.Then():
                self._expand(expand, group, s + 1)
            columns = Rows(self._b.x, self._first, (group * spec.tile_steps + s) * TILE_COLUMNS)
            self._dot.accumulate(columns, Levels(self._ring, (T.bitwise_and(s, 1),), 0, 0), 1)

    def _expand(self, expand: VbmiExpansion, group: Any, step: Any) -> None:
        for half in range(2):
            where = (T.bitwise_and(step, 1), half, 0)
            expand_step(
                expand,
                self._spec,
                group * self._spec.tile_steps + step,
                range(2 * half, 2 * half + 2),
                self._ring,
                where,
            )


class _Many:
    """Emits the product of 17 to 256 tokens in one group of columns.

    A *job* is one panel in one chunk of columns; its *pairs* are 32 tokens each. For the chunks after the
    first the accumulators are reloaded.
    """

    def __init__(self, spec: DequantSpec, buffers: Buffers, tokens: Tokens) -> None:
        self._spec, self._b, self._tokens = spec, buffers, tokens
        self._first, self._count = tokens.first, tokens.count
        self._chunks = Chunks.of(spec)
        self._reloads = self._chunks.count > 1
        self._expand = VbmiExpansion()

    def emit(self) -> None:
        spec = self._spec
        self._a = token_tiles(self._b, self._tokens, self._chunks.all_steps)
        parts = panel_parts(spec)
        with (T.parallel if parts > 1 else T.serial)(0, parts) as part:
            self._part(*share(spec.panels, part, parts))

    def _part(self, panel: Any, end: Any) -> None:
        spec = self._spec
        self._sums = workspace((MOST_TOKENS // PAIR if self._reloads else 1, 4, TOKENS, 16), "int32")
        if spec.planes:
            self._levels = workspace((self._chunks.steps, 2, TILE_BYTES), "int8")
        jobs = (panel * self._chunks.count, end * self._chunks.count)
        pairs = self._pairs = T.Bind(T.floordiv(self._count + (PAIR - 1), PAIR))
        with tile_session(T.int64(TOKENS), levels=(6, 7)):
            if spec.planes:
                self._open(jobs[0])
                with T.serial(0, self._length(jobs[0])) as s:
                    self._expand_step(jobs[0], s)
            with T.serial(*jobs) as job, T.serial(0, pairs) as pair:
                self._pair(job, pair, pairs, jobs)
            self._finish_units(jobs[1] - 1, pairs - 1, T.int64(0), T.int64(PAIR))

    def _pair(self, job: Any, pair: Any, pairs: Any, jobs: Any) -> None:
        """Multiplies a pair, finishes the one before it, expands the next job beside the last pair."""
        steps = T.Bind(self._length(job))
        self._load_sums(job, pair)
        before = T.Bind(T.Select(pair > 0, job, job - 1)), T.Bind(T.Select(pair > 0, pair, pairs) - 1)
        units = T.Bind(T.Select(T.Or(pair > 0, job > jobs[0]), T.int64(PAIR), T.int64(0)))
        rate = T.Bind(T.floordiv(PAIR - 1 + steps, steps))
        second = T.Bind(pair * PAIR + TOKENS < self._count)
        more = T.And(pair == pairs - 1, job + 1 < jobs[1])
        following = T.Bind(T.Select(more, self._length(job + 1), T.int64(0)))
        if self._spec.planes:
            with T.If(following > 0), T.Then():
                self._open(job + 1)
        with T.serial(0, steps) as s:
            self._multiply(job, pair, s, second)
            self._finish_units(*before, T.min(s * rate, units), T.min((s + 1) * rate, units))
            if self._spec.planes:
                with T.If(s < following), T.Then():
                    self._expand_step(job + 1, s)
        if self._spec.planes and self._chunks.uneven:
            with T.If(following > steps), T.Then(), T.serial(steps, following) as s:
                self._expand_step(job + 1, s)
        for tile in range(4):
            store_tile(tile, self._sums, (self._slot(pair), tile, 0, 0))

    def _at(self, job: Any) -> tuple[Any, Any]:
        """Panel and chunk of a job."""
        return T.floordiv(job, self._chunks.count), T.floormod(job, self._chunks.count)

    def _length(self, job: Any) -> Any:
        """Steps of a job."""
        return self._chunks.length(self._at(job)[1])

    def _slot(self, pair: Any) -> Any:
        return pair if self._reloads else 0

    def _load_sums(self, job: Any, pair: Any) -> None:
        """Clears the accumulators, or takes them up again from the chunk before."""

        def clear() -> None:
            for tile in range(4):
                tile_call("tilezero", T.int8(tile))

        if not self._reloads:
            clear()
            return
        with T.If(self._at(job)[1] == 0):
            with T.Then():
                clear()
            with T.Else():
                for tile in range(4):
                    load_tile(tile, self._sums, (pair, tile, 0, 0))

    def _multiply(self, job: Any, pair: Any, s: Any, second: Any) -> None:
        """One step of 64 columns: tiles 0 to 3 are sums, 4 and 5 tokens, 6 and 7 rows."""
        step = T.Bind(self._at(job)[1] * self._chunks.steps + s)
        load_tile(4, self._a, (2 * pair, step, 0), once=True)
        for tile in range(2):
            self._load_levels(6 + tile, job, step, s, tile)
            tile_call("tdpbssd", T.int8(tile), T.int8(4), T.int8(6 + tile))
        with T.If(second), T.Then():
            load_tile(5, self._a, (2 * pair + 1, step, 0), once=True)
            for tile in range(2):
                tile_call("tdpbssd", T.int8(2 + tile), T.int8(5), T.int8(6 + tile))
        if not self._spec.planes:
            panel = self._at(job)[0] + 1
            prefetch_panel(self._b.weights[0], (panel, step), pair, self._pairs)

    def _load_levels(self, register: int, job: Any, step: Any, s: Any, tile: int) -> None:
        if self._spec.planes:
            load_tile(register, self._levels, (s, tile, 0))
        else:
            load_tile(register, self._b.weights[0], (self._at(job)[0], step, tile, 0))

    def _open(self, job: Any) -> None:
        """Makes the codebooks of a job."""
        self._expand.begin(panel_planes(self._spec, self._b, *self._at(job)))

    def _expand_step(self, job: Any, s: Any) -> None:
        step = T.Bind(self._at(job)[1] * self._chunks.steps + s)
        expand_step(self._expand, self._spec, step, range(2), self._levels, (s,))

    def _finish_units(self, job: Any, pair: Any, start: Any, end: Any) -> None:
        """Tokens ``start`` to ``end`` of a pair whose sums are in memory."""
        chunk = T.Bind(self._at(job)[1])
        finish = Finish(self._spec, self._b, self._tokens, self._at(job)[0], range(2))
        last = T.min(end, self._count - pair * PAIR)
        if self._reloads:
            last = T.Select(chunk == self._chunks.count - 1, last, T.int64(0))
        finish.bind()
        with T.serial(start, T.max(last, start)) as t:
            row, half, place = T.Bind(pair * PAIR + t), T.floordiv(t, TOKENS), T.floormod(t, TOKENS)
            values = [load(self._sums, (self._slot(pair), 2 * half + v, place, 0), 16) for v in range(2)]
            finish.token(row, values)
