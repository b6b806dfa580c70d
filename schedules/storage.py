# SPDX-License-Identifier: Apache-2.0
"""How a weight is stored beside the library: names, shapes, dtypes and packed arrays of its parts.

The passes declare kernel parameters by these names, the build fills them, the runtime looks them up.
A quantized tensor ``w`` is stored as ``w:keys w:scales [w:exponents] [w:offsets]``, with outliers also
``w:starts w:places w:values``; an embedding with bits by word as ``w:0:keys ...`` per segment plus
``w:order`` (storage row to word) and ``w:rank`` (word to storage row); an FP32 matrix as ``w:packed``.
``b@w`` is the vector b in the storage order of w.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .float_gemm import pack as pack_float
from .outliers import outlier_arrays, pack_outliers
from .packing import (
    BLOCK_ROWS,
    BitPlanes,
    ColumnLayout,
    WordPlanes,
    pack_exponents,
    pack_keys,
    pack_offsets,
    pack_scales,
    row_blocks,
    word_dtype,
)
from .pow2 import POW2, scale_storage

TILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """One array of the weights file."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """Rows of one bit width of a stored matrix, with the prefix of its arrays' names.

    ``outliers`` are percent of its weights, as in the plan.
    """

    prefix: str
    rows: int
    bits: int
    group_size: int
    offset: bool
    scale_dtype: str
    outliers: float = 0.0

    def arrays(self, k: int) -> list[StoredArray]:
        """Keys, scales and, where present, exponents, offsets and outliers, for k columns."""
        layout = ColumnLayout(k=k, group_size=self.group_size)
        blocks = row_blocks(self.rows)
        per_group = (blocks, layout.groups, BLOCK_ROWS)
        dtype = scale_storage(self.scale_dtype)
        found = [
            self._array("keys", (blocks, self.bits, layout.steps, TILES, 64), "uint8"),
            self._array("scales", (blocks, self.bits, layout.groups, BLOCK_ROWS), dtype),
        ]
        if self.scale_dtype == POW2:
            found.append(self._array("exponents", per_group, "int8"))
        if self.offset:
            found.append(self._array("offsets", per_group, dtype))
        stored = outlier_arrays(self.outliers, self.rows, k)
        return found + [self._array(part, shape, kind) for part, (shape, kind) in stored.items()]

    def _array(self, part: str, shape: tuple[int, ...], dtype: str) -> StoredArray:
        return StoredArray(name=f"{self.prefix}:{part}", shape=shape, dtype=dtype)


def order_array(tensor: str, words: int) -> StoredArray:
    """The map from storage rows to words."""
    return StoredArray(name=f"{tensor}:order", shape=(words,), dtype=word_dtype(words))


def rank_array(tensor: str, words: int) -> StoredArray:
    """The map from words to storage rows."""
    return StoredArray(name=f"{tensor}:rank", shape=(words,), dtype=word_dtype(words))


def float_array(tensor: str, n: int, k: int) -> StoredArray:
    """An FP32 matrix [n, k] as ``float_gemm.pack`` lays it out."""
    return StoredArray(name=f"{tensor}:packed", shape=(row_blocks(n), k, BLOCK_ROWS), dtype="float32")


def reordered(vector: str, tensor: str) -> str:
    """Name of ``vector`` in the storage order of ``tensor``."""
    return f"{vector}@{tensor}"


def pack_quantized(tensor: str, weight: BitPlanes | WordPlanes) -> dict[str, NDArray]:
    """All arrays of a quantized tensor by stored name."""
    if isinstance(weight, BitPlanes):
        return _pack_segment(tensor, weight)
    arrays: dict[str, NDArray] = {}
    for index, segment in enumerate(weight.segments):
        arrays |= _pack_segment(f"{tensor}:{index}", segment)
    dtype = word_dtype(weight.shape[0])
    rank = np.empty_like(weight.order)
    rank[weight.order] = np.arange(weight.order.shape[0], dtype=weight.order.dtype)
    return arrays | {f"{tensor}:order": weight.order.astype(dtype), f"{tensor}:rank": rank.astype(dtype)}


def pack_plain(tensor: str, weight: NDArray[np.float32]) -> dict[str, NDArray]:
    """The array of an FP32 matrix that a product reads."""
    return {f"{tensor}:packed": pack_float(weight)}


def _pack_segment(prefix: str, planes: BitPlanes) -> dict[str, NDArray]:
    arrays: dict[str, NDArray | None] = {
        "keys": pack_keys(planes),
        "scales": pack_scales(planes),
        "exponents": pack_exponents(planes),
        "offsets": pack_offsets(planes),
    }
    if planes.outliers is not None:
        arrays |= pack_outliers(planes.outliers, *planes.shape)
    return {f"{prefix}:{part}": array for part, array in arrays.items() if array is not None}
