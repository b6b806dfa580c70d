# SPDX-License-Identifier: Apache-2.0
"""Binary-coded weights: what the quantizers produce, what the kernels read.

``BitPlanes`` is the meaning (planes, scales, offsets of one matrix, kernel-independent);
``pack_keys`` lays planes out as the 4-bit table keys that every LUT kernel streams
(one layout for all ISA levels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .outliers import Outliers, add_outliers, pack_outliers
from .pow2 import pow2_values

MU = 4
"""Activations per lookup table (16 entries: one byte-shuffle register)."""
TILE_ROWS = 16
STEP_COLUMNS = 32
"""One tile of one plane: 16 rows x 32 columns = 64 bytes of keys."""
BLOCK_ROWS = 64
"""Rows are padded to whole blocks of 4 tiles, the unit that a kernel keeps in registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BitPlanes:
    """A matrix as a sum of scaled binary planes: ``W ~ sum_i scales[i] * B_i + offsets + S``.

    Attributes:
        planes: uint8[bits, n, ceil(k / 8)], ``np.packbits(..., bitorder="little")`` along the
            columns; bit 1 means +1, bit 0 means -1. Spare bits of the last byte are 0.
        scales: float16 or float32 [bits, n, groups]; or int8 mantissas, see ``exponents``.
        offsets: same dtype [n, groups], or None.
        shape: (n, k) of the matrix: n output rows, k columns.
        group_size: columns that share a scale; divides k. Groups = k / group_size.
        exponents: int8[n, groups], the powers of two that mantissas and offsets are multiplied by (see
            ``pow2``); None for scales in floating point.
        outliers: single weights, added to what the planes give; None without any.
    """

    planes: NDArray[np.uint8]
    scales: NDArray[np.floating] | NDArray[np.int8]
    offsets: NDArray[np.floating] | NDArray[np.int8] | None
    shape: tuple[int, int]
    group_size: int
    exponents: NDArray[np.int8] | None = None
    outliers: Outliers | None = None

    def __post_init__(self) -> None:
        n, k = self.shape
        bits = self.planes.shape[0]
        if self.group_size < 1 or k % self.group_size:
            raise ValueError(f"group size {self.group_size} does not divide {k} columns")
        expected = (bits, n, (k + 7) // 8)
        if self.planes.shape != expected or self.planes.dtype != np.uint8:
            raise ValueError(f"planes are {self.planes.dtype}{self.planes.shape}, expected uint8{expected}")
        if self.scales.shape != (bits, n, k // self.group_size):
            raise ValueError(f"scales are {self.scales.shape}, expected {(bits, n, k // self.group_size)}")
        if self.offsets is not None and self.offsets.shape != (n, k // self.group_size):
            raise ValueError(f"offsets are {self.offsets.shape}, expected {(n, k // self.group_size)}")
        if (self.scales.dtype == np.int8) != (self.exponents is not None):
            raise ValueError("mantissas in int8 and exponents belong together")
        if self.exponents is not None and self.exponents.shape != (n, k // self.group_size):
            raise ValueError(f"exponents are {self.exponents.shape}, expected {(n, k // self.group_size)}")
        if self.outliers is not None and not (self.outliers.places < n * k).all():
            raise ValueError(f"outliers lie beyond the {n} x {k} weights")

    @property
    def bits(self) -> int:
        return self.planes.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of planes, scales, exponents, offsets and outliers (without row padding)."""
        arrays = [self.planes, self.scales, self.exponents, self.offsets]
        if self.outliers is not None:
            arrays += pack_outliers(self.outliers, *self.shape).values()
        return sum(array.nbytes for array in arrays if array is not None)

    def alphas(self) -> NDArray[np.float32]:
        """float32[bits, n, groups]: the scales as numbers, whatever they are stored as."""
        if self.exponents is None:
            return self.scales.astype(np.float32)
        return pow2_values(cast("NDArray[np.int8]", self.scales), self.exponents)

    def float_offsets(self) -> NDArray[np.float32] | None:
        """float32[n, groups]: the offsets as numbers."""
        if self.offsets is None or self.exponents is None:
            return None if self.offsets is None else self.offsets.astype(np.float32)
        return pow2_values(cast("NDArray[np.int8]", self.offsets), self.exponents)

    def signs(self) -> NDArray[np.int8]:
        """The planes as int8[bits, n, k] of -1 and +1."""
        bits = np.unpackbits(self.planes, axis=2, count=self.shape[1], bitorder="little")
        return (bits.astype(np.int8) << 1) - 1

    def dequantize(self) -> NDArray[np.float32]:
        """float32[n, k]: the matrix that the kernels multiply by."""
        n, k = self.shape
        groups = k // self.group_size
        out = np.zeros((n, groups, self.group_size), np.float32)
        for plane, scale in zip(self.signs(), self.alphas(), strict=True):
            out += plane.reshape(out.shape) * scale[:, :, None]
        offsets = self.float_offsets()
        if offsets is not None:
            out += offsets[:, :, None]
        if self.outliers is not None:
            add_outliers(out, self.outliers)
        return out.reshape(n, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordPlanes:
    """An embedding whose rows (words) carry different bit widths, stored by frequency.

    Attributes:
        order: int32[n]; storage row r holds word ``order[r]`` (most frequent first).
        segments: consecutive storage rows with one bit width each.
    """

    order: NDArray[np.int32]
    segments: tuple[BitPlanes, ...]

    def __post_init__(self) -> None:
        rows = sum(s.shape[0] for s in self.segments)
        if rows != self.order.shape[0]:
            raise ValueError(f"segments hold {rows} rows, the order names {self.order.shape[0]}")

    @property
    def shape(self) -> tuple[int, int]:
        return (self.order.shape[0], self.segments[0].shape[1])

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self.segments) + self.order.nbytes

    def dequantize(self) -> NDArray[np.float32]:
        """float32[n, k] with rows at their word ids."""
        out = np.empty(self.shape, np.float32)
        out[self.order] = np.concatenate([s.dequantize() for s in self.segments])
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnLayout:
    """How k columns in groups are laid out for table kernels.

    Groups are padded to whole steps of 32 columns (a key must not span two groups); activations are
    scaled to int8 per ``chunk`` columns, the longest multiple of 32 up to 128 that divides a group.
    """

    k: int
    group_size: int

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.k % self.group_size:
            raise ValueError(f"group size {self.group_size} does not divide {self.k} columns")

    @property
    def groups(self) -> int:
        return self.k // self.group_size

    @property
    def padded_group(self) -> int:
        return -(-self.group_size // STEP_COLUMNS) * STEP_COLUMNS

    @property
    def padded_k(self) -> int:
        return self.groups * self.padded_group

    @property
    def steps(self) -> int:
        return self.padded_k // STEP_COLUMNS

    @property
    def chunk(self) -> int:
        return max(c for c in (32, 64, 96, 128) if self.padded_group % c == 0)

    @property
    def chunks(self) -> int:
        return self.padded_k // self.chunk

    @property
    def dense(self) -> bool:
        """Whether padded and plain columns coincide."""
        return self.padded_group == self.group_size

    @property
    def table_key(self) -> tuple[int, int, int]:
        """Linears with the same key (and the same activation) can share one table."""
        return (self.k, self.chunk, 0 if self.dense else self.group_size)

    def pad(self, matrix: NDArray) -> NDArray:
        """[..., k] -> [..., padded_k], zeros in the padding of each group."""
        lead = matrix.shape[:-1]
        grouped = matrix.reshape(*lead, self.groups, self.group_size)
        width = [(0, 0)] * (grouped.ndim - 1) + [(0, self.padded_group - self.group_size)]
        return np.pad(grouped, width).reshape(*lead, self.padded_k)


def row_blocks(n: int) -> int:
    """Blocks of 64 rows that hold n rows."""
    return -(-n // BLOCK_ROWS)


def pack_keys(planes: BitPlanes) -> NDArray[np.uint8]:
    """Planes as table keys: uint8[blocks, bits, steps, 4, 64].

    Within the 64 bytes of one tile (16 rows x 32 columns), byte j belongs to row j // 4: its low
    nibble is the key of column group j % 4 (4 columns, lowest column in bit 0), its high nibble that
    of group 4 + j % 4. Padding rows and columns have key bits 0.
    """
    n, k = planes.shape
    layout = ColumnLayout(k=k, group_size=planes.group_size)
    bits = np.unpackbits(planes.planes, axis=2, count=k, bitorder="little")
    bits = layout.pad(bits)
    blocks = row_blocks(n)
    bits = np.pad(bits, ((0, 0), (0, blocks * BLOCK_ROWS - n), (0, 0)))
    nibbles = np.packbits(
        bits.reshape(planes.bits, blocks, 4, TILE_ROWS, layout.steps, 8, MU), axis=-1, bitorder="little"
    )[..., 0]
    low, high = nibbles[..., :4], nibbles[..., 4:]
    tiles: NDArray[np.uint8] = np.bitwise_or(
        low, high << 4, dtype=np.uint8
    )  # [bits, blocks, tile, row, step, group of 4]
    return np.ascontiguousarray(tiles.transpose(1, 0, 4, 2, 3, 5)).reshape(
        blocks, planes.bits, layout.steps, 4, TILE_ROWS * 4
    )


def pack_scales(planes: BitPlanes) -> NDArray[Any]:
    """Scales (or mantissas) as [blocks, bits, groups, 64], zero for padding rows."""
    return np.stack([_by_block(plane) for plane in planes.scales], axis=1)


def pack_offsets(planes: BitPlanes) -> NDArray[Any] | None:
    """Offsets as [blocks, groups, 64], zero for padding rows; None where there are none."""
    return None if planes.offsets is None else _by_block(planes.offsets)


def pack_exponents(planes: BitPlanes) -> NDArray[np.int8] | None:
    """Exponents as [blocks, groups, 64], zero for padding rows; None where there are none."""
    return None if planes.exponents is None else _by_block(planes.exponents)


def _by_block(values: NDArray[Any]) -> NDArray[Any]:
    """[n, groups] -> [blocks, groups, 64], zero for padding rows."""
    n, groups = values.shape
    blocks = row_blocks(n)
    padded = np.pad(values, ((0, blocks * BLOCK_ROWS - n), (0, 0)))
    return np.ascontiguousarray(padded.reshape(blocks, BLOCK_ROWS, groups).transpose(0, 2, 1))


def word_dtype(words: int) -> str:
    """Smallest dtype that the kernels read word ids in."""
    return "uint16" if words <= 1 << 16 else "int32"
