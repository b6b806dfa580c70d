# SPDX-License-Identifier: Apache-2.0
"""Softmax attention within sentences in integers: int8 queries, keys and values, int32 sums.

Meaning, exact on every ISA level. Every head of a token becomes one block of int8 mantissas. Scores are
brought to Q16 in units of log2 (the caller folds log2(e) / sqrt(head width) into the query projection), so
that softmax is powers of two: ``integer_tables.exp2`` of the distance from the row's maximum, in Q15. Values
of one head and sentence share the largest exponent, the others' lower exponents go into the weights. Those
have 14 bits (fewer for sentences beyond 1024 tokens), in two parts of 7: 7 bits in all would cost a sentence
model 0.0002 of cosine. One integer division per row gives the reciprocal of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attention_head import (
    KEY_EXPONENT,
    THERE,
    WEIGHT_HALF,
    WEIGHT_SHIFT,
    BlockAttentionSpec,
    PackedHead,
)
from .block_format import PACKED, down_shift, emit_bit_length, pack_bytes
from .dequant_vector import workspace
from .integer_tables import EXP_BITS, PROBABILITY_BITS, ExpTable, exp2
from .intrin_amx import TOKENS, AmxDot
from .intrin_dot_x86 import Levels, Rows, dot_product
from .level_packing import PANEL_ROWS
from .lut_table import tree_reduce
from .packing import BLOCK_ROWS
from .rounding_shift import (
    checked,
    clamp_shift,
    clamp_shifts,
    rounding_half,
    shift_round,
    vector_shift_round,
)
from .tir import LANES, KernelBuilder, T, body, isplat, load, put, scratch, splat, store

LIMB_BITS = 7
"""Bits of the lower part of a weight; the higher part is an int8 too."""
OUTPUT_EXPONENT = -22
"""Of the result, beside that of the head's values."""
LOWEST = -(1 << 31)
"""The score of keys that a sentence does not have; exp2 gives 0 at any distance from it."""
SUM_BITS = 22


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
    weights = shift_round(p, PROBABILITY_BITS - spec.weight_bits + top - v[1])
    weights = np.minimum(weights, (1 << spec.weight_bits) - 1)
    bits = np.frexp(p.sum(axis=1).astype(np.float64))[1].astype(np.int64)[:, None]
    inverse = (np.int64(1) << 31) // (p.sum(axis=1)[:, None] >> (bits - 16))
    sums = checked(weights @ v[0])
    return shift_round(sums, bits + spec.weight_bits - SUM_BITS) * inverse, top + OUTPUT_EXPONENT


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


class _Head(PackedHead):
    """Emits one head of one sentence: keys and values packed once, then queries in tiles."""

    def __init__(
        self, spec: BlockAttentionSpec, isa: str, table: Any, first: Any, count: Any, head: Any
    ) -> None:
        self.dot = AmxDot() if isa == "amx" else dot_product(isa)
        super().__init__(spec, isa, first, count, head)
        self.table, self.head = table, head
        tile = TOKENS if isinstance(self.dot, AmxDot) else self.dot.token_tiles[0]
        self.queries = workspace((tile, self.padded), "int8")
        self.query_exponents, self.sums = workspace((1, tile), "int32"), workspace((tile,), "int32")
        self.scores = workspace((tile, spec.keys + LANES), "int32")
        self.tile, self.weights = tile, workspace((2 * tile, spec.keys), "int8")
        self.coarse = workspace((tile, BLOCK_ROWS), "int32")

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
            self.quantize(q, q_exponents, start + t, self.queries, t, self.query_exponents, (0, t))
            store(self.scores, (t, self.spec.keys), isplat(LOWEST), LANES)

        _each(tokens, begin)
        with T.serial(0, self.blocks) as block:
            self._scores(block, tokens)
        _each(tokens, self._softmax)
        with T.serial(0, self.value_blocks) as block:
            values = Levels(self.values, (), block * (BLOCK_ROWS // PANEL_ROWS), 0)
            for part in range(2):
                self._multiply(tokens, Rows(self.weights, T.int64(part * self.tile), 0), values, self.blocks)
                if part == 0:
                    _each(tokens, self._keep)
            _each(tokens, lambda t: self._finish(t, start + t, block, y, y_exponents))

    def _keep(self, t: Any) -> None:
        """Keeps the sums of the weights' higher parts."""
        for v in range(BLOCK_ROWS // LANES):
            raised = T.shift_left(self.dot.total(t, v), isplat(LIMB_BITS))
            store(self.coarse, (t, v * LANES), raised, LANES)

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
            lanes = T.Bind(self.field(THERE, key))
            score = scale(self.dot.total(t, v), self.field(KEY_EXPONENT, key))
            lowest = T.bitwise_and(T.bitwise_not(lanes), isplat(LOWEST))
            score = T.Bind(T.bitwise_or(T.bitwise_and(score, lanes), lowest))
            store(self.scores, (t, key), score, LANES)
            top = T.Bind(T.max(top, score))
        store(self.scores, (t, self.spec.keys), top, LANES)

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
            shifts, half = self.field(WEIGHT_SHIFT, key), self.field(WEIGHT_HALF, key)
            return T.min(vector_shift_round(p, shifts, half), isplat((1 << self.spec.weight_bits) - 1))

        if self.packs:
            with T.serial(0, whole) as i:
                key = T.Bind(i * (PACKED * LANES))
                parts = [T.Bind(weights(key + v * LANES)) for v in range(PACKED)]
                for row, limb in self._limbs(t):
                    packed = pack_bytes([limb(part) for part in parts])
                    store(self.weights, (row, key), packed, PACKED * LANES)
        with T.serial(whole * PACKED, vectors) as v:
            key = T.Bind(v * LANES)
            weight = T.Bind(weights(key))
            for row, limb in self._limbs(t):
                store(self.weights, (row, key), T.Cast("int8x16", limb(weight)), LANES)
        put(self.sums, (t,), tree_reduce(load(total, (0,), LANES), LANES, lambda a, b: a + b))

    def _limbs(self, t: Any) -> tuple[tuple[Any, Callable[[Any], Any]], ...]:
        """Where the parts of a token's weights go, the higher and the lower, and how they are had."""
        return (
            (t, lambda weight: T.shift_right(weight, isplat(LIMB_BITS))),
            (self.tile + t, lambda weight: T.bitwise_and(weight, isplat((1 << LIMB_BITS) - 1))),
        )

    def _finish(self, t: Any, token: Any, block: Any, y: Any, y_exponents: Any) -> None:
        """Divides by the sum and stores the columns of one block."""
        total = T.Bind(self.sums[t])
        bits = T.Bind(emit_bit_length(total))
        inverse = T.truncdiv(T.uint32(1 << 31), T.Cast("uint32", T.shift_right(total, bits - 16)))
        wide = T.Bind(splat(T.Bind(T.Cast("int32", inverse))))
        down = T.Bind(clamp_shift(bits + (self.spec.weight_bits - SUM_BITS)))
        shift = T.Bind(splat(down))
        half = T.Bind(rounding_half(shift, LANES))
        row = T.Bind(self.first + token)
        for v in range(BLOCK_ROWS // LANES):
            column = T.Bind(block * BLOCK_ROWS + v * LANES)
            with T.If(column < self.spec.head_width), T.Then():
                sums = load(self.coarse, (t, v * LANES), LANES) + self.dot.total(t, v)
                value = vector_shift_round(sums, shift, half) * wide
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
