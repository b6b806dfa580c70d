# SPDX-License-Identifier: Apache-2.0
"""Softmax attention within sentences in integers: int8 queries, keys, values and weights, int32 sums.

Meaning, exact on every ISA level. Every head of a token becomes one block of int8 mantissas. Scores are
brought to Q16 in units of log2 (the caller folds log2(e) / sqrt(head width) into the query projection), so
that softmax is powers of two: ``integer_tables.exp2`` of the distance from the row's maximum, in Q15. The
weights of values are int8, values of one head and sentence share the largest exponent, the others' lower
exponents go into the weights. One integer division per row gives the reciprocal of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_format import PACKED, down_shift, emit_bit_length, emit_down_shift, magnitude, pack_bytes
from .integer_tables import EXP_BITS, ExpTable, exp2
from .intrin_amx import TOKENS, AmxDot
from .intrin_dot_x86 import Levels, Rows, dot_product
from .level_packing import PANEL_ROWS, QUAD, TILE_BYTES, TILE_COLUMNS, padded_columns
from .lut_table import tree_reduce
from .packing import BLOCK_ROWS, TILE_ROWS
from .rounding_shift import clamp_shift, clamp_shifts, psrav, rounding_half, shift_round, vector_shift_round
from .tir import LANES, KernelBuilder, T, as_type, body, isplat, load, put, scratch, splat, store

WEIGHT_DOWN = 8
"""Q15 probabilities to int8."""
OUTPUT_EXPONENT = -22
"""Of the result, beside that of the head's values."""
LOWEST = -(1 << 31)
"""The score of keys that a sentence does not have; exp2 gives 0 at any distance from it."""
SUM_BITS = 15
_NEVER = -(1 << 30)
"""Below all exponents."""
_KEY_FIELDS = 5
_KEY_EXPONENT, _VALUE_EXPONENT, _THERE, _WEIGHT_SHIFT, _WEIGHT_HALF = range(_KEY_FIELDS)
"""What is kept of every key; there: all bits set if the sentence has it."""


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
                emitter.attend(sources[0], sources[1], y, y_exponents)
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
        self.packs = isa in ("avx512_vbmi", "amx")
        self.dot = AmxDot() if isa == "amx" else dot_product(isa)
        self.padded = padded_columns(spec.head_width)
        self.steps = self.padded // TILE_COLUMNS
        self.value_blocks = self.padded // BLOCK_ROWS
        self._allocate()

    def _allocate(self) -> None:
        spec = self.spec
        tile = TOKENS if isinstance(self.dot, AmxDot) else self.dot.token_tiles[0]

        def buffer(shape: list[int], dtype: str) -> Any:
            return T.alloc_buffer(shape, dtype, align=64, layout=None)

        key_steps = spec.keys // TILE_COLUMNS
        self.keys = buffer([spec.keys // PANEL_ROWS, self.steps, 2, TILE_BYTES], "int8")
        self.values = buffer([self.padded // PANEL_ROWS, key_steps, 2, TILE_BYTES], "int8")
        self.of_keys = buffer([_KEY_FIELDS, spec.keys], "int32")
        self.four = buffer([QUAD, self.padded], "int8")
        self.queries = buffer([tile, self.padded], "int8")
        self.query_exponents, self.sums = buffer([1, tile], "int32"), buffer([tile], "int32")
        self.scores = buffer([tile, spec.keys + LANES], "int32")
        self.weights = buffer([tile, spec.keys], "int8")

    def pack(self, k: Any, k_exponents: Any, v: Any, v_exponents: Any) -> None:
        """Quantizes keys and values into the layout that the dot product reads."""
        tops = scratch((3,), "int32")
        for i in range(3):
            put(tops, (i,), T.int32(_NEVER))
        with T.serial(0, T.floordiv(self.count + (QUAD - 1), QUAD)) as quad, T.serial(0, QUAD) as i:
            t = T.Bind(quad * QUAD + i)
            with T.If(t < self.count), T.Then():
                self._quantize(k, k_exponents, t, self.four, i, self.of_keys, (_KEY_EXPONENT, t))
                self._scatter_key(i, t)
                self._quantize(v, v_exponents, t, self.four, i, self.of_keys, (_VALUE_EXPONENT, t))
                key = T.Bind(self.of_keys[_KEY_EXPONENT, t])
                for place, value in enumerate((self.of_keys[_VALUE_EXPONENT, t], key, T.int32(0) - key)):
                    put(tops, (place,), T.max(tops[place], value))
            with T.If(i == QUAD - 1), T.Then():
                self._interleave_values(quad)
        self.top, self.key_top = T.Bind(tops[0]), T.Bind(tops[1])
        self.key_bottom = T.Bind(T.int32(0) - tops[2])
        self._clear_values()
        self._prepare_keys()

    def _prepare_keys(self) -> None:
        """What all queries need of 16 keys each: which are there, and the shifts of their weights."""
        base = T.Bind(splat(self.top + WEIGHT_DOWN))
        with T.serial(0, self.blocks * (BLOCK_ROWS // LANES)) as v:
            key = T.Bind(v * LANES)
            lanes = T.Bind(self._lanes(key))
            store(self.of_keys, (_THERE, key), lanes, LANES)
            known = T.Select(lanes < isplat(0), self._of_keys(_KEY_EXPONENT, key), splat(self.key_top))
            store(self.of_keys, (_KEY_EXPONENT, key), known, LANES)
            shifts = T.Bind(clamp_shifts(base - self._of_keys(_VALUE_EXPONENT, key), LANES))
            store(self.of_keys, (_WEIGHT_SHIFT, key), shifts, LANES)
            store(self.of_keys, (_WEIGHT_HALF, key), rounding_half(shifts, LANES), LANES)

    def _of_keys(self, field: int, key: Any) -> Any:
        return load(self.of_keys, (field, key), LANES)

    def _quantize(
        self, x: Any, x_exponents: Any, t: Any, out: Any, row: Any, places: Any, place: tuple[Any, ...]
    ) -> None:
        """One head of token t as int8 mantissas; columns beyond the head are zero."""
        vectors = range(0, self.spec.head_width, LANES)
        loaded = [T.Bind(load(x, (self.first + t, self.base + c), LANES)) for c in vectors]
        peak: Any = magnitude(loaded[0])
        for vector in loaded[1:]:
            peak = T.max(peak, magnitude(vector))
        shift = emit_down_shift(T.Bind(tree_reduce(peak, LANES, T.max)))
        put(places, place, x_exponents[self.first + t] + shift)
        wide = T.Bind(splat(shift))
        half = T.Bind(splat(T.Bind(rounding_half(shift, 1))))
        if self.packs and len(loaded) % PACKED == 0:
            for i in range(0, len(loaded), PACKED):
                parts = [psrav(vector + half, wide) for vector in loaded[i : i + PACKED]]
                store(out, (row, i * LANES), pack_bytes(parts), PACKED * LANES)
        else:
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
        """What lies between the last quad of tokens and the end of its tile is multiplied by any weights."""
        quads = TILE_COLUMNS // QUAD
        start, last = T.floordiv(self.count + (QUAD - 1), QUAD), T.Bind(self.blocks - 1)
        with T.serial(0, self.padded // PANEL_ROWS) as panel, T.serial(start, self.blocks * quads) as quad:
            for tile in range(2):
                byte = (quad - last * quads) * TILE_COLUMNS
                store(self.values, (panel, last, tile, byte), T.broadcast(T.int8(0), 64), 64)

    def attend(self, q: Any, q_exponents: Any, y: Any, y_exponents: Any) -> None:
        """All queries: in tiles of 16 on AMX, in tiles of a few sizes elsewhere."""
        if isinstance(self.dot, AmxDot):
            tiles = T.Bind(T.floordiv(self.count + (TOKENS - 1), TOKENS))
            with self.dot.session(T.int64(TOKENS)), T.serial(0, tiles) as i:
                start = T.Bind(i * TOKENS)
                tokens = T.Bind(T.min(T.int64(TOKENS), self.count - start))
                self._tile(q, q_exponents, start, tokens, y, y_exponents)
            return
        done: Any = T.int64(0)
        for tokens in self.dot.token_tiles:
            count = T.floordiv(self.count - done, tokens)
            with T.serial(0, count) as i:
                self._tile(q, q_exponents, T.Bind(done + i * tokens), tokens, y, y_exponents)
            done = T.Bind(done + count * tokens)

    def _tile(self, q: Any, q_exponents: Any, start: Any, tokens: Any, y: Any, y_exponents: Any) -> None:
        def begin(t: Any) -> None:
            self._quantize(q, q_exponents, start + t, self.queries, t, self.query_exponents, (0, t))
            store(self.scores, (t, self.spec.keys), isplat(LOWEST), LANES)

        _each(tokens, begin)
        with T.serial(0, self.blocks) as block:
            self._scores(block, tokens)
        _each(tokens, self._softmax)
        with T.serial(0, self.value_blocks) as block:
            values = Levels(self.values, (), block * (BLOCK_ROWS // PANEL_ROWS), 0)
            self._multiply(tokens, Rows(self.weights, 0, 0), values, self.blocks)
            _each(tokens, lambda t: self._finish(t, start + t, block, y, y_exponents))

    def _multiply(self, tokens: Any, a: Rows, b: Levels, steps: Any) -> None:
        if isinstance(self.dot, AmxDot):
            self.dot.begin()
            self.dot.accumulate(a, b, steps)
            self.dot.finish()
        else:
            self.dot.begin(tokens)
            self.dot.accumulate(a, b, steps)

    def _scores(self, block: Any, tokens: Any) -> None:
        """Scores of 64 keys in Q16, and the running maximum."""
        keys = Levels(self.keys, (), block * (BLOCK_ROWS // PANEL_ROWS), 0)
        self._multiply(tokens, Rows(self.queries, 0, 0), keys, self.steps)
        _each(tokens, lambda t: self._scale(block, t))

    def _scale(self, block: Any, t: Any) -> None:
        """Q16 of a query's scores with 64 keys.

        Scores go up by ``score_up`` and down by the shift of a key. Where that is up for all keys of the
        sentence, as it mostly is, nothing is rounded: one shift up does it.
        """
        up = T.Bind(self.query_exponents[0, t] + EXP_BITS)
        exact = T.And(up + self.key_bottom >= 0, up + self.key_top <= self.spec.score_up)
        with T.If(exact):
            with T.Then():
                wide = T.Bind(splat(up))
                self._store_scores(block, t, lambda sums, exponents: T.shift_left(sums, wide + exponents))
            with T.Else():
                base = T.Bind(splat(self.spec.score_up - up))
                self._store_scores(block, t, lambda sums, exponents: self._round(sums, base - exponents))

    def _round(self, sums: Any, down: Any) -> Any:
        shifts = T.Bind(clamp_shifts(down, LANES))
        raised = T.shift_left(sums, isplat(self.spec.score_up))
        return vector_shift_round(raised, shifts, rounding_half(shifts, LANES))

    def _store_scores(self, block: Any, t: Any, scale: Callable[[Any, Any], Any]) -> None:
        top = load(self.scores, (t, self.spec.keys), LANES)
        for v in range(BLOCK_ROWS // LANES):
            key = T.Bind(block * BLOCK_ROWS + v * LANES)
            lanes = T.Bind(self._of_keys(_THERE, key))
            score = scale(self.dot.total(t, v), self._of_keys(_KEY_EXPONENT, key))
            lowest = T.bitwise_and(T.bitwise_not(lanes), isplat(LOWEST))
            score = T.Bind(T.bitwise_or(T.bitwise_and(score, lanes), lowest))
            store(self.scores, (t, key), score, LANES)
            top = T.Bind(T.max(top, score))
        store(self.scores, (t, self.spec.keys), top, LANES)

    def _lanes(self, key: Any) -> Any:
        """All bits set in those of 16 lanes whose keys the sentence has."""
        distance = T.ramp(T.int32(0), 1, LANES) - splat(T.Cast("int32", self.count - key))
        return T.shift_right(distance, isplat(31))

    def _softmax(self, t: Any) -> None:
        """Weights of the values, and the sum of the probabilities.

        Weights beyond the last 16 keys stay what they are: the values there are zero.
        """
        total = scratch((LANES,), "int32")
        store(total, (0,), isplat(0), LANES)
        top = T.Bind(tree_reduce(load(self.scores, (t, self.spec.keys), LANES), LANES, T.max))
        wide, exp = T.Bind(splat(top)), ExpTable(self.table, self.isa)
        vectors = T.floordiv(self.count + (LANES - 1), LANES)
        whole = T.Bind(T.floordiv(vectors, PACKED)) if self.packs else T.int64(0)

        def weights(key: Any) -> Any:
            p = T.Bind(exp(T.Bind(wide - load(self.scores, (t, key), LANES))))
            store(total, (0,), load(total, (0,), LANES) + p, LANES)
            shifts, half = self._of_keys(_WEIGHT_SHIFT, key), self._of_keys(_WEIGHT_HALF, key)
            return vector_shift_round(p, shifts, half)

        if self.packs:
            with T.serial(0, whole) as i:
                key = T.Bind(i * (PACKED * LANES))
                packed = pack_bytes([T.Bind(weights(key + v * LANES)) for v in range(PACKED)])
                store(self.weights, (t, key), packed, PACKED * LANES)
        with T.serial(whole * PACKED, vectors) as v:
            key = T.Bind(v * LANES)
            weight = T.Cast("int8x16", T.min(weights(key), isplat(127)))
            store(self.weights, (t, key), weight, LANES)
        put(self.sums, (t,), tree_reduce(load(total, (0,), LANES), LANES, lambda a, b: a + b))

    def _finish(self, t: Any, token: Any, block: Any, y: Any, y_exponents: Any) -> None:
        """Divides by the sum and stores the columns of one block."""
        total = T.Bind(self.sums[t])
        bits = T.Bind(emit_bit_length(total))
        inverse = T.truncdiv(T.uint32(1 << 31), T.Cast("uint32", T.shift_right(total, bits - 16)))
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


def _each(tokens: Any, emit: Callable[[Any], None]) -> None:
    """Emits something for every token: unrolled for a number, a loop where it is known at run time."""
    if isinstance(tokens, int):
        for t in range(tokens):
            emit(t)
    else:
        with T.serial(0, tokens) as t:
            emit(t)


__all__ = ["BlockAttentionSpec", "block_attention", "reference"]
