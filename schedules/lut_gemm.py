# SPDX-License-Identifier: Apache-2.0
"""Table product of binary-coded weights, for one token (GEMV) and for many.

Meaning: ``y[r, n] = act(bias[n] + sum_p sum_g alpha[p, n, g] * (table sums of plane p, group g) +
sum_g z[n, g] * (column sum of group g) + sum_k S[n, k] x[r, k])``, S the sparse outliers. A kernel call
serves several row *segments*, each with its own bit width and output, from one table: Q, K and V, or the word
clusters of an output projection. Keys are read once for up to four tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activation import reference as activation_reference
from .epilogue import Epilogue
from .intrin_exact import exact_sum
from .intrin_x86 import TILES, tile_sum
from .lut_table import ENTRIES, Tables, table_dtype
from .lut_table import reference as table_reference
from .outlier_loops import add_sparse_product
from .packing import BLOCK_ROWS, MU, STEP_COLUMNS, TILE_ROWS, BitPlanes, ColumnLayout, row_blocks
from .schedule import LUT_RULE, Schedule, TokenTile
from .segment import Segment, SegmentBuffers, pow2_factor, segment_params
from .tir import (
    KernelBuilder,
    T,
    body,
    fsplat,
    half_to_float,
    load,
    prefetch,
    put,
    scratch,
    splat,
    store,
    times,
)

NO_F16C = ("ssse3", "portable")
PARALLEL_BYTES = 1 << 19
"""Keys that a call must read before its row blocks are spread over threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LutSpec:
    """One table product: the structure only, no model's names, so that equal layers share code.

    Attributes:
        k: columns of every segment.
        outputs: columns of each output [m, n].
        segments: row segments in the order of their parameters.
        bias: per output, whether a bias[n] is added.
        activation: per output, a name of ``schedules.activation``.
    """

    k: int
    outputs: tuple[int, ...]
    segments: tuple[Segment, ...]
    bias: tuple[bool, ...]
    activation: tuple[str, ...]
    tables: Tables = "int8"

    @property
    def outliers(self) -> bool:
        """Whether any segment has some."""
        return any(segment.outliers for segment in self.segments)

    def layout(self, segment: Segment) -> ColumnLayout:
        return ColumnLayout(k=self.k, group_size=segment.group_size)

    @property
    def table_layout(self) -> ColumnLayout:
        """The columns' layout that all segments agree on."""
        layouts = [self.layout(s) for s in self.segments]
        if len({layout.table_key for layout in layouts}) != 1:
            raise ValueError("segments of one table product need one column layout")
        return layouts[0]


def worth_threads(spec: LutSpec, segment: Segment, schedule: Schedule = LUT_RULE) -> bool:
    """Whether a segment's row blocks are spread over threads."""
    blocks = row_blocks(segment.rows)
    if schedule.spread is not None:
        return blocks > 1 and schedule.spread
    nbytes = blocks * segment.bits * spec.layout(segment).steps * BLOCK_ROWS * 4
    return blocks > 1 and nbytes >= PARALLEL_BYTES


def row_tiles(spec: LutSpec, isa: str, tile: TokenTile) -> int:
    """Row tiles that a tile of tokens is summed with at once: what the ISA makes of the schedule's wish."""
    sums: Any = exact_sum(isa) if spec.tables == "exact" else tile_sum(isa)
    return sums.tiles(tile.tokens, tile.row_tiles)


def chunk_steps(spec: LutSpec, segment: Segment) -> int:
    """Steps of 32 columns that are summed before scales come in: passes of the innermost loop."""
    layout = spec.layout(segment)
    return (layout.padded_group if spec.tables == "exact" else layout.chunk) // STEP_COLUMNS


