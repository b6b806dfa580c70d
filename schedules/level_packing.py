# SPDX-License-Identifier: Apache-2.0
"""Weights as int8 levels: what the integer products read.

A weight is ``level * 2**exponent`` with one exponent a row. Its level comes from binary planes and int8
alphas (``LevelPlanes``: the keys of the table kernels, so the planes of both are the same bytes) or is
stored as it is. Columns are padded to whole tiles of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .packing import BLOCK_ROWS, TILE_ROWS, BitPlanes, pack_keys, pack_scales, row_blocks

TILE_COLUMNS = 64
"""Columns of one AMX tile; activations, groups and byte levels come in whole tiles."""
QUAD = 4
"""Columns that one 32-bit lane of an integer dot product multiplies."""
TILE_BYTES = TILE_ROWS * TILE_COLUMNS
PANEL_ROWS = 2 * TILE_ROWS
LIMIT = 127
"""Largest magnitude of a level and of an activation."""
MAX_BITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelPlanes:
    """Integer levels as a sum of binary planes: ``level = sum_i alphas[i] * B_i``, at most 127 in magnitude.

    Attributes:
        planes: uint8[bits, n, ceil(k / 8)] as in ``packing.BitPlanes``; 1 to 7 bits.
        alphas: int8[bits, n, groups]; their magnitudes add up to 127 at most in every row and group.
        shape: (n, k) of the matrix: n output rows, k columns.
    """

    planes: NDArray[np.uint8]
    alphas: NDArray[np.int8]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        n, k = self.shape
        bits = self.planes.shape[0]
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"levels of {bits} planes, expected 1 to {MAX_BITS}")
        if self.planes.shape != (bits, n, (k + 7) // 8) or self.planes.dtype != np.uint8:
            expected = (bits, n, (k + 7) // 8)
            raise ValueError(f"planes are {self.planes.dtype}{self.planes.shape}, expected uint8{expected}")
        if self.alphas.dtype != np.int8 or self.alphas.shape[:2] != (bits, n) or self.alphas.ndim != 3:
            found = f"{self.alphas.dtype}{self.alphas.shape}"
            raise ValueError(f"alphas are {found}, expected int8({bits}, {n}, groups)")
        check_groups(k, self.groups)
        largest = int(np.abs(self.alphas.astype(np.int32)).sum(axis=0).max(initial=0))
        if largest > LIMIT:
            raise ValueError(f"alphas add up to a level of {largest}, expected {LIMIT} at most")

    @property
    def bits(self) -> int:
        return self.planes.shape[0]

    @property
    def groups(self) -> int:
        return self.alphas.shape[2]

    def levels(self) -> NDArray[np.int8]:
        """int8[n, k]: the levels that the kernels multiply by."""
        n, k = self.shape
        bits = np.unpackbits(self.planes, axis=2, count=k, bitorder="little")
        signs = (bits.astype(np.int8) << 1) - 1
        grouped = signs.reshape(self.bits, n, self.groups, -1) * self.alphas[..., None]
        return grouped.sum(axis=0, dtype=np.int8).reshape(n, k)


def padded_columns(k: int) -> int:
    """Columns of activations and of byte levels: k up to whole tiles of 64."""
    return -(-k // TILE_COLUMNS) * TILE_COLUMNS


def check_groups(k: int, groups: int) -> None:
    """Several column groups must be whole tiles of 64 columns; ValueError otherwise."""
    if groups < 1 or (groups > 1 and k % (groups * TILE_COLUMNS)):
        raise ValueError(f"{k} columns are not {groups} groups of a multiple of {TILE_COLUMNS} columns")


def pack_level_keys(weight: LevelPlanes) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Keys uint8[blocks, bits, steps, 4, 64] as ``pack_keys``, alphas int8[blocks, bits, groups, 64]."""
    planes = BitPlanes(
        planes=weight.planes,
        scales=weight.alphas.astype(np.float32),
        offsets=None,
        shape=weight.shape,
        group_size=weight.shape[1] // weight.groups,
    )
    return pack_keys(planes), pack_scales(planes).astype(np.int8)


def pack_levels(levels: NDArray[np.int8]) -> NDArray[np.int8]:
    """int8[n, k] -> int8[panels, padded_k / 64, 2, 1024], zeros as padding.

    A panel is 32 rows; rows are padded to blocks of 64, so panels come in pairs. The 1024 bytes of one tile
    (16 rows x 64 columns) are 16 quads of columns, each 16 rows x 4 columns: what a tile register of AMX
    holds, and in pieces of 64 bytes what ``vpdpbusd`` multiplies.

    Raises:
        ValueError: a level of -128, which has no negative.
    """
    n, k = levels.shape
    if levels.size and int(levels.min()) < -LIMIT:
        raise ValueError(f"levels hold -128, expected {-LIMIT} to {LIMIT}")
    rows, columns = row_blocks(n) * BLOCK_ROWS, padded_columns(k)
    padded = np.pad(levels, ((0, rows - n), (0, columns - k)))
    tiles = padded.reshape(
        rows // PANEL_ROWS, 2, TILE_ROWS, columns // TILE_COLUMNS, TILE_COLUMNS // QUAD, QUAD
    )
    ordered = np.ascontiguousarray(tiles.transpose(0, 3, 1, 4, 2, 5), np.int8)
    return ordered.reshape(rows // PANEL_ROWS, columns // TILE_COLUMNS, 2, TILE_BYTES)


def pack_rows(values: NDArray) -> NDArray:
    """One value a row, [n], as [blocks, 64] with zeros as padding."""
    blocks = row_blocks(values.shape[0])
    return np.pad(values, (0, blocks * BLOCK_ROWS - values.shape[0])).reshape(blocks, BLOCK_ROWS)


def pack_row_exponents(exponents: NDArray[np.int8]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Row exponents int8[n] as shifts uint8[blocks, 64] below the largest, and the largest as int32[1]."""
    top = int(exponents.max())
    return pack_rows((top - exponents.astype(np.int32)).astype(np.uint8)), np.array([top], np.int32)


def pack_group_shifts(shifts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Down-shifts of a row's groups, uint8[n, groups], as [blocks, groups, 64] with zeros as padding."""
    n, groups = shifts.shape
    blocks = row_blocks(n)
    padded = np.pad(shifts, ((0, blocks * BLOCK_ROWS - n), (0, 0)))
    return np.ascontiguousarray(padded.reshape(blocks, BLOCK_ROWS, groups).transpose(0, 2, 1))
