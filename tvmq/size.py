# SPDX-License-Identifier: Apache-2.0
"""Bytes of a model under a plan, counted before anything is quantized: planes, scales, offsets, orders.

Mode block-int has arrays of its own, which ``integer_size`` counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, Mode, WordBits
from schedules.outliers import outlier_bytes
from schedules.packing import word_dtype
from schedules.pow2 import POW2, scale_storage

from .families.family import TensorInfo

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSize:
    """One block's share: its tensors' bytes (everything) and number of weights."""

    name: str
    bytes: int
    weights: int

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each weight, scales and all."""
        return self.bytes * 8 / self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeReport:
    """Size of a whole model.

    Attributes:
        bytes: everything.
        order_bytes: the part that says which row holds which word.
        other_bytes: parameters outside the plan (biases, norms), FP32 unless the mode has no floats.
        other_params: number of them.
        weights: number of weights in the planned matrices.
        blocks: the matrices by block, in the order of the model.
    """

    bytes: int
    order_bytes: int
    other_bytes: int
    other_params: int
    weights: int
    blocks: tuple[BlockSize, ...]

    @property
    def bits_per_weight(self) -> float:
        """Every bit of planes, scales, offsets and orders, over the number of weights."""
        return (self.bytes - self.other_bytes) * 8 / self.weights


def predict_size(
    tensors: Iterable[TensorInfo], plan: BitPlan, other_params: int, other_bytes: int | None = None
) -> SizeReport:
    """Size of ``tensors`` under ``plan`` plus ``other_params`` parameters: ``other_bytes``, or else in FP32.

    Raises:
        ValueError: the plan does not fit the tensors.
    """
    infos = list(tensors)
    plan.validate({info.name: info.shape for info in infos})
    entries = {entry.tensor: entry for entry in plan.entries()}
    blocks: dict[str, BlockSize] = {}
    for info in infos:
        before = blocks.get(info.block, BlockSize(name=info.block, bytes=0, weights=0))
        blocks[info.block] = BlockSize(
            name=info.block,
            bytes=before.bytes + planned_bytes(info, entries[info.name], plan.mode),
            weights=before.weights + info.shape[0] * info.shape[1],
        )
    other = other_params * FLOAT_BYTES if other_bytes is None else other_bytes
    return SizeReport(
        bytes=other + sum(block.bytes for block in blocks.values()),
        order_bytes=sum(order_bytes(entry.rows) for entry in plan.words),
        other_bytes=other,
        other_params=other_params,
        weights=sum(block.weights for block in blocks.values()),
        blocks=tuple(blocks.values()),
    )


def planned_bytes(info: TensorInfo, entry: BlockBits | WordBits, mode: Mode) -> int:
    """Bytes of one planned matrix in a model of ``mode``."""
    if mode == "float":
        return entry_bytes(entry, info.shape)
    from .integer_size import matrix_bytes  # imports TVM, which float plans do without

    return matrix_bytes(info, entry)


def entry_bytes(entry: BlockBits | WordBits, shape: tuple[int, int]) -> int:
    """Bytes of one planned matrix [n, k] of mode float, without any padding of its rows."""
    if isinstance(entry, WordBits):
        segments = sum(planes_bytes(entry, rows, shape[1], bits) for rows, bits in entry.clusters)
        return segments + order_bytes(entry.rows)
    return planes_bytes(entry, *shape, entry.bits)


def order_bytes(rows: int) -> int:
    """Bytes that say which of ``rows`` stored rows holds each word; the inverse is not stored."""
    return rows * np.dtype(word_dtype(rows)).itemsize


def planes_bytes(entry: BlockBits | WordBits, rows: int, columns: int, bits: int) -> int:
    """Bytes of ``rows`` of ``entry`` at ``bits``."""
    if bits == FLOAT_BITS:
        return rows * columns * FLOAT_BYTES
    groups = columns // (entry.group_size or columns)
    numbers = (bits + entry.offset) * np.dtype(scale_storage(entry.scale_dtype)).itemsize
    exponents = 1 if entry.scale_dtype == POW2 else 0
    dense = bits * rows * -(-columns // 8) + rows * groups * (numbers + exponents)
    return dense + outlier_bytes(entry.outliers, rows, columns)