def reference(
    x: NDArray[np.float32], planes: Sequence[BitPlanes], spec: LutSpec, biases: Sequence[NDArray | None]
) -> list[NDArray[np.float32]]:
    """NumPy meaning of :func:`lut_gemm` including the tables; integer sums are exact.

    Returns:
        One float32[m, n] per output.
    """
    table, scale, sums = table_reference(x, spec.table_layout, spec.tables)
    outs = [np.zeros((x.shape[0], n), np.float32) for n in spec.outputs]
    for segment, weight in zip(spec.segments, planes, strict=True):
        y = _segment_reference(table, scale, sums, weight, spec.layout(segment))
        if weight.outliers is not None:
            y = y + _sparse_product(x, weight)
        outs[segment.output][:, segment.start : segment.start + segment.rows] = y
    for index, bias in enumerate(biases):
        if bias is not None:
            outs[index] = outs[index] + bias
        outs[index] = activation_reference(spec.activation[index], outs[index])
    return outs


def integer_reference(table: NDArray, weight: BitPlanes, layout: ColumnLayout) -> NDArray:
    """int32 (or float32 for exact tables) [m, bits, n, chunks]: look-ups added per chunk."""
    n, k = weight.shape
    bits = layout.pad(np.unpackbits(weight.planes, axis=2, count=k, bitorder="little"))
    keys = np.packbits(bits.reshape(weight.bits, n, -1, MU), axis=-1, bitorder="little")[..., 0]
    kind = np.int32 if table.dtype == np.int8 else np.float32
    picked = table[:, np.arange(keys.shape[2]), keys].astype(kind)
    return picked.reshape(*picked.shape[:3], layout.chunks, -1).sum(axis=-1, dtype=kind)


