# SPDX-License-Identifier: Apache-2.0
"""The integer product on vector instructions: blocks of 64 rows, tokens in tiles that registers hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .dequant_finish import Finish
from .dequant_spec import STEP_QUADS, Buffers, DequantSpec, worth_threads
from .intrin_dot_x86 import VECTORS, Levels, Rows, dot_product
from .intrin_expand_x86 import Planes, expansion
from .level_packing import QUAD
from .packing import BLOCK_ROWS
from .tir import T, isplat, load, scratch, store


def vector_product(spec: DequantSpec, isa: str, buffers: Buffers, m: Any) -> None:
    """Emits the product of all tokens."""
    loop = T.parallel if worth_threads(spec) else T.serial
    with loop(0, spec.blocks) as block:
        _Block(spec, isa, buffers, block).emit(m)


class _Block:
    """Emits one block of 64 rows for all tokens."""

    def __init__(self, spec: DequantSpec, isa: str, buffers: Buffers, block: Any) -> None:
        self._spec, self._isa, self._b, self._block = spec, isa, buffers, block
        self._finish = Finish(spec, buffers, block, 0, VECTORS)

    def emit(self, m: Any) -> None:
        if self._spec.planes:
            quads = self._spec.groups * self._spec.quads
            self._expanded = T.alloc_buffer([quads, QUAD * BLOCK_ROWS], "int8", align=64, layout=None)
            self._expand()
        self._finish.bind()
        done: Any = T.int64(0)
        for tokens in dot_product(self._isa).token_tiles:
            count = T.floordiv(m - done, tokens)
            with T.serial(0, count) as i:
                self._tile(T.Bind(done + i * tokens), tokens)
            done = T.Bind(done + count * tokens)

    def _expand(self) -> None:
        spec, expand = self._spec, expansion(self._isa)
        keys, alphas = self._b.weights
        with counted(spec.groups) as g:
            expand.begin(Planes(keys, alphas, self._block, g if spec.w_groups > 1 else 0, spec.bits))
            with T.serial(0, spec.key_steps) as s, T.serial(0, VECTORS) as tile:
                quad = T.Bind(g * spec.quads + s * STEP_QUADS)

                def write(index: int, offset: Any, levels: Any, lanes: int) -> None:
                    store(self._expanded, (quad + index, 64 * tile + offset), levels, lanes)

                expand.tile(g * spec.key_steps + s, tile, write)

    def _levels(self, group: Any) -> Levels:
        quad = group * self._spec.quads
        if self._spec.planes:
            return Levels(self._expanded, (), quad)
        return Levels(self._b.weights[0], (self._block,), quad)

    def _tile(self, row: Any, tokens: int) -> None:
        dot, quads = dot_product(self._isa), self._spec.quads
        if self._spec.groups == 1:
            dot.begin(tokens)
            dot.accumulate(Rows(self._b.x, row, 0), self._levels(0), quads)
            for t in range(tokens):
                self._finish.token(row + t, [dot.total(t, v) for v in range(VECTORS)])
            return
        sums = [scratch((BLOCK_ROWS,), "int32") for _ in range(tokens)]
        for buffer in sums:
            _store_all(buffer, [isplat(0)] * VECTORS)
        with T.serial(0, self._spec.groups) as g:
            dot.begin(tokens)
            dot.accumulate(Rows(self._b.x, row, g * quads * QUAD), self._levels(g), quads)
            for t, buffer in enumerate(sums):
                values = [dot.total(t, v) for v in range(VECTORS)]
                _store_all(buffer, self._finish.add_group(row + t, g, values, _load_all(buffer)))
        for t, buffer in enumerate(sums):
            self._finish.token(row + t, _load_all(buffer))


def _load_all(buffer: Any) -> list[Any]:
    return [load(buffer, (16 * v,), 16) for v in range(VECTORS)]


def _store_all(buffer: Any, values: list[Any]) -> None:
    for v, value in enumerate(values):
        store(buffer, (16 * v,), value, 16)


@contextmanager
def counted(extent: int) -> Iterator[Any]:
    """A serial loop; a single pass needs none and keeps its index a constant."""
    if extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as i:
            yield i
