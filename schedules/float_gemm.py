# SPDX-License-Identifier: Apache-2.0
"""FP32 product for tensors that the plan leaves in float: packed 64 output rows side by side.

Meaning: ``y = act(x @ W.T + bias)``. Weights are stored as [blocks, k, 64], so that one broadcast
activation meets 64 outputs; up to four tokens share each weight load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activation import reference as activation_reference
from .epilogue import Epilogue
from .packing import BLOCK_ROWS, row_blocks
from .schedule import FLOAT_RULE, Schedule, TokenTile
from .tir import KernelBuilder, T, body, fsplat, load, prefetch, scratch, splat, store, times

VECTORS = BLOCK_ROWS // 16
PARALLEL_FLOPS = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatSpec:
    """Shape and epilogue of one FP32 product; ``activation`` is a name of ``schedules.activation``."""

    n: int
    k: int
    bias: bool
    activation: str


def pack(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n, k] -> [blocks, k, 64], zero rows at the end."""
    n, k = weight.shape
    blocks = row_blocks(n)
    padded = np.pad(weight, ((0, blocks * BLOCK_ROWS - n), (0, 0)))
    return np.ascontiguousarray(padded.reshape(blocks, BLOCK_ROWS, k).transpose(0, 2, 1), np.float32)


def reference(
    x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32] | None, spec: FloatSpec
) -> NDArray[np.float32]:
    """NumPy meaning of :func:`float_gemm`: float32[m, n]."""
    y = x @ weight.T
    return activation_reference(spec.activation, y if bias is None else y + bias)


def worth_threads(spec: FloatSpec, schedule: Schedule = FLOAT_RULE) -> bool:
    """Whether row blocks are spread over threads."""
    worth = spec.n * spec.k >= PARALLEL_FLOPS if schedule.spread is None else schedule.spread
    return worth and row_blocks(spec.n) > 1


def float_gemm(spec: FloatSpec, name: str = "float_gemm", schedule: Schedule = FLOAT_RULE) -> Any:
    """PrimFunc (x[m, k], weight[blocks, k, 64], [bias[n]], y[m, n]) for any number of rows.

    Of the schedule's token tiles ``tokens`` and ``prefetch`` matter: all four row tiles go together.
    """
    kernel = KernelBuilder(name)
    blocks = row_blocks(spec.n)
    with kernel.define():
        m = T.int64()
        x = kernel.param("x", (m, spec.k))
        weight = kernel.param("weight", (blocks, spec.k, BLOCK_ROWS))
        bias = kernel.param("bias", (spec.n,)) if spec.bias else None
        y = kernel.param("y", (m, spec.n))
        reads = [b for b in (x, weight, bias) if b is not None]
        loop = T.parallel if worth_threads(spec, schedule) else T.serial
        with body([y], reads), loop(0, blocks) as block:
            done: Any = T.int64(0)
            for tile in schedule.tiles:
                count = T.floordiv(m - done, tile.tokens)
                with T.serial(0, count) as i:
                    _tile(spec, x, weight, bias, y, block, done + i * tile.tokens, tile)
                done = T.Bind(done + count * tile.tokens)
    return kernel.result


def _tile(
    spec: FloatSpec, x: Any, weight: Any, bias: Any, y: Any, block: Any, row: Any, knobs: TokenTile
) -> None:
    tokens = knobs.tokens
    acc = [[scratch((16,)) for _ in range(VECTORS)] for _ in range(tokens)]
    for token in acc:
        for buffer in token:
            store(buffer, (0,), fsplat(0.0), 16)
    with T.serial(0, spec.k) as c:
        if knobs.prefetch:
            for v in range(VECTORS):
                prefetch(weight, (block, c, 16 * v + knobs.prefetch // 4))
        columns = [T.Bind(load(weight, (block, c, 16 * v), 16)) for v in range(VECTORS)]
        for t in range(tokens):
            wide = T.Bind(splat(x[row + t, c]))
            for v in range(VECTORS):
                store(acc[t][v], (0,), load(acc[t][v], (0,), 16) + times(wide, columns[v]), 16)
    end = Epilogue(
        out=y, bias=bias, activation=spec.activation, start=0, columns=spec.n, block=BLOCK_ROWS
    )
    for t in range(tokens):
        for v in range(VECTORS):
            end.write(acc[t][v], 0, row + t, block * BLOCK_ROWS + 16 * v)
