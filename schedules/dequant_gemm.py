# SPDX-License-Identifier: Apache-2.0
"""Integer product of int8 activations with weights that are int8 levels or binary planes, for many tokens.

Meaning, exact on every ISA level, with activations ``x[t, c] * 2**xe[t, g]`` and weights
``level[n, c] * 2**(e[n] - dw[n, g])`` in column groups g of equal size:

    E[t]    = max_g xe[t, g]
    v[t, n] = sum_g shift_round(sum of x[t, c] * level[n, c] over group g, E[t] - xe[t, g] + dw[n, g])
    v[t, n] = v[t, n] + move(bias[n], E[t] - bias_shift)
    y[t, n] = act(shift_round(v[t, n], max(e) - e[n])),  to be read times 2**(E[t] + max(e))

``shift_round`` and ``move`` are those of ``rounding_shift``; with one group nothing is shifted before the
bias. Callers see to it (by interval analysis) that no sum leaves int32, rounding terms included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .intrin_dot_x86 import VECTORS, AmxDot, Levels, Rows, dot_product
from .intrin_expand_x86 import Planes, expansion
from .level_packing import QUAD, check_groups, padded_columns
from .packing import BLOCK_ROWS, STEP_COLUMNS, row_blocks
from .rounding_shift import (
    VectorMove,
    checked,
    clamp_shifts,
    move,
    rounding_half,
    shift_round,
    vector_shift_round,
)
from .tir import KernelBuilder, T, body, isplat, load, put, scratch, splat, store

STEP_QUADS = STEP_COLUMNS // QUAD
PARALLEL_WEIGHTS = 1 << 19
"""Weights from which on the row blocks of a product are spread over threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantSpec:
    """One integer product: the structure only, no model's names, so that equal layers share code.

    Attributes:
        n: output rows.
        k: columns.
        bits: planes of a weight, 1 to 7; 8 are stored levels.
        groups: column groups of equal size; more than one need multiples of 64 columns.
        x_groups: exponents of a token, 1 or ``groups``.
        w_groups: alphas and down-shifts of a row, 1 (no down-shifts) or ``groups``.
        bias: whether a bias is added.
        bias_shift: the bias of row n is ``bias[n] * 2**(e[n] + bias_shift)``.
        activation: "" or "relu".
    """

    n: int
    k: int
    bits: int
    groups: int = 1
    x_groups: int = 1
    w_groups: int = 1
    bias: bool = False
    bias_shift: int = 0
    activation: Literal["", "relu"] = ""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"{self.bits} bits a weight, expected 1 to 7 planes or 8 for stored levels")
        check_groups(self.k, self.groups)
        if {self.x_groups, self.w_groups} - {1, self.groups}:
            raise ValueError(f"{self.x_groups} and {self.w_groups} groups, expected 1 or {self.groups}")

    @property
    def planes(self) -> bool:
        """Whether weights are binary planes (else stored levels)."""
        return self.bits < 8

    @property
    def padded_k(self) -> int:
        return padded_columns(self.k)

    @property
    def quads(self) -> int:
        """Quads of columns of one group."""
        return self.padded_k // self.groups // QUAD

    @property
    def steps(self) -> int:
        """Steps of 32 columns that the keys of one group hold."""
        return -(-(self.k // self.groups) // STEP_COLUMNS)


def worth_threads(spec: DequantSpec) -> bool:
    """Whether the row blocks are spread over threads."""
    return row_blocks(spec.n) > 1 and spec.n * spec.k >= PARALLEL_WEIGHTS


def reference(
    x: NDArray[np.int8],
    x_exponents: NDArray[np.int32],
    levels: NDArray[np.int8],
    row_exponents: NDArray[np.int8],
    spec: DequantSpec,
    group_shifts: NDArray[np.uint8] | None = None,
    bias: NDArray[np.int32] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """NumPy meaning of :func:`dequant_gemm` in int64.

    Args:
        x: int8[m, padded_k], zeros from column k on.
        x_exponents: int32[m, x_groups].
        levels: int8[n, k].
        row_exponents: int8[n].
        spec: the product.
        group_shifts: uint8[n, w_groups] where w_groups > 1.
        bias: int32[n] where the product has one.

    Returns:
        int32[m, n] and the exponents int32[m].

    Raises:
        AssertionError: a sum leaves int32.
    """
    m, groups = x.shape[0], spec.groups
    padded = np.pad(levels, ((0, 0), (0, spec.padded_k - spec.k))).astype(np.int64)
    xs = x.astype(np.int64).reshape(m, groups, -1)
    products = checked(np.einsum("tgc,ngc->gtn", xs, padded.reshape(spec.n, groups, -1)))
    exponents = x_exponents.astype(np.int64).max(axis=1)
    v = np.zeros((m, spec.n), np.int64)
    for g in range(groups):
        shift = np.zeros((m, spec.n), np.int64)
        if spec.x_groups > 1:
            shift = shift + (exponents - x_exponents[:, g])[:, None]
        if group_shifts is not None and spec.w_groups > 1:
            shift = shift + group_shifts[:, g].astype(np.int64)
        v = checked(v + (shift_round(products[g], shift) if groups > 1 else products[g]))
    if bias is not None:
        v = checked(v + move(bias.astype(np.int64)[None, :], (exponents - spec.bias_shift)[:, None]))
    top = int(row_exponents.max())
    y = shift_round(v, top - row_exponents.astype(np.int64))
    y = np.maximum(y, 0) if spec.activation == "relu" else y
    return y.astype(np.int32), (exponents + top).astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Buffers:
    """The parameters of a product."""

    x: Any
    x_exponents: Any
    weights: tuple[Any, ...]
    group_shifts: Any
    bias: Any
    row_shifts: Any
    top: Any
    y: Any
    y_exponents: Any

    @staticmethod
    def declare(kernel: KernelBuilder, spec: DequantSpec, m: Any) -> _Buffers:
        blocks = row_blocks(spec.n)
        x = kernel.param("x", (m, spec.padded_k), "int8")
        x_exponents = kernel.param("x_exponents", (m, spec.x_groups), "int32")
        if spec.planes:
            steps = spec.groups * spec.steps
            weights = (
                kernel.param("keys", (blocks, spec.bits, steps, 4, 64), "uint8"),
                kernel.param("alphas", (blocks, spec.bits, spec.w_groups, BLOCK_ROWS), "int8"),
            )
        else:
            weights = (kernel.param("levels", (blocks, spec.padded_k // QUAD, 4 * BLOCK_ROWS), "int8"),)
        shifts = None
        if spec.w_groups > 1:
            shifts = kernel.param("group_shifts", (blocks, spec.w_groups, BLOCK_ROWS), "uint8")
        bias = kernel.param("bias", (blocks, BLOCK_ROWS), "int32") if spec.bias else None
        return _Buffers(
            x=x,
            x_exponents=x_exponents,
            weights=weights,
            group_shifts=shifts,
            bias=bias,
            row_shifts=kernel.param("row_shifts", (blocks, BLOCK_ROWS), "uint8"),
            top=kernel.param("top_exponent", (1,), "int32"),
            y=kernel.param("y", (m, spec.n), "int32"),
            y_exponents=kernel.param("y_exponents", (m,), "int32"),
        )

    @property
    def reads(self) -> list[Any]:
        found = [
            self.x,
            self.x_exponents,
            *self.weights,
            self.group_shifts,
            self.bias,
            self.row_shifts,
            self.top,
        ]
        return [buffer for buffer in found if buffer is not None]


def dequant_gemm(spec: DequantSpec, isa: str, name: str = "dequant_gemm") -> Any:
    """PrimFunc for any number of tokens m.

    Parameters in order: x int8[m, padded_k], x_exponents int32[m, x_groups]; keys and alphas, or levels;
    group_shifts where w_groups > 1; bias int32[blocks, 64] where present; row_shifts uint8[blocks, 64];
    top_exponent int32[1]; then the outputs y int32[m, n] and y_exponents int32[m]. ``level_packing`` makes
    the stored ones.
    """
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        buffers = _Buffers.declare(kernel, spec, m)
        with body([buffers.y, buffers.y_exponents], buffers.reads):
            _emit_exponents(spec, buffers, m)
            loop = T.parallel if worth_threads(spec) else T.serial
            with loop(0, row_blocks(spec.n)) as block:
                _Block(spec, isa, buffers, block).emit(m)
    return kernel.result


def _emit_exponents(spec: DequantSpec, buffers: _Buffers, m: Any) -> None:
    """The output's exponents; the blocks read E[t] back from them."""
    with T.serial(0, m) as t:
        largest: Any = buffers.x_exponents[t, 0]
        for g in range(1, spec.x_groups):
            largest = T.max(largest, buffers.x_exponents[t, g])
        put(buffers.y_exponents, (t,), largest + buffers.top[0])


class _Block:
    """Emits one block of 64 rows for all tokens."""

    def __init__(self, spec: DequantSpec, isa: str, buffers: _Buffers, block: Any) -> None:
        self.spec, self.isa, self.b, self.block = spec, isa, buffers, block

    def emit(self, m: Any) -> None:
        if self.spec.planes:
            quads = self.spec.groups * self.spec.quads
            self.levels = T.alloc_buffer([quads, 4 * BLOCK_ROWS], "int8", align=64, layout=None)
            self._expand()
        if self.isa == "amx":
            self._amx_tiles(m)
        else:
            self._tiles(m)

    def _expand(self) -> None:
        spec, expand = self.spec, expansion(self.isa)
        keys, alphas = self.b.weights
        with loop(spec.groups) as g:
            group = g if spec.w_groups > 1 else 0
            expand.begin(Planes(keys, alphas, self.block, group, spec.bits))
            with T.serial(0, spec.steps) as s:
                expand.step(g * spec.steps + s, self.levels, g * spec.quads + s * STEP_QUADS)

    def _levels(self, group: Any) -> Levels:
        quad = group * self.spec.quads
        return (
            Levels(self.levels, (), quad)
            if self.spec.planes
            else Levels(self.b.weights[0], (self.block,), quad)
        )

    def _tiles(self, m: Any) -> None:
        dot = dot_product(self.isa)
        done: Any = T.int64(0)
        for tokens in dot.token_tiles:
            count = T.floordiv(m - done, tokens)
            with T.serial(0, count) as i:
                row = T.Bind(done + i * tokens)
                sums = (
                    [scratch((BLOCK_ROWS,), "int32") for _ in range(tokens)] if self.spec.groups > 1 else []
                )
                with loop(self.spec.groups) as g:
                    dot.begin(tokens)
                    dot.accumulate(
                        Rows(self.b.x, row, g * self.spec.quads * QUAD), self._levels(g), self.spec.quads
                    )
                    for t, total in enumerate(sums):
                        self._add_group(
                            row + t, g, lambda v, t=t: dot.total(t, v), lambda v: (16 * v,), total
                        )
                for t in range(tokens):
                    self._finish(
                        row + t,
                        [load(sums[t], (16 * v,), 16) if sums else dot.total(t, v) for v in range(VECTORS)],
                    )
            done = T.Bind(done + count * tokens)

    def _amx_tiles(self, m: Any) -> None:
        dot = AmxDot()
        rows = T.Bind(T.min(m, T.int64(AmxDot.TOKENS)))
        sums = (
            T.alloc_buffer([AmxDot.TOKENS, BLOCK_ROWS], "int32", align=64, layout=None)
            if self.spec.groups > 1
            else None
        )
        with dot.session(rows), T.serial(0, T.floordiv(m + 15, 16)) as i:
            row = T.Bind(T.min(16 * i, m - rows))
            with loop(self.spec.groups) as g:
                dot.begin()
                dot.accumulate(
                    Rows(self.b.x, row, g * self.spec.quads * QUAD), self._levels(g), self.spec.quads
                )
                dot.finish()
                if sums is not None:
                    with T.serial(0, rows) as t:
                        self._add_group(row + t, g, lambda v: dot.total(t, v), lambda v: (t, 16 * v), sums)
            with T.serial(0, rows) as t:
                self._finish(
                    row + t,
                    [
                        load(sums, (t, 16 * v), 16) if sums is not None else dot.total(t, v)
                        for v in range(VECTORS)
                    ],
                )

    def _add_group(self, token: Any, group: Any, total: Any, place: Any, sums: Any) -> None:
        """Adds a group's sums of one token, brought to the token's exponent."""
        x_shift: Any = T.int32(0)
        if self.spec.x_groups > 1:
            x_shift = T.Bind(self._exponent(token) - self.b.x_exponents[token, group])
        for v in range(VECTORS):
            shifts = splat(x_shift)
            if self.spec.w_groups > 1:
                shifts = shifts + T.Cast(
                    "int32x16", load(self.b.group_shifts, (self.block, group, 16 * v), 16)
                )
            shifts = T.Bind(clamp_shifts(shifts, 16))
            value = vector_shift_round(total(v), shifts, rounding_half(shifts, 16))
            before = T.Select(splat(group > 0), load(sums, place(v), 16), isplat(0))
            store(sums, place(v), before + value, 16)

    def _exponent(self, token: Any) -> Any:
        """E[t]."""
        return self.b.y_exponents[token] - self.b.top[0]

    def _finish(self, token: Any, values: list[Any]) -> None:
        """Bias, the rows' common exponent, activation, store."""
        moved = (
            VectorMove(T.Bind(self._exponent(token) - T.int32(self.spec.bias_shift)))
            if self.spec.bias
            else None
        )
        for v, value in enumerate(values):
            if moved is not None:
                value = value + moved(load(self.b.bias, (self.block, 16 * v), 16))
            raw = T.Cast("int32x16", load(self.b.row_shifts, (self.block, 16 * v), 16))
            shifts = T.Bind(clamp_shifts(raw, 16))
            value = vector_shift_round(value, shifts, rounding_half(shifts, 16))
            value = T.max(value, isplat(0)) if self.spec.activation == "relu" else value
            self._store(token, v, T.Bind(value))

    def _store(self, token: Any, v: int, value: Any) -> None:
        n, first = self.spec.n, self.block * BLOCK_ROWS + 16 * v
        if n % BLOCK_ROWS == 0:
            store(self.b.y, (token, first), value, 16)
            return
        with T.If(first + 16 <= n):
            with T.Then():
                store(self.b.y, (token, first), value, 16)
            with T.Else():
                spare = scratch((16,), "int32")
                store(spare, (0,), value, 16)
                with T.serial(0, 16) as lane, T.If(first + lane < n), T.Then():
                    put(self.b.y, (token, first + lane), spare[lane])


@contextmanager
def loop(extent: int) -> Iterator[Any]:
    """A serial loop; a single pass needs none and keeps its index a constant."""
    if extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as i:
            yield i