def _segment_reference(
    table: NDArray, scale: NDArray, sums: NDArray, weight: BitPlanes, layout: ColumnLayout
) -> NDArray[np.float32]:
    integers = integer_reference(table, weight, layout)
    scaled = integers.astype(np.float32) * scale[:, None, None, :]
    m, bits, n, chunks = scaled.shape
    per_group = scaled.reshape(m, bits, n, layout.groups, chunks // layout.groups).sum(axis=-1)
    y = np.einsum("mbng,bng->mn", per_group, weight.alphas())
    offsets = weight.float_offsets()
    if offsets is not None:
        group_sums = sums.reshape(sums.shape[0], layout.groups, -1).sum(axis=-1)
        y = y + group_sums @ offsets.T
    return y.astype(np.float32)


def _sparse_product(x: NDArray[np.float32], weight: BitPlanes) -> NDArray[np.float32]:
    """S x in the kernels' order: float32[m, n]."""
    n, k = weight.shape
    y = np.zeros((x.shape[0], n), np.float32)
    assert weight.outliers is not None
    for place, value in zip(weight.outliers.places, weight.outliers.values, strict=True):
        y[:, place // k] += np.float32(value) * x[:, place % k]
    return y


def lut_gemm(
    spec: LutSpec, isa: str, name: str = "lut_gemm", schedules: Sequence[Schedule] | None = None
) -> Any:
    """PrimFunc for any number of tokens m. The number of planes is read from the keys' shape, so that one
    kernel serves every bit width; the segments' ``bits`` only steer which calls are worth threads.
    ``schedules`` holds one schedule per segment; None is the rule.

    Parameters in order: table, scale, sums (of ``lut_table``); the activation x where a segment has outliers;
    per segment keys, scales and, where present, exponents, offsets and outliers; per output its bias where
    present; then the outputs float32[m, n].
    """
    kernel = KernelBuilder(name)
    layout = spec.table_layout
    with kernel.define():
        m = T.int64()
        table = kernel.param("table", (m, layout.padded_k // MU, ENTRIES), table_dtype(spec.tables))
        scale = kernel.param("scale", (m, layout.chunks))
        sums = kernel.param("sums", (m, layout.steps))
        x = kernel.param("x", (m, spec.k)) if spec.outliers else None
        weights = [segment_params(kernel, s, spec.k, i, T.int64()) for i, s in enumerate(spec.segments)]
        biases = [
            kernel.param(f"bias{i}", (n,)) if spec.bias[i] else None for i, n in enumerate(spec.outputs)
        ]
        outs = [kernel.param(f"y{i}", (m, n)) for i, n in enumerate(spec.outputs)]
        inputs = [table, scale, sums, *([] if x is None else [x])]
        inputs += [buffer for arrays in weights for buffer in arrays.present()]
        with body(outs, inputs + [b for b in biases if b is not None]):
            chosen = schedules or [LUT_RULE] * len(spec.segments)
            for segment, schedule, buffers in zip(spec.segments, chosen, weights, strict=True):
                emit = _SegmentEmitter(spec, segment, schedule, isa, (table, scale, sums, x), buffers)
                emit.rows(m, biases[segment.output], outs[segment.output])
    return kernel.result


class _SegmentEmitter:
    """Emits the loops of one segment: row blocks, then tokens in the tiles of its schedule."""

    def __init__(
        self,
        spec: LutSpec,
        segment: Segment,
        schedule: Schedule,
        isa: str,
        tables: Any,
        buffers: SegmentBuffers,
    ) -> None:
        self.spec, self.segment, self.schedule, self.isa = spec, segment, schedule, isa
        self.layout, self.exact = spec.layout(segment), spec.tables == "exact"
        self.table, self.scale, self.sums, self.x = tables
        self.keys, self.scales, self.exponents, self.offsets, *_ = buffers
        self.buffers = buffers

    def rows(self, m: Any, bias: Any, out: Any) -> None:
        blocks = row_blocks(self.segment.rows)
        loop = T.parallel if worth_threads(self.spec, self.segment, self.schedule) else T.serial
        with loop(0, blocks) as block:
            done: Any = T.int64(0)
            for tile in self.schedule.tiles:
                count = T.floordiv(m - done, tile.tokens)
                with T.serial(0, count) as i:
                    self._tile(block, done + i * tile.tokens, tile, bias, out)
                done = T.Bind(done + count * tile.tokens)

    def _tile(self, block: Any, row: Any, knobs: TokenTile, bias: Any, out: Any) -> None:
        """One block of 64 rows for the tokens of a tile starting at ``row``."""
        tokens = knobs.tokens
        acc = [scratch((BLOCK_ROWS,)) for _ in range(tokens)]
        for token in acc:
            for tile in range(TILES):
                store(token, (tile * TILE_ROWS,), fsplat(0.0), TILE_ROWS)
        with T.serial(0, self.keys.shape[1]) as plane, T.serial(0, self.layout.groups) as group:
            self._group(block, plane, group, row, acc, knobs)
        if self.offsets is not None:
            self._add_offsets(block, row, acc)
        if self.segment.outliers:
            f16c = self.isa not in NO_F16C
            add_sparse_product(self.segment, self.buffers, self.spec.k, block, self.x, row, acc, f16c=f16c)
        for t in range(tokens):
            self._store(block, row + t, acc[t], bias, out)

    def _group(
        self, block: Any, plane: Any, group: Any, row: Any, acc: list[Any], knobs: TokenTile
    ) -> None:
        """Adds the columns of one group, times their alphas, to ``acc``."""
        sums: Any = exact_sum(self.isa) if self.exact else tile_sum(self.isa)
        together = row_tiles(self.spec, self.isa, knobs)
        # Exact tables have no scale per chunk: the whole group is one chunk.
        chunks = 1 if self.exact else self.layout.chunks // self.layout.groups
        with _loop(TILES // together) as part:
            first = part * together
            rows = [(first + tile) * TILE_ROWS for tile in range(together)]

            def alpha(tile: int) -> Any:
                """The scales of a tile; read after the look-ups, which need the registers."""
                at = rows[tile]
                stored = load(self.scales, (block, plane, group, at), 16)
                return T.Bind(self._float32(stored, (block, group, at)))

            if chunks == 1:
                where = [block, plane, group, first]
                self._chunk(sums, where, together, row, acc, first, alpha, knobs)
                return
            partial = [scratch((together * TILE_ROWS,)) for _ in acc]
            for token in partial:
                for tile in range(together):
                    store(token, (tile * TILE_ROWS,), fsplat(0.0), TILE_ROWS)
            with T.serial(0, chunks) as c:
                where = [block, plane, group * chunks + c, first]
                self._chunk(sums, where, together, row, partial, 0, None, knobs)
            for tile in range(together):
                scales = alpha(tile)
                for into, token in zip(acc, partial, strict=True):
                    _add(into, first + tile, times(scales, load(token, (tile * TILE_ROWS,), TILE_ROWS)))

    def _chunk(
        self,
        sums: Any,
        where: list[Any],
        together: int,
        row: Any,
        acc: list[Any],
        base: Any,
        alpha: Any,
        knobs: TokenTile,
    ) -> None:
        """Adds one chunk of columns, scaled to float, to the tiles of ``acc`` from ``base`` on."""
        block, plane, chunk, first = where
        steps = chunk_steps(self.spec, self.segment)
        tables = [(self.table, row + t) for t in range(len(acc))]
        sums.begin(len(acc), together, steps)
        unroll = gcd(knobs.unroll, steps)
        with _loop(steps // unroll) as s:
            for part in range(unroll):
                step = T.Bind(chunk * steps + s * unroll + part)
                place = [block, plane, step, first]
                if knobs.prefetch:
                    for tile in range(together):
                        prefetch(self.keys, [*place[:-1], first + tile, knobs.prefetch])
                sums.step(self.keys, place, tables, step * (STEP_COLUMNS // MU))
        alphas = None if alpha is None else [alpha(tile) for tile in range(together)]
        for t, into in enumerate(acc):
            scale = None if self.exact else T.Bind(splat(self.scale[row + t, chunk]))
            for tile in range(together):
                value = sums.total(t, tile)
                value = value if scale is None else times(T.Cast("float32x16", value), scale)
                _add(into, base + tile, value if alphas is None else times(alphas[tile], value))

    def _add_offsets(self, block: Any, row: Any, acc: list[Any]) -> None:
        steps = self.layout.padded_group // STEP_COLUMNS
        with T.serial(0, self.layout.groups) as g:
            places = [(block, g, tile * TILE_ROWS) for tile in range(TILES)]
            zs = [T.Bind(self._float32(load(self.offsets, place, 16), place)) for place in places]
            for t, token in enumerate(acc):
                total = scratch((1,))
                put(total, (0,), T.float32(0))
                with T.serial(0, steps) as s:
                    put(total, (0,), total[0] + self.sums[row + t, g * steps + s])
                wide = T.Bind(splat(total[0]))
                for tile in range(TILES):
                    _add(token, tile, times(zs[tile], wide))

    def _float32(self, value: Any, place: Any) -> Any:
        """16 scales or offsets as float32; those with exponents have them at ``place``."""
        if self.segment.scale_dtype == "float32":
            return value
        if self.exponents is not None:
            return T.Cast("float32x16", value) * pow2_factor(load(self.exponents, place, 16), 16)
        return half_to_float(value, 16) if self.isa in NO_F16C else T.Cast("float32x16", value)

    def _store(self, block: Any, row: Any, acc: Any, bias: Any, out: Any) -> None:
        end = Epilogue(
            out=out,
            bias=bias,
            activation=self.spec.activation[self.segment.output],
            start=self.segment.start,
            columns=self.segment.rows,
            block=BLOCK_ROWS,
        )
        for tile in range(TILES):
            end.write(acc, tile * TILE_ROWS, row, block * BLOCK_ROWS + tile * TILE_ROWS)


@contextmanager
def _loop(extent: int) -> Iterator[Any]:
    """A serial loop; a single pass needs none and keeps its index a constant."""
    if extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as i:
            yield i


def _add(into: Any, tile: Any, value: Any) -> None:
    """Adds float32x16 to one row tile of an accumulator of many."""
    store(into, (tile * TILE_ROWS,), load(into, (tile * TILE_ROWS,), TILE_ROWS) + value, TILE_ROWS)
