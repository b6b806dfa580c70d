# SPDX-License-Identifier: Apache-2.0
"""Softmax attention within sentences in integers: int8 queries, keys, values and weights, int32 sums.

Meaning, exact on every ISA level. Every head of a token becomes one block of int8 mantissas. Scores are
brought to Q16 in units of log2 (the caller folds log2(e) / sqrt(head width) into the query projection), so
that softmax is powers of two: ``integer_tables.exp2`` of the distance from the row's maximum, in Q15. The
weights of values are int8, values of one head and sentence share the largest exponent, the others' lower
exponents go into the weights. One integer division per row gives the reciprocal of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_format import down_shift, emit_bit_length, emit_down_shift, magnitude
from .integer_tables import EXP_BITS, ExpTable, exp2
from .intrin_dot_x86 import Levels, Rows, dot_product
from .level_packing import PANEL_ROWS, QUAD, TILE_BYTES, TILE_COLUMNS, padded_columns
from .lut_table import tree_reduce
from .packing import BLOCK_ROWS, TILE_ROWS
from .rounding_shift import clamp_shift, clamp_shifts, rounding_half, shift_round, vector_shift_round
from .tir import LANES, KernelBuilder, T, as_type, body, isplat, load, put, scratch, splat, store

WEIGHT_DOWN = 8
"""Q15 probabilities to int8."""
OUTPUT_EXPONENT = -22
"""Of the result, beside that of the head's values."""
LOWEST = -(1 << 30)
SUM_BITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAttentionSpec:
    """Heads, model width, and the longest sentence (in tokens), which sizes the scratch memory."""

    heads: int
    width: int
    longest: int

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % LANES or self.head_width > 256:
            raise ValueError(
                f"{self.heads} heads of {self.width} columns: integer attention needs head widths that are "
                f"multiples of {LANES}, 256 at most"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def keys(self) -> int:
        """Tokens of the longest sentence, in whole blocks of 64."""
        return padded_columns(self.longest)

    @property
    def score_up(self) -> int:
        """Scores, at most 127 * 127 * head width, move up so far before they move down to Q16."""
        return 30 - int(127 * 127 * self.head_width).bit_length()


def reference(
    q: NDArray[np.int32],
    k: NDArray[np.int32],
    v: NDArray[np.int32],
    exponents: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]],
    offsets: NDArray[np.int32],
    spec: BlockAttentionSpec,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """NumPy meaning of :func:`block_attention`.

    Args:
        q, k, v: int32[T, width], times 2**exponents (int32[T] each).
        offsets: int32[B + 1].

    Returns:
        int32[T, width] and exponents int32[T, heads].
    """
    rows = [_heads(x, e, spec) for x, e in zip((q, k, v), exponents, strict=True)]
    out = np.zeros((q.shape[0], spec.heads, spec.head_width), np.int64)
    out_exponents = np.zeros((q.shape[0], spec.heads), np.int64)
    for start, stop in pairwise(offsets):
        for h in range(spec.heads):
            parts = [(m[start:stop, h], e[start:stop, h]) for m, e in rows]
            out[start:stop, h], out_exponents[start:stop, h] = _head_reference(parts, spec)
    return out.reshape(q.shape).astype(np.int32), out_exponents.astype(np.int32)


