# SPDX-License-Identifier: Apache-2.0
"""Symmetric matrices stored by their upper half."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_triangle(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Upper triangle of a symmetric [k, k], row after row: [k (k + 1) / 2]."""
    return np.concatenate([row[i:] for i, row in enumerate(matrix)])


def unpack_triangle(packed: NDArray[np.float32]) -> NDArray[np.float32]:
    """The symmetric [k, k] of ``pack_triangle``."""
    k = side_of(len(packed))
    matrix = np.empty((k, k), np.float32)
    first = 0
    for i in range(k):
        row = packed[first : first + k - i]
        matrix[i, i:] = row
        matrix[i:, i] = row
        first += k - i
    return matrix


def side_of(count: int) -> int:
    """k with k (k + 1) / 2 = count, or 0."""
    k = int((np.sqrt(8 * count + 1) - 1) / 2 + 0.5)
    return k if k * (k + 1) // 2 == count else 0
