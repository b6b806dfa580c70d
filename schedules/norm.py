# SPDX-License-Identifier: Apache-2.0
"""Layer norm with the residual add before it and the lookup table after it, one pass over a row.

Meaning: ``y = (h - mean(h)) / sqrt(var(h) + eps) * gamma + beta`` with ``h = x`` or ``x + residual``;
with a table layout also the tables of y (see ``lut_table``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .lut_table import Tables, tree_sum
from .math import for_vectors
from .packing import ColumnLayout
from .table_output import TableOutput
from .tir import KernelBuilder, T, body, fsplat, load, put, scratch, splat, store, times


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """Row width, epsilon, whether a residual is added first, and the table that follows (or None)."""

    width: int
    epsilon: float
    residual: bool
    table: ColumnLayout | None = None
    tables: Tables = "int8"


def reference(
    x: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    gamma: NDArray[np.float32],
    beta: NDArray[np.float32],
    spec: NormSpec,
) -> NDArray[np.float32]:
    """NumPy meaning of :func:`norm` (without the table): float32[m, width]."""
    h = (x if residual is None else x + residual).astype(np.float64)
    mean = h.mean(axis=1, keepdims=True)
    variance = ((h - mean) ** 2).mean(axis=1, keepdims=True)
    return ((h - mean) / np.sqrt(variance + spec.epsilon) * gamma + beta).astype(np.float32)


def norm(spec: NormSpec, name: str = "norm") -> Any:
    """PrimFunc (x, [residual], gamma, beta, y, [table, scale, sums]) for any number of rows."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        x = kernel.param("x", (m, spec.width))
        residual = kernel.param("residual", (m, spec.width)) if spec.residual else None
        gamma = kernel.param("gamma", (spec.width,))
        beta = kernel.param("beta", (spec.width,))
        y = kernel.param("y", (m, spec.width))
        table = TableOutput.declare(kernel, m, spec.table, spec.tables)
        reads = [b for b in (x, residual, gamma, beta) if b is not None]
        with body([y, *table.buffers], reads), T.serial(0, m) as row:
            _emit_row(spec, x, residual, gamma, beta, y, row)
            table.emit(y, row)
    return kernel.result


def _emit_row(spec: NormSpec, x: Any, residual: Any, gamma: Any, beta: Any, y: Any, row: Any) -> None:
    lanes, rest = scratch((16,)), scratch((1,))

    def clear() -> None:
        store(lanes, (0,), fsplat(0.0), 16)
        put(rest, (0,), T.float32(0))

    def total() -> Any:
        whole = tree_sum(load(lanes, (0,), 16), 16) + rest[0]
        return T.Bind(times(whole, T.float32(1.0 / spec.width), 1))

    def add_vector(c: Any) -> None:
        h = load(x, (row, c), 16)
        h = T.Bind(h if residual is None else h + load(residual, (row, c), 16))
        store(y, (row, c), h, 16)
        store(lanes, (0,), load(lanes, (0,), 16) + h, 16)

    def add_scalar(c: Any) -> None:
        h = T.Bind(x[row, c] if residual is None else x[row, c] + residual[row, c])
        put(y, (row, c), h)
        put(rest, (0,), rest[0] + h)

    clear()
    for_vectors(spec.width, add_vector, add_scalar)
    mean = total()
    wide_mean = T.Bind(splat(mean))

    def square_vector(c: Any) -> None:
        d = T.Bind(load(y, (row, c), 16) - wide_mean)
        store(lanes, (0,), load(lanes, (0,), 16) + times(d, d), 16)

    def square_scalar(c: Any) -> None:
        d = T.Bind(y[row, c] - mean)
        put(rest, (0,), rest[0] + times(d, d, 1))

    clear()
    for_vectors(spec.width, square_vector, square_scalar)
    inverse = T.Bind(T.float32(1) / T.sqrt(total() + T.float32(spec.epsilon)))
    wide_inverse = T.Bind(splat(inverse))

    def scale_vector(c: Any) -> None:
        d = (load(y, (row, c), 16) - wide_mean) * wide_inverse
        store(y, (row, c), times(d, load(gamma, (c,), 16)) + load(beta, (c,), 16), 16)

    def scale_scalar(c: Any) -> None:
        put(y, (row, c), times((y[row, c] - mean) * inverse, gamma[c], 1) + beta[c])

    for_vectors(spec.width, scale_vector, scale_scalar)
