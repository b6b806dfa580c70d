# SPDX-License-Identifier: Apache-2.0
"""Integer product of int8 activations with weights that are int8 levels or binary planes, for many tokens.

Meaning, exact on every ISA level, with activations ``x[t, c] * 2**xe[t, g]`` and weights
``level[n, c] * 2**(e[n] - dw[n, g])`` in column groups g of equal size:

    E[t]    = max_g xe[t, g]
    v[t, n] = sum_g (sum of x[t, c] * level[n, c] over group g) >> (E[t] - xe[t, g] + dw[n, g])
    v[t, n] = v[t, n] + move(bias[n], E[t] - bias_shift)
    y[t, n] = act(shift_round(v[t, n], max(e) - e[n])),  to be read times 2**(E[t] + max(e))

``shift_round`` and ``move`` are those of ``rounding_shift``; with one group nothing is shifted before the
bias. Callers see to it (by interval analysis) that no sum leaves int32, rounding terms included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dequant_amx import amx_product
from .dequant_spec import MOST_TOKENS, Buffers, DequantSpec, Tokens, worth_threads
from .dequant_vector import vector_product, workspace
from .rounding_shift import LARGEST_SHIFT, MOVE_FIELDS, checked, clamp_shift, move, shift_round, store_move
from .schedule import DEQUANT_RULE, DequantSchedule
from .tir import KernelBuilder, T, body, put


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
    padded = np.pad(levels, ((0, 0), (0, spec.padded_k - spec.k)))
    exponents = x_exponents.astype(np.int64).max(axis=1)
    v = np.zeros((x.shape[0], spec.n), np.int64)
    for g, (columns, weight) in enumerate(
        zip(np.split(x, spec.groups, axis=1), np.split(padded, spec.groups, axis=1), strict=True)
    ):
        # Products of 14 bits: float64 adds any number of them exactly, and has a fast matrix product.
        product = checked((columns.astype(np.float64) @ weight.astype(np.float64).T).astype(np.int64))
        shift = np.zeros((x.shape[0], spec.n), np.int64)
        if spec.x_groups > 1:
            shift = shift + (exponents - x_exponents[:, g])[:, None]
        if group_shifts is not None:
            shift = shift + group_shifts[:, g]
        v = checked(v + (product >> np.clip(shift, 0, LARGEST_SHIFT)))
    if bias is not None:
        v = checked(v + move(bias.astype(np.int64)[None, :], (exponents - spec.bias_shift)[:, None]))
    top = int(row_exponents.max())
    y = shift_round(v, top - row_exponents.astype(np.int64))
    y = np.maximum(y, 0) if spec.activation == "relu" else y
    return y.astype(np.int32), (exponents + top).astype(np.int32)


def dequant_gemm(
    spec: DequantSpec, isa: str, name: str = "dequant_gemm", schedule: DequantSchedule = DEQUANT_RULE
) -> Any:
    """PrimFunc for any number of tokens m. ``schedule`` cuts the work of all levels but AMX.

    Parameters in order: x int8[m, padded_k], x_exponents int32[m, x_groups]; keys and alphas, or levels;
    group_shifts where w_groups > 1; bias int32[blocks, 64] where present; row_shifts uint8[blocks, 64];
    top_exponent int32[1]; then the outputs y int32[m, n] and y_exponents int32[m]. ``level_packing`` makes
    the stored ones.
    """
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        buffers = Buffers.declare(kernel, spec, m)
        pieces = T.floordiv(m + (MOST_TOKENS - 1), MOST_TOKENS)
        with body([buffers.y, buffers.y_exponents], buffers.reads), T.serial(0, pieces) as i:
            first = T.Bind(i * MOST_TOKENS)
            count = T.Bind(T.min(m - first, T.int64(MOST_TOKENS)))
            moves = workspace((MOST_TOKENS, MOVE_FIELDS), "int32") if spec.bias else None
            alike = spec.x_groups > 1 and spec.w_groups == 1
            shifts = workspace((MOST_TOKENS, spec.groups), "int32") if alike else None
            tokens = Tokens(first, count, moves, shifts)
            _emit_exponents(spec, buffers, tokens)
            if isa == "amx":
                amx_product(spec, buffers, tokens)
            else:
                vector_product(spec, isa, buffers, tokens, schedule)
    return kernel.result


def _emit_exponents(spec: DequantSpec, buffers: Buffers, tokens: Tokens) -> None:
    """The output's exponents, and how far biases and groups of these tokens move."""
    with T.serial(0, tokens.count) as t:
        row = T.Bind(tokens.first + t)
        largest: Any = buffers.x_exponents[row, 0]
        for g in range(1, spec.x_groups):
            largest = T.max(largest, buffers.x_exponents[row, g])
        largest = T.Bind(largest)
        put(buffers.y_exponents, (row,), largest + buffers.top[0])
        if tokens.moves is not None:
            store_move(tokens.moves, t, T.Bind(largest - T.int32(spec.bias_shift)))
        if tokens.shifts is not None:
            with T.serial(0, spec.groups) as g:
                put(tokens.shifts, (t, g), clamp_shift(largest - buffers.x_exponents[row, g]))


__all__ = ["DequantSpec", "dequant_gemm", "reference", "worth_threads"]
