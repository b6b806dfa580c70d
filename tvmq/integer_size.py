# SPDX-License-Identifier: Apache-2.0
"""Bytes of a model in mode block-int, counted before anything is quantized: those of the stored arrays.

Rows padded to whole blocks count, so that the sum is what ``compile`` writes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from relay_passes.bit_plan import FLOAT_BITS, BlockBits, WordBits
from relay_passes.integer_body import HEAD
from relay_passes.lower_block_int import matrix_spec, row_table
from schedules import integer_storage as storage
from schedules.storage import StoredArray, StoredSegment, float_array

from .families.family import TABLES, TensorInfo
from .size import FLOAT_BYTES


def matrix_bytes(info: TensorInfo, entry: BlockBits | WordBits) -> int:
    """Bytes of one planned matrix: a table, a matrix of the body, or one of the head in float form.

    Raises:
        ValueError: a matrix of the body stays FP32, or its groups do not fit its activations.
    """
    n, k = info.shape
    if info.block == TABLES or isinstance(entry, WordBits):
        return _bytes(storage.table_arrays(info.name, row_table(entry, n), k))
    if info.block == HEAD:
        return _bytes(_float_arrays(entry, n, k))
    spec = matrix_spec(entry, n, k, bias=False)
    return _bytes([*storage.matrix_arrays(info.name, spec), *storage.row_exponent_arrays(info.name, n)])


def other_bytes(shapes: Mapping[str, tuple[int, ...]], tensors: Collection[TensorInfo]) -> int:
    """Bytes of everything else that an encoder computes with: biases, norms, tables without a plan.

    Args:
        shapes: name -> shape of every tensor of the model; vectors are called ``M.weight`` and ``M.bias``.
        tensors: those that are planned.
    """
    blocks = {info.name.removesuffix(".weight"): info.block for info in tensors}
    total = _bytes(storage.function_table(name) for name in storage.TABLES)
    for name in shapes.keys() - {info.name for info in tensors}:
        layer, _, part = name.rpartition(".")
        total += _vector_bytes(name, shapes[name], layer, part, blocks.get(layer))
    return total


def _vector_bytes(name: str, shape: tuple[int, ...], layer: str, part: str, block: str | None) -> int:
    """Bytes of a tensor without a plan; ``block`` is that of the matrix beside it."""
    if len(shape) == 2:
        return _bytes(storage.table_arrays(name, row_table(None, shape[0]), shape[1]))
    if block is not None and block != HEAD:
        return _bytes([storage.bias_array(name, shape[0])])
    if block == HEAD:
        return math.prod(shape) * FLOAT_BYTES
    if part != "weight":
        return 0  # a norm's arrays are counted once
    return _bytes([*storage.norm_arrays(layer, shape[0]), storage.channel_array(layer, shape[0])])


def _float_arrays(entry: BlockBits, n: int, k: int) -> list[StoredArray]:
    """The arrays of a matrix of the head, as the float kernels read it."""
    if entry.bits == FLOAT_BITS:
        return [float_array(entry.tensor, n, k)]
    segment = StoredSegment(
        prefix=entry.tensor,
        rows=n,
        bits=entry.bits,
        group_size=entry.group_size or k,
        offset=entry.offset,
        scale_dtype=entry.scale_dtype,
    )
    return segment.arrays(k)


def _bytes(arrays: Iterable[StoredArray]) -> int:
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in arrays)