def _heads(
    x: NDArray[np.int32], exponents: NDArray[np.int32], spec: BlockAttentionSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Mantissas [T, heads, head width] and exponents [T, heads]."""
    heads = x.astype(np.int64).reshape(x.shape[0], spec.heads, spec.head_width)
    shift = down_shift(np.abs(heads).max(axis=2))
    return shift_round(heads, shift[:, :, None]), exponents.astype(np.int64)[:, None] + shift


def _head_reference(parts: Any, spec: BlockAttentionSpec) -> tuple[NDArray[np.int64], np.int64]:
    """One head of one sentence, from (mantissas, exponents) of q, k and v."""
    q, k, v = parts
    down = -EXP_BITS - (q[1][:, None] + k[1][None, :]) + spec.score_up
    scores = shift_round((q[0] @ k[0].T) << spec.score_up, down)
    p = exp2(scores.max(axis=1, keepdims=True) - scores)
    top = v[1].max()
    weights = np.minimum(shift_round(p, WEIGHT_DOWN + top - v[1]), 127)
    bits = np.frexp(p.sum(axis=1).astype(np.float64))[1].astype(np.int64)[:, None]
    inverse = (np.int64(1) << 31) // (p.sum(axis=1)[:, None] >> (bits - 16))
    return shift_round(weights @ v[0], bits - SUM_BITS) * inverse, top + OUTPUT_EXPONENT


def block_attention(spec: BlockAttentionSpec, isa: str, name: str = "block_attention") -> Any:
    """PrimFunc (q, q_exponents, k, k_exponents, v, v_exponents, offsets[B + 1], the table of
    ``integer_tables.exp2_table``, outputs y int32[T, width] and y_exponents int32[T, heads]).

    q, k, v: int32[T, width]; their exponents int32[T].
    """
    kernel = KernelBuilder(name)
    with kernel.define():
        tokens, starts = T.int64(), T.int64()
        sources = []
        for part in "qkv":
            sources.append(kernel.param(part, (tokens, spec.width), "int32"))
            sources.append(kernel.param(f"{part}_exponents", (tokens,), "int32"))
        offsets = kernel.param("offsets", (starts,), "int32")
        table = kernel.param("exp2", (64,), "int32")
        y = kernel.param("y", (tokens, spec.width), "int32")
        y_exponents = kernel.param("y_exponents", (tokens, spec.heads), "int32")
        with body([y, y_exponents], [*sources, offsets, table]), T.serial(0, starts - 1) as s:
            first = T.Bind(T.Cast("int64", offsets[s]))
            count = T.Bind(T.Cast("int64", offsets[s + 1]) - first)
            with T.parallel(0, spec.heads) as head:
                emitter = _Head(spec, isa, table, first, count, head)
                emitter.pack(*sources[2:])
                emitter.rows(sources[0], sources[1], y, y_exponents)
    return kernel.result


class _Head:
    """Emits one head of one sentence: keys and values packed once, then queries in tiles."""

    def __init__(
        self, spec: BlockAttentionSpec, isa: str, table: Any, first: Any, count: Any, head: Any
    ) -> None:
        self.spec, self.isa, self.table = spec, isa, table
        self.first, self.count = first, count
        self.head, self.base = head, T.Bind(head * spec.head_width)
        self.blocks = T.Bind(T.floordiv(count + (BLOCK_ROWS - 1), BLOCK_ROWS))
        self.dot = dot_product("avx512_vbmi" if isa == "amx" else isa)
        self.padded = padded_columns(spec.head_width)
        self.steps = self.padded // TILE_COLUMNS
        self.value_blocks = self.padded // BLOCK_ROWS
        self._allocate()

    def _allocate(self) -> None:
        spec, tile = self.spec, self.dot.token_tiles[0]

        def buffer(shape: list[int], dtype: str) -> Any:
            return T.alloc_buffer(shape, dtype, align=64, layout=None)

        key_steps = spec.keys // TILE_COLUMNS
        self.keys = buffer([spec.keys // PANEL_ROWS, self.steps, 2, TILE_BYTES], "int8")
        self.values = buffer([self.padded // PANEL_ROWS, key_steps, 2, TILE_BYTES], "int8")
        self.key_exponents = buffer([spec.keys], "int32")
        self.value_exponents = buffer([spec.keys], "int32")
        self.four = buffer([QUAD, self.padded], "int8")
        self.queries = buffer([tile, self.padded], "int8")
        self.scores = buffer([tile, spec.keys], "int32")
        self.weights = buffer([tile, spec.keys], "int8")

    def pack(self, k: Any, k_exponents: Any, v: Any, v_exponents: Any) -> None:
        """Quantizes keys and values into the layout that the dot product reads."""
        top = scratch((1,), "int32")
        put(top, (0,), T.int32(LOWEST))
        with T.serial(0, T.floordiv(self.count + (QUAD - 1), QUAD)) as quad, T.serial(0, QUAD) as i:
            t = T.Bind(quad * QUAD + i)
            with T.If(t < self.count), T.Then():
                self._quantize(k, k_exponents, t, self.four, i, self.key_exponents, t)
                self._scatter_key(i, t)
                self._quantize(v, v_exponents, t, self.four, i, self.value_exponents, t)
                put(top, (0,), T.max(top[0], self.value_exponents[t]))
            with T.If(i == QUAD - 1), T.Then():
                self._interleave_values(quad)
        self.top = T.Bind(top[0])
        self._clear_values()

    def _quantize(
        self, x: Any, x_exponents: Any, t: Any, out: Any, row: Any, places: Any, place: Any
    ) -> None:
        """One head of token t as int8 mantissas; columns beyond the head are zero."""
        vectors = range(0, self.spec.head_width, LANES)
        loaded = [T.Bind(load(x, (self.first + t, self.base + c), LANES)) for c in vectors]
        peak: Any = magnitude(loaded[0])
        for vector in loaded[1:]:
            peak = T.max(peak, magnitude(vector))
        shift = emit_down_shift(T.Bind(tree_reduce(peak, LANES, T.max)))
        put(places, (place,), x_exponents[self.first + t] + shift)
        wide = T.Bind(splat(shift))
        half = T.Bind(rounding_half(wide, LANES))
        for c, vector in zip(vectors, loaded, strict=True):
            store(out, (row, c), T.Cast("int8x16", vector_shift_round(vector, wide, half)), LANES)
        for c in range(self.spec.head_width, self.padded, LANES):
            store(out, (row, c), T.broadcast(T.int8(0), LANES), LANES)

    def _scatter_key(self, row: Any, t: Any) -> None:
        panel = T.Bind(T.floordiv(t, PANEL_ROWS))
        tile = T.Bind(T.floormod(T.floordiv(t, TILE_ROWS), 2))
        lane = T.Bind(T.floormod(t, TILE_ROWS) * QUAD)
        with T.serial(0, self.steps) as step, T.serial(0, TILE_COLUMNS // QUAD) as quad:
            four = load(self.four, (row, step * TILE_COLUMNS + quad * QUAD), QUAD)
            store(self.keys, (panel, step, tile, quad * TILE_COLUMNS + lane), four, QUAD)

    def _interleave_values(self, quad: Any) -> None:
        """Four tokens' columns side by side: 16 x 4 bytes for every 16 columns."""
        step = T.Bind(T.floordiv(quad, TILE_COLUMNS // QUAD))
        place = T.Bind(T.floormod(quad, TILE_COLUMNS // QUAD) * TILE_COLUMNS)
        with T.serial(0, self.padded // PANEL_ROWS) as panel, T.serial(0, 2) as tile:
            column = T.Bind(panel * PANEL_ROWS + tile * TILE_ROWS)
            total: Any = None
            for i in range(QUAD):
                byte = T.Cast("uint32x16", as_type(load(self.four, (i, column), LANES), "uint8x16"))
                byte = T.shift_left(byte, splat(T.uint32(8 * i)))
                total = byte if total is None else T.bitwise_or(total, byte)
            store(self.values, (panel, step, tile, place), as_type(total, "int8x64"), 4 * LANES)

    def _clear_values(self) -> None:
        """What lies between the last quad of tokens and the end of its tile is multiplied by zero weights."""
        quads = TILE_COLUMNS // QUAD
        start, last = T.floordiv(self.count + (QUAD - 1), QUAD), T.Bind(self.blocks - 1)
        with T.serial(0, self.padded // PANEL_ROWS) as panel, T.serial(start, self.blocks * quads) as quad:
            for tile in range(2):
                byte = (quad - last * quads) * TILE_COLUMNS
                store(self.values, (panel, last, tile, byte), T.broadcast(T.int8(0), 64), 64)

    def rows(self, q: Any, q_exponents: Any, y: Any, y_exponents: Any) -> None:
        done: Any = T.int64(0)
        for tokens in self.dot.token_tiles:
            count = T.floordiv(self.count - done, tokens)
            with T.serial(0, count) as i:
                self._tile(q, q_exponents, T.Bind(done + i * tokens), tokens, y, y_exponents)
            done = T.Bind(done + count * tokens)

    def _tile(self, q: Any, q_exponents: Any, start: Any, tokens: int, y: Any, y_exponents: Any) -> None:
        exponents, sums = scratch((8,), "int32"), scratch((8,), "int32")
        for t in range(tokens):
            self._quantize(q, q_exponents, start + t, self.queries, t, exponents, t)
        tops = [scratch((LANES,), "int32") for _ in range(tokens)]
        for top in tops:
            store(top, (0,), isplat(LOWEST), LANES)
        with T.serial(0, self.blocks) as block:
            self._scores(block, tokens, exponents, tops)
        for t in range(tokens):
            self._softmax(t, T.Bind(tree_reduce(load(tops[t], (0,), LANES), LANES, T.max)), sums)
        with T.serial(0, self.value_blocks) as block:
            self.dot.begin(tokens)
            values = Levels(self.values, (), block * (BLOCK_ROWS // PANEL_ROWS), 0)
            self.dot.accumulate(Rows(self.weights, 0, 0), values, self.blocks)
            for t in range(tokens):
                self._finish(t, start + t, block, sums, y, y_exponents)

    def _scores(self, block: Any, tokens: int, exponents: Any, tops: list[Any]) -> None:
        """Scores of 64 keys in Q16, and the running maximum."""
        self.dot.begin(tokens)
        keys = Levels(self.keys, (), block * (BLOCK_ROWS // PANEL_ROWS), 0)
        self.dot.accumulate(Rows(self.queries, 0, 0), keys, self.steps)
        for v in range(BLOCK_ROWS // LANES):
            key = T.Bind(block * BLOCK_ROWS + v * LANES)
            key_exponents = T.Bind(load(self.key_exponents, (key,), LANES))
            lanes = T.Bind(self._lanes(key))
            for t in range(tokens):
                base = T.Bind(splat(T.int32(self.spec.score_up - EXP_BITS) - exponents[t]))
                shifts = T.Bind(clamp_shifts(base - key_exponents, LANES))
                raised = T.shift_left(self.dot.total(t, v), isplat(self.spec.score_up))
                score = vector_shift_round(raised, shifts, rounding_half(shifts, LANES))
                lowest = T.bitwise_and(T.bitwise_not(lanes), isplat(LOWEST))
                score = T.Bind(T.bitwise_or(T.bitwise_and(score, lanes), lowest))
                store(self.scores, (t, key), score, LANES)
                store(tops[t], (0,), T.max(load(tops[t], (0,), LANES), score), LANES)

    def _lanes(self, key: Any) -> Any:
        """All bits set in those of 16 lanes whose keys the sentence has."""
        distance = T.ramp(T.int32(0), 1, LANES) - splat(T.Cast("int32", self.count - key))
        return T.shift_right(distance, isplat(31))

    def _softmax(self, t: int, top: Any, sums: Any) -> None:
        """Weights of the values, and the sum of the probabilities."""
        total = scratch((LANES,), "int32")
        store(total, (0,), isplat(0), LANES)
        wide, exp = T.Bind(splat(top)), ExpTable(self.table, self.isa)
        base = T.Bind(splat(self.top + WEIGHT_DOWN))
        with T.serial(0, self.blocks * (BLOCK_ROWS // LANES)) as v:
            key = T.Bind(v * LANES)
            lanes = T.Bind(self._lanes(key))
            p = exp(T.Bind(wide - load(self.scores, (t, key), LANES)))
            p = T.Bind(T.bitwise_and(p, lanes))
            store(total, (0,), load(total, (0,), LANES) + p, LANES)
            shifts = T.Bind(clamp_shifts(base - load(self.value_exponents, (key,), LANES), LANES))
            weight = T.min(vector_shift_round(p, shifts, rounding_half(shifts, LANES)), isplat(127))
            store(self.weights, (t, key), T.Cast("int8x16", weight), LANES)
        put(sums, (t,), tree_reduce(load(total, (0,), LANES), LANES, lambda a, b: a + b))

    def _finish(self, t: int, token: Any, block: Any, sums: Any, y: Any, y_exponents: Any) -> None:
        """Divides by the sum and stores the columns of one block."""
        total = T.Bind(sums[t])
        bits = T.Bind(emit_bit_length(total))
        inverse = T.floordiv(
            T.shift_left(T.int64(1), T.int64(31)), T.Cast("int64", T.shift_right(total, bits - 16))
        )
        wide = T.Bind(splat(T.Bind(T.Cast("int32", inverse))))
        shift = T.Bind(splat(T.Bind(clamp_shift(bits - SUM_BITS))))
        half = T.Bind(rounding_half(shift, LANES))
        row = T.Bind(self.first + token)
        for v in range(BLOCK_ROWS // LANES):
            column = T.Bind(block * BLOCK_ROWS + v * LANES)
            with T.If(column < self.spec.head_width), T.Then():
                value = vector_shift_round(self.dot.total(t, v), shift, half) * wide
                store(y, (row, self.base + column), value, LANES)
        put(y_exponents, (row, self.head), self.top + OUTPUT_EXPONENT)


__all__ = ["BlockAttentionSpec", "block_attention", "reference"]
