# SPDX-License-Identifier: Apache-2.0
"""The integer product on AMX tiles: tdpbssd multiplies 16 tokens x 64 columns by 64 columns x 16 rows.

Up to 16 tokens go straight through (``_few``). More are copied into tiles once, and panels of 32 rows
meet pairs of token tiles in four accumulators (``_many``). While the tile unit works on one pair, the
vector unit finishes the pair before it and expands the next panel from its planes; the panel that was
read last is overwritten in place, so that it stays in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .dequant_finish import Finish
from .dequant_spec import STEP_QUADS, Buffers, DequantSpec, worth_threads
from .dequant_vector import counted
from .intrin_dot_x86 import QUADS, VECTORS, AmxDot, Levels, Rows, load_tile, tile_call, tile_session
from .intrin_expand_x86 import Planes, VbmiExpansion
from .level_packing import QUAD
from .packing import BLOCK_ROWS
from .tir import T, isplat, load, store

TOKENS = 16
"""Tokens of one tile."""
PAIR = 2 * TOKENS
PANEL = 32
"""Rows of one panel: two tiles."""
MOST_TOKENS = 256
"""Tokens that are copied into tiles at once."""
CHUNK_STEPS = 16
"""Steps of 64 columns after which sums go to memory, so that a panel stays in the first-level cache."""
TILE_BYTES = 1024
PARTS = 8
"""Pieces that the panels are spread over threads in."""


def amx_product(spec: DequantSpec, buffers: Buffers, m: Any) -> None:
    """Emits the product of all tokens."""
    with T.serial(0, T.floordiv(m + (MOST_TOKENS - 1), MOST_TOKENS)) as i:
        first = T.Bind(i * MOST_TOKENS)
        count = T.Bind(T.min(m - first, T.int64(MOST_TOKENS)))
        with T.If(count <= TOKENS):
            with T.Then():
                _Few(spec, buffers, first, count).emit()
            with T.Else():
                _Many(spec, buffers, first, count).emit()


class _Few:
    """Emits the product of 1 to 16 tokens."""

    def __init__(self, spec: DequantSpec, buffers: Buffers, first: Any, count: Any) -> None:
        self._spec, self._b, self._first, self._count = spec, buffers, first, count

    def emit(self) -> None:
        spec = self._spec
        parts = min(PARTS, spec.blocks) if worth_threads(spec) else 1
        with (T.parallel if parts > 1 else T.serial)(0, parts) as part:
            dot = AmxDot()
            sums = _workspace((TOKENS, BLOCK_ROWS), "int32") if spec.groups > 1 else None
            self._ring = _workspace((2, QUADS, QUAD * BLOCK_ROWS), "int8") if spec.planes else None
            with dot.session(self._count), T.serial(_share(spec.blocks, part, parts), _share(spec.blocks, part + 1, parts)) as block:
                self._block(dot, block, sums)

    def _block(self, dot: AmxDot, block: Any, sums: Any) -> None:
        spec = self._spec
        finish = Finish(spec, self._b, block, 0, VECTORS)
        with counted(spec.groups) as g:
            dot.begin()
            if spec.planes:
                self._planes(dot, block, g)
            else:
                columns = Rows(self._b.x, self._first, g * spec.quads * QUAD)
                dot.accumulate(columns, Levels(self._b.weights[0], (block,), g * spec.quads), spec.quads)
            dot.finish()
            if sums is not None:
                with T.serial(0, self._count) as t:
                    before = [T.Select(T.broadcast(g > 0, 16), load(sums, (t, 16 * v), 16), isplat(0)) for v in range(VECTORS)]
                    added = finish.add_group(self._first + t, g, [dot.total(t, v) for v in range(VECTORS)], before)
                    for v, value in enumerate(added):
                        store(sums, (t, 16 * v), value, 16)
        finish.bind()
        with T.serial(0, self._count) as t:
            found = [dot.total(t, v) if sums is None else load(sums, (t, 16 * v), 16) for v in range(VECTORS)]
            finish.token(self._first + t, found)

    def _planes(self, dot: AmxDot, block: Any, group: Any) -> None:
        """Expands one step of 64 columns ahead of the tiles."""
        spec, expand = self._spec, VbmiExpansion()
        keys, alphas = self._b.weights
        expand.begin(Planes(keys, alphas, block, group if spec.w_groups > 1 else 0, spec.bits))
        self._expand(expand, group, 0)
        with T.serial(0, spec.tile_steps) as s:
            with T.If(s + 1 < spec.tile_steps), T.Then():
                self._expand(expand, group, s + 1)
            columns = Rows(self._b.x, self._first, (group * spec.tile_steps + s) * QUADS * QUAD)
            dot.accumulate(columns, Levels(self._ring, (T.bitwise_and(s, 1),), 0), QUADS)

    def _expand(self, expand: VbmiExpansion, group: Any, step: Any) -> None:
        slot = T.bitwise_and(step, 1)
        with T.serial(0, 2) as half, T.serial(0, VECTORS) as tile:
            at = 2 * step + half
            with _guard(self._spec, at):

                def write(index: int, offset: Any, levels: Any, lanes: int) -> None:
                    store(self._ring, (slot, STEP_QUADS * half + index, 64 * tile + offset), levels, lanes)

                expand.tile(group * self._spec.key_steps + at, tile, write)


class _Many:
    """Emits the product of 17 to 256 tokens.

    A *job* is one panel in one chunk of columns; its *pairs* are 32 tokens each. Chunks are column groups,
    or, of one long group, pieces that the accumulators are reloaded for.
    """

    def __init__(self, spec: DequantSpec, buffers: Buffers, first: Any, count: Any) -> None:
        self._spec, self._b, self._first, self._count = spec, buffers, first, count
        self._grouped = spec.groups > 1
        self._chunks = spec.groups if self._grouped else -(-spec.tile_steps // CHUNK_STEPS)
        self._steps = spec.tile_steps if self._grouped else -(-spec.tile_steps // self._chunks)
        self._all_steps = spec.padded_k // (QUADS * QUAD)
        self._panels = -(-spec.n // PANEL)
        self._expand = VbmiExpansion()

    def emit(self) -> None:
        spec = self._spec
        self._a = _workspace((MOST_TOKENS // TOKENS, self._all_steps, TILE_BYTES), "int8")
        self._copy_tokens()
        parts = min(PARTS, self._panels) if worth_threads(spec) else 1
        with (T.parallel if parts > 1 else T.serial)(0, parts) as part:
            self._part(_share(self._panels, part, parts), _share(self._panels, part + 1, parts))

    def _copy_tokens(self) -> None:
        with T.serial(0, self._count) as t, T.serial(0, self._all_steps) as s:
            columns = load(self._b.x, (self._first + t, 64 * s), 64)
            store(self._a, (T.floordiv(t, TOKENS), s, 64 * T.floormod(t, TOKENS)), columns, 64)

    def _part(self, panel: Any, end: Any) -> None:
        spec = self._spec
        slots = MOST_TOKENS // PAIR if self._chunks > 1 and not self._grouped else 1
        self._sums = _workspace((slots, 4, TOKENS * 16), "int32")
        self._totals = _workspace((MOST_TOKENS, PANEL), "int32") if self._grouped else None
        self._levels = _workspace((self._steps, 2, TILE_BYTES), "int8") if spec.planes else None
        jobs = (panel * self._chunks, end * self._chunks)
        pairs = T.Bind(T.floordiv(self._count + (PAIR - 1), PAIR))
        with tile_session(T.int64(TOKENS)):
            if spec.planes:
                self._open(jobs[0])
                with T.serial(0, self._chunk_steps(jobs[0])) as s:
                    self._expand_step(jobs[0], s)
            with T.serial(*jobs) as job, T.serial(0, pairs) as pair:
                self._pair(job, pair, pairs, jobs)
            self._finish_units(jobs[1] - 1, pairs - 1, T.int64(0), T.int64(PAIR))

    def _pair(self, job: Any, pair: Any, pairs: Any, jobs: Any) -> None:
        steps = T.Bind(self._chunk_steps(job)) if self._uneven else self._steps
        self._load_sums(job, pair)
        before = T.Bind(T.Select(pair > 0, job, job - 1)), T.Bind(T.Select(pair > 0, pair, pairs) - 1)
        some = T.Bind(T.Select(T.Or(pair > 0, job > jobs[0]), T.int64(PAIR), T.int64(0)))
        rate = T.Bind(T.floordiv(PAIR - 1 + steps, steps)) if self._uneven else -(-PAIR // steps)
        second = pair * PAIR + TOKENS < self._count
        following = T.Bind(T.Select(T.And(pair == pairs - 1, job + 1 < jobs[1]), self._chunk_steps(job + 1), T.int64(0)))
        if self._spec.planes:
            with T.If(following > 0), T.Then():
                self._open(job + 1)
        with T.serial(0, steps) as s:
            self._multiply(job, pair, s, second)
            self._finish_units(*before, T.min(s * rate, some), T.min((s + 1) * rate, some))
            if self._spec.planes:
                with T.If(s < following), T.Then():
                    self._expand_step(job + 1, s)
        if self._spec.planes and self._uneven:
            with T.If(following > steps), T.Then(), T.serial(steps, following) as s:
                self._expand_step(job + 1, s)
        for tile in range(4):
            address = T.address_of(self._sums[self._slot(pair), tile, 0])
            tile_call("tilestored64", T.int8(tile), address, T.int64(64))

    @property
    def _uneven(self) -> bool:
        return self._all_steps % self._chunks != 0

    def _chunk_steps(self, job: Any) -> Any:
        if not self._uneven:
            return T.int64(self._steps)
        return T.min(T.int64(self._steps), self._all_steps - T.floormod(job, self._chunks) * self._steps)

    def _slot(self, pair: Any) -> Any:
        return pair if self._chunks > 1 and not self._grouped else 0

    def _load_sums(self, job: Any, pair: Any) -> None:
        def clear() -> None:
            for tile in range(4):
                tile_call("tilezero", T.int8(tile))

        if self._chunks == 1 or self._grouped:
            clear()
            return
        with T.If(T.floormod(job, self._chunks) == 0):
            with T.Then():
                clear()
            with T.Else():
                for tile in range(4):
                    load_tile(tile, self._sums, (self._slot(pair), tile, 0), 64)

    def _multiply(self, job: Any, pair: Any, s: Any, second: Any) -> None:
        """One step of 64 columns: tiles 0 to 3 are sums, 4 and 5 tokens, 6 and 7 rows."""
        step = T.Bind(T.floormod(job, self._chunks) * self._steps + s)
        load_tile(4, self._a, (2 * pair, step, 0), 64, once=True)
        self._load_levels(6, job, step, s, 0)
        tile_call("tdpbssd", T.int8(0), T.int8(4), T.int8(6))
        self._load_levels(7, job, step, s, 1)
        tile_call("tdpbssd", T.int8(1), T.int8(4), T.int8(7))
        with T.If(second), T.Then():
            load_tile(5, self._a, (2 * pair + 1, step, 0), 64, once=True)
            tile_call("tdpbssd", T.int8(2), T.int8(5), T.int8(6))
            tile_call("tdpbssd", T.int8(3), T.int8(5), T.int8(7))

    def _load_levels(self, register: int, job: Any, step: Any, s: Any, tile: int) -> None:
        if self._spec.planes:
            load_tile(register, self._levels, (s, tile, 0), 64)
            return
        block, half = self._panel(job)
        where = (block, step * QUADS, QUAD * (PANEL * half + 16 * tile))
        load_tile(register, self._b.weights[0], where, QUAD * BLOCK_ROWS)

    def _panel(self, job: Any) -> tuple[Any, Any]:
        """Block of 64 rows and half of it."""
        panel = T.floordiv(job, self._chunks)
        return T.floordiv(panel, 2), T.floormod(panel, 2)

    def _open(self, job: Any) -> None:
        """Makes the codebooks of a job."""
        spec = self._spec
        block, half = self._panel(job)
        group = T.floormod(job, self._chunks) if spec.w_groups > 1 else 0
        keys, alphas = self._b.weights
        self._expand.begin(Planes(keys, alphas, block, group, spec.bits, 2 * half, 2))

    def _expand_step(self, job: Any, s: Any) -> None:
        chunk = T.floormod(job, self._chunks)
        first = T.Bind(2 * (chunk * self._steps + s))
        with T.serial(0, 2) as half, T.serial(0, 2) as tile:
            with _guard(self._spec, first + half):

                def write(index: int, offset: Any, levels: Any, lanes: int) -> None:
                    store(self._levels, (s, tile, 64 * (STEP_QUADS * half + index) + offset), levels, lanes)

                self._expand.tile(first + half, tile, write)

    def _finish_units(self, job: Any, pair: Any, start: Any, end: Any) -> None:
        """Tokens ``start`` to ``end`` of a pair whose sums are in memory."""
        block, half = self._panel(job)
        chunk = T.Bind(T.floormod(job, self._chunks))
        finish = Finish(self._spec, self._b, block, PANEL * half, 2)
        last = T.min(end, self._count - pair * PAIR)
        if self._chunks > 1 and not self._grouped:
            last = T.Select(chunk == self._chunks - 1, last, T.int64(0))
        finish.bind()
        with T.serial(start, T.max(last, start)) as t:
            row, place = T.Bind(pair * PAIR + t), 16 * T.floormod(t, TOKENS)
            values = [load(self._sums, (self._slot(pair), 2 * T.floordiv(t, TOKENS) + v, place), 16) for v in range(2)]
            if not self._grouped:
                finish.token(self._first + row, values)
                return
            self._add_group(finish, chunk, row, values)

    def _add_group(self, finish: Finish, chunk: Any, row: Any, values: list[Any]) -> None:
        before = [T.Select(T.broadcast(chunk > 0, 16), load(self._totals, (row, 16 * v), 16), isplat(0)) for v in range(2)]
        added = [T.Bind(v) for v in finish.add_group(self._first + row, chunk, values, before)]
        with T.If(chunk == self._chunks - 1):
            with T.Then():
                finish.token(self._first + row, added)
            with T.Else():
                for v, value in enumerate(added):
                    store(self._totals, (row, 16 * v), value, 16)


def _guard(spec: DequantSpec, key_step: Any) -> Any:
    """Runs what follows only where the keys hold this step: a last tile of 64 columns may lack half."""
    from contextlib import ExitStack

    stack = ExitStack()
    if spec.key_steps % 2:
        stack.enter_context(T.If(key_step < spec.key_steps))
        stack.enter_context(T.Then())
    return stack


def _share(total: int, part: Any, parts: int) -> Any:
    """First item of one of equal parts."""
    return T.int64(0) if parts == 1 and part == 0 else T.floordiv(part * total, parts)


def _workspace(shape: tuple[int, ...], dtype: str) -> Any:
    """Memory from the thread's pool; above 1 KB TVM allocates there."""
    return T.alloc_buffer(list(shape), dtype, align=64, layout=None)
