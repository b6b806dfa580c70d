# SPDX-License-Identifier: Apache-2.0
"""The integer product on AMX tiles for tokens whose column groups have exponents of their own.

More than 16 tokens: panels of 32 rows meet tiles of 16 tokens in *jobs* of a few column groups. The tile unit
leaves the sums of every group in memory; meanwhile the vector unit brings those of the job before, token by
token, to the exponent of the token. A job's groups are added in registers, so that the totals of a token are
loaded and stored once a job only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .dequant_finish import Finish
from .dequant_spec import Buffers, DequantSpec, Tokens
from .dequant_tiles import panel_parts, share, token_tiles
from .dequant_vector import expand_step, panel_planes, workspace
from .intrin_amx import TOKENS, load_tile, prefetch_panel, store_tile, tile_call, tile_session
from .intrin_expand_x86 import VbmiExpansion
from .level_packing import TILE_BYTES
from .rounding_shift import psrav
from .tir import T, isplat, load, splat, store

VECTORS = 2
"""Vectors of 16 rows in a panel, and accumulators of a group."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Some column groups of a panel for one tile of tokens; ``slot`` is the half of the sums it writes."""

    panel: Any
    tile: Any
    chunk: Any
    slot: Any


def grouped_product(spec: DequantSpec, buffers: Buffers, tokens: Tokens) -> None:
    """Emits the product of a piece of 17 to 256 tokens in column groups."""
    _Grouped(spec, buffers, tokens).emit()


def job_groups(groups: int) -> int:
    """Groups of a job: a divisor of ``groups``, even where that can be (see ``_Grouped``)."""
    return next(count for count in (4, 2, 3, 1) if groups % count == 0)


