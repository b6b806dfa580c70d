# SPDX-License-Identifier: Apache-2.0
"""Weights that follow from their shape alone: computed when a model is loaded, never shipped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sinusoidal(rows: int, columns: int) -> NDArray[np.float32]:
    """float32[rows, columns]: Marian's positions, sines in the first half of the columns, then cosines."""
    column = np.arange(columns)
    angles = np.arange(rows)[:, None] / np.power(10000, 2 * (column // 2) / columns)
    return np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1).astype(np.float32)
