# SPDX-License-Identifier: Apache-2.0
"""The integer product on vector instructions: panels of 32 rows, tokens in tiles that registers hold.

Planes are expanded a panel at a time for all tokens, into memory that stays in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .dequant_finish import Finish
from .dequant_spec import Buffers, DequantSpec, Tokens, worth_threads
from .intrin_dot_x86 import DotProduct, Levels, Rows, dot_product, preferred_bias
from .intrin_expand_x86 import GROUPS, Expansion, Planes, expansion
from .level_packing import TILE_BYTES, TILE_COLUMNS
from .tir import T, isplat, load, scratch, store

VECTORS = 2
"""Vectors of 16 rows in a panel."""


def vector_product(spec: DequantSpec, isa: str, buffers: Buffers, tokens: Tokens) -> None:
    """Emits the product of a piece of the tokens."""
    loop = T.parallel if worth_threads(spec) else T.serial
    with loop(0, spec.panels) as panel:
        _Panel(spec, isa, buffers, tokens, panel).emit()


class _Panel:
    """Emits one panel for all tokens."""

    def __init__(self, spec: DequantSpec, isa: str, buffers: Buffers, tokens: Tokens, panel: Any) -> None:
        self._spec, self._isa, self._b, self._tokens, self._panel = spec, isa, buffers, tokens, panel
        self._finish = Finish(spec, buffers, tokens, panel, range(VECTORS))

    def emit(self) -> None:
        if self._spec.planes:
            steps = self._spec.groups * self._spec.tile_steps
            self._expanded = workspace((1, steps, 2, TILE_BYTES), "int8")
            self._expand()
        self._finish.bind()
        done: Any = T.int64(0)
        for tokens in self._dot().token_tiles:
            count = T.floordiv(self._tokens.count - done, tokens)
            with T.serial(0, count) as i:
                self._tile(T.Bind(done + i * tokens), tokens)
            done = T.Bind(done + count * tokens)

    def _dot(self) -> DotProduct:
        return dot_product(self._isa, VECTORS, preferred_bias(self._isa) if self._spec.planes else 0)

    def _expand(self) -> None:
        spec, expand = self._spec, expansion(self._isa, preferred_bias(self._isa))
        with counted(spec.groups) as g:
            expand.begin(panel_planes(spec, self._b, self._panel, g))
            with T.serial(0, spec.tile_steps) as s:
                where = (0, g * spec.tile_steps + s)
                expand_step(expand, spec, g, s, range(VECTORS), self._expanded, where)

    def _levels(self, group: Any) -> Levels:
        step = group * self._spec.tile_steps
        if self._spec.planes:
            return Levels(self._expanded, (), 0, step)
        return Levels(self._b.weights[0], (), self._panel, step)

    def _tile(self, token: Any, tokens: int) -> None:
        dot, steps, row = self._dot(), self._spec.tile_steps, self._tokens.first + token
        if self._spec.groups == 1:
            dot.begin(tokens)
            dot.accumulate(Rows(self._b.x, row, 0), self._levels(0), steps)
            for t in range(tokens):
                self._finish.token(token + t, [dot.total(t, v) for v in range(VECTORS)])
            return
        sums = [scratch((16 * VECTORS,), "int32") for _ in range(tokens)]
        for buffer in sums:
            _store_all(buffer, [isplat(0)] * VECTORS)
        with T.serial(0, self._spec.groups) as g:
            dot.begin(tokens)
            dot.accumulate(Rows(self._b.x, row, g * steps * TILE_COLUMNS), self._levels(g), steps)
            for t, buffer in enumerate(sums):
                values = [dot.total(t, v) for v in range(VECTORS)]
                _store_all(buffer, self._finish.add_group(token + t, g, values, _load_all(buffer)))
        for t, buffer in enumerate(sums):
            self._finish.token(token + t, _load_all(buffer))


def panel_planes(spec: DequantSpec, buffers: Buffers, panel: Any, group: Any, tiles: int = VECTORS) -> Planes:
    """The planes of row tiles from a panel's first on, in one column group."""
    keys, alphas = buffers.weights
    block, half = T.floordiv(panel, 2), T.floormod(panel, 2)
    return Planes(keys, alphas, block, group if spec.w_groups > 1 else 0, spec.bits, 2 * half, tiles)


def expand_step(
    expand: Expansion,
    spec: DequantSpec,
    group: Any,
    step: Any,
    tiles: range,
    out: Any,
    where: tuple[Any, ...],
) -> None:
    """Expands one step of 64 columns of row tiles into ``out[*where, 0, :]``, ``out[*where, 1, :]``.

    The keys of a last step may lack its second half: those columns have activations of zero.
    """
    for half in range(2):
        at = 2 * step + half
        guarded = spec.key_steps % 2 == 1 and half == 1
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

            expand.tile(group * spec.key_steps + at, tile, write)


def _load_all(buffer: Any) -> list[Any]:
    return [load(buffer, (16 * v,), 16) for v in range(VECTORS)]


def _store_all(buffer: Any, values: list[Any]) -> None:
    for v, value in enumerate(values):
        store(buffer, (16 * v,), value, 16)


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