class _Grouped:
    """Emits it: accumulators 0 and 1 hold groups of even number, 2 and 3 odd ones.

    A group's sums go to memory when the products of the next are on their way: the store of a tile waits
    for its product, and the next product into the same tile would wait for the store.
    """

    def __init__(self, spec: DequantSpec, buffers: Buffers, tokens: Tokens) -> None:
        self._spec, self._b, self._tokens = spec, buffers, tokens
        self._steps = spec.groups * spec.tile_steps
        self._groups = job_groups(spec.groups)
        self._chunks = spec.groups // self._groups

    def emit(self) -> None:
        spec = self._spec
        self._a = token_tiles(self._b, self._tokens, self._steps)
        parts = panel_parts(spec)
        with (T.parallel if parts > 1 else T.serial)(0, parts) as part:
            self._part(*share(spec.panels, part, parts))

    def _part(self, first: Any, end: Any) -> None:
        self._sums = workspace((2, self._groups, VECTORS, TOKENS, 16), "int32")
        self._totals = workspace((TOKENS, 16 * VECTORS), "int32")
        if self._spec.planes:
            self._levels = workspace((self._steps, 2, TILE_BYTES), "int8")
        self._tiles = T.Bind(T.floordiv(self._tokens.count + (TOKENS - 1), TOKENS))
        with tile_session(T.int64(TOKENS), levels=(6, 7)):
            with T.serial(first, end) as panel:
                if self._spec.planes:
                    self._expand(panel)
                with T.serial(0, self._tiles) as tile, T.serial(T.int64(0), T.int64(self._chunks)) as chunk:
                    self._job(self._numbered(panel, tile, chunk), self._before(panel, tile, chunk), first)
            last = self._numbered(end - 1, self._tiles - 1, T.int64(self._chunks - 1))
            self._store(last, self._groups - 1)
            self._finish(last, T.int64(0), self._count(last))

    def _numbered(self, panel: Any, tile: Any, chunk: Any) -> _Job:
        number = (panel * self._tiles + tile) * self._chunks + chunk
        return _Job(panel, tile, chunk, T.Bind(T.bitwise_and(number, 1)))

    def _before(self, panel: Any, tile: Any, chunk: Any) -> _Job:
        """The job before; in another panel at the first tile's first chunk."""
        inside = T.Or(chunk > 0, tile > 0)
        earlier = T.Select(tile > 0, tile, self._tiles) - 1
        return self._numbered(
            T.Bind(T.Select(inside, panel, panel - 1)),
            T.Bind(T.Select(chunk > 0, tile, earlier)),
            T.Bind(T.Select(chunk > 0, chunk, T.int64(self._chunks)) - 1),
        )

    def _count(self, job: _Job) -> Any:
        """Tokens of a job."""
        return T.min(T.int64(TOKENS), self._tokens.count - job.tile * TOKENS)

    def _expand(self, panel: Any) -> None:
        """All levels of a panel from its planes."""
        spec, expand = self._spec, VbmiExpansion()
        if spec.w_groups == 1:
            expand.begin(panel_planes(spec, self._b, panel, 0))
            with T.serial(0, self._steps) as s:
                expand_step(expand, spec, s, range(2), self._levels, (s,))
            return
        with T.serial(0, spec.groups) as g:
            expand.begin(panel_planes(spec, self._b, panel, g))
            with T.serial(0, spec.tile_steps) as i:
                step = T.Bind(g * spec.tile_steps + i)
                expand_step(expand, spec, step, range(2), self._levels, (step,))

    def _job(self, job: _Job, before: _Job, first: Any) -> None:
        """Multiplies the groups of a job and finishes the tokens of the job before, if there is one."""
        units = T.Bind(T.Select(before.panel >= first, self._count(before), T.int64(0)))
        rate = -(-TOKENS // self._groups)
        for g in range(self._groups):
            earlier = (job, g - 1) if g else (before, self._groups - 1)
            free = self._groups % 2 == 1 and g == 0
            if free:
                self._store(*earlier)
            self._multiply(job, g)
            if not free:
                self._store(*earlier)
            self._finish(before, T.min(T.int64(rate * g), units), T.min(T.int64(rate * (g + 1)), units))

    def _accumulators(self, group: int) -> range:
        start = VECTORS * (group % 2)
        return range(start, start + VECTORS)

    def _store(self, job: _Job, group: int) -> None:
        for vector, register in enumerate(self._accumulators(group)):
            store_tile(register, self._sums, (job.slot, group, vector, 0, 0))

    def _multiply(self, job: _Job, group: int) -> None:
        """The sums of one group; register 4 or 5 holds tokens, 6 and 7 rows."""
        for register in self._accumulators(group):
            tile_call("tilezero", T.int8(register))
        columns, start = 4 + group % 2, job.chunk * self._groups + group
        with T.serial(0, self._spec.tile_steps) as i:
            step = T.Bind(start * self._spec.tile_steps + i)
            load_tile(columns, self._a, (job.tile, step, 0), once=True)
            for vector, register in enumerate(self._accumulators(group)):
                if self._spec.planes:
                    load_tile(6 + vector, self._levels, (step, vector, 0))
                else:
                    load_tile(6 + vector, self._b.weights[0], (job.panel, step, vector, 0))
                tile_call("tdpbssd", T.int8(register), T.int8(columns), T.int8(6 + vector))
            if not self._spec.planes:
                prefetch_panel(self._b.weights[0], (job.panel + 1, step), job.tile, self._tiles)

    def _finish(self, job: _Job, start: Any, end: Any) -> None:
        """Adds the sums of tokens ``start`` to ``end`` of a job to the totals; ends with the last chunk."""
        finish = Finish(self._spec, self._b, self._tokens, job.panel, range(VECTORS))
        finish.bind()
        with T.serial(start, T.max(end, start)) as t:
            row = T.Bind(job.tile * TOKENS + t)
            values = [load(self._totals, (t, 16 * v), 16) for v in range(VECTORS)]
            values = [T.Select(T.broadcast(job.chunk == 0, 16), isplat(0), value) for value in values]
            for g in range(self._groups):
                sums = [load(self._sums, (job.slot, g, v, t, 0), 16) for v in range(VECTORS)]
                values = self._add(finish, row, job.chunk * self._groups + g, sums, values)
            with T.If(job.chunk == self._chunks - 1):
                with T.Then():
                    finish.token(row, values)
                with T.Else():
                    for v, value in enumerate(values):
                        store(self._totals, (t, 16 * v), value, 16)

    def _add(self, finish: Finish, token: Any, group: Any, sums: list[Any], before: list[Any]) -> list[Any]:
        """As ``Finish.add_group``; one shift for a whole vector is vpsravd, half of what vpsrad costs."""
        if self._tokens.shifts is None:
            return [T.Bind(value) for value in finish.add_group(token, group, sums, before)]
        shift = T.Bind(splat(self._tokens.shifts[token, group]))
        return [T.Bind(old + psrav(value, shift)) for value, old in zip(sums, before, strict=True)]
