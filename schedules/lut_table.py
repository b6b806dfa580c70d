# SPDX-License-Identifier: Apache-2.0
"""Lookup tables of an activation: for every 4 columns the 16 signed sums (BiQGEMM, arXiv 2005.09904).

Meaning: ``table[r, j, key] = sum_t (bit t of key ? +x : -x)[r, 4 j + t]``. The int8 form divides each
chunk of columns by ``scale = max_j sum_t |x| / 127`` and rounds half to even. One table serves all
planes and all rows of every linear that reads the activation. Column sums per step of 32 columns
are kept for offsets.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .packing import MU, STEP_COLUMNS, ColumnLayout
from .tir import KernelBuilder, T, as_type, body, fsplat, intrinsic, load, put, scratch, shuffle, splat, store

Tables = Literal["int8", "exact"]
ENTRIES = 1 << MU
GROUPS_PER_STEP = STEP_COLUMNS // MU
INT8_LIMIT = 127.0
SMALLEST_PEAK = 2.0**-100
"""Chunks without a larger sum get a table of zeros: the inverse of a subnormal would be infinite."""


def reference(
    x: NDArray[np.float32], layout: ColumnLayout, tables: Tables = "int8"
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
    """NumPy meaning of :func:`lut_table`.

    Args:
        x: float32[m, k].
        layout: the columns' groups and chunks.
        tables: "int8" or "exact".

    Returns:
        table int8 or float32 [m, padded_k / 4, 16], scale float32[m, chunks] (ones when exact),
        sums float32[m, steps].
    """
    m = x.shape[0]
    padded = layout.pad(x.astype(np.float32))
    groups = padded.reshape(m, -1, MU)
    keys = np.arange(ENTRIES)
    signs = np.where((keys[:, None] >> np.arange(MU)) & 1, 1.0, -1.0).astype(np.float32)
    entries = np.zeros((m, groups.shape[1], ENTRIES), np.float32)
    for t in range(MU):
        entries = entries + groups[:, :, t, None] * signs[:, t]
    sums = _tree_sum(padded.reshape(m, layout.steps, STEP_COLUMNS))
    if tables == "exact":
        return entries, np.ones((m, layout.chunks), np.float32), sums
    absolute = np.abs(groups)
    total = ((absolute[..., 0] + absolute[..., 1]) + absolute[..., 2]) + absolute[..., 3]
    peak = total.reshape(m, layout.chunks, layout.chunk // MU).max(axis=2)
    scale = (peak * np.float32(1.0 / INT8_LIMIT)).astype(np.float32)
    some = peak > SMALLEST_PEAK
    inverse = np.where(some, np.float32(INT8_LIMIT) / np.where(some, peak, 1), 0).astype(np.float32)
    wide = np.repeat(inverse, layout.chunk // MU, axis=1)[:, :, None]
    return np.rint(entries * wide).astype(np.int8), scale, sums


def _tree_sum(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pairwise halves over the last axis (a power of two), the order the kernels add lanes in."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def table_dtype(tables: Tables) -> str:
    """Dtype of the entries."""
    return "int8" if tables == "int8" else "float32"


def lut_table(layout: ColumnLayout, tables: Tables, name: str = "lut_table") -> Any:
    """PrimFunc (x[m, k], table[m, padded_k / 4, 16], scale[m, chunks], sums[m, steps])."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        x = kernel.param("x", (m, layout.k))
        table = kernel.param("table", (m, layout.padded_k // MU, ENTRIES), table_dtype(tables))
        scale = kernel.param("scale", (m, layout.chunks))
        sums = kernel.param("sums", (m, layout.steps))
        with body([table, scale, sums], [x]), T.serial(0, m) as row:
            emit_row(layout, tables, lambda column: x[row, column], x, row, table, scale, sums)
    return kernel.result


def emit_row(
    layout: ColumnLayout, tables: Tables, scalar: Any, x: Any, row: Any, table: Any, scale: Any, sums: Any
) -> None:
    """Emits the table of one activation row; ``scalar(column)`` reads one plain column."""
    if layout.dense:
        source, source_row = x, row
    else:
        source, source_row = scratch((1, layout.padded_k)), 0
        with T.serial(0, layout.groups) as g:
            with T.serial(0, layout.group_size) as c:
                put(source, (0, g * layout.padded_group + c), scalar(g * layout.group_size + c))
            with T.serial(layout.group_size, layout.padded_group) as c:
                put(source, (0, g * layout.padded_group + c), T.float32(0))
    with T.serial(0, layout.chunks) as chunk:
        _emit_chunk(layout, tables, source, source_row, row, chunk, table, scale, sums)


def _emit_chunk(
    layout: ColumnLayout,
    tables: Tables,
    source: Any,
    source_row: Any,
    row: Any,
    chunk: Any,
    table: Any,
    scale: Any,
    sums: Any,
) -> None:
    inverse = None
    peak = scratch((8,))
    store(peak, (0,), fsplat(0.0, 8), 8)
    for step in range(layout.chunk // STEP_COLUMNS):
        column = chunk * layout.chunk + step * STEP_COLUMNS
        halves = [T.Bind(load(source, (source_row, column + h * 16), 16)) for h in range(2)]
        put(sums, (row, chunk * (layout.chunk // STEP_COLUMNS) + step), tree_sum(halves[0] + halves[1], 16))
        if tables == "int8":
            absolute = [T.Bind(intrinsic("float32x16", "llvm.fabs", half)) for half in halves]
            quads = [shuffle(absolute, [4 * j + t for j in range(8)]) for t in range(MU)]
            total = ((quads[0] + quads[1]) + quads[2]) + quads[3]
            store(peak, (0,), T.max(load(peak, (0,), 8), total), 8)
    if tables == "int8":
        top = T.Bind(tree_reduce(load(peak, (0,), 8), 8, T.max))
        put(scale, (row, chunk), top * T.float32(1.0 / INT8_LIMIT))
        safe = T.if_then_else(top > T.float32(SMALLEST_PEAK), T.float32(INT8_LIMIT) / top, T.float32(0))
        inverse = T.Bind(splat(T.Bind(safe)))
    else:
        put(scale, (row, chunk), T.float32(1))
    with T.serial(0, layout.chunk // MU) as j:
        _emit_entries(tables, source, source_row, row, chunk * (layout.chunk // MU) + j, table, inverse)


def _emit_entries(
    tables: Tables, source: Any, source_row: Any, row: Any, group: Any, table: Any, inverse: Any
) -> None:
    """The 16 signed sums of 4 activations, as one vector."""
    total = None
    for t in range(MU):
        # Sign bits of lane ``key`` flip the activation where bit t of the key is 0.
        flip = sign_mask(t)
        value = T.Bind(splat(source[source_row, group * MU + t]))
        term = as_type(T.bitwise_xor(as_type(value, "int32x16"), flip), "float32x16")
        total = term if total is None else total + term
    if tables == "int8":
        rounded = intrinsic("float32x16", "llvm.rint", T.Bind(total * inverse))
        store(table, (row, group, 0), T.Cast("int8x16", rounded), ENTRIES)
    else:
        store(table, (row, group, 0), total, ENTRIES)


def sign_mask(bit: int) -> Any:
    """int32x16 with the sign bit set in lanes whose index has ``bit`` clear."""
    flips = [0 if (lane >> bit) & 1 else -(2**31) for lane in range(ENTRIES)]
    return shuffle([T.int32(flip) for flip in flips], list(range(ENTRIES)))


def tree_reduce(vector: Any, lanes: int, combine: Any) -> Any:
    """Combines halves until one lane is left; the order of :func:`_tree_sum`."""
    while lanes > 1:
        half = lanes // 2
        bound = T.Bind(vector)
        vector = combine(
            shuffle([bound], list(range(half))) if half > 1 else shuffle([bound], [0]),
            shuffle([bound], list(range(half, lanes))) if half > 1 else shuffle([bound], [1]),
        )
        lanes = half
    return vector


def tree_sum(vector: Any, lanes: int) -> Any:
    """Sum of all lanes, pairwise by halves."""
    return tree_reduce(vector, lanes, lambda a, b: a + b)
