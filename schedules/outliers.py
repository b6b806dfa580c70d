# SPDX-License-Identifier: Apache-2.0
"""Sparse outliers: single weights that the planes miss by much, added to what the planes give.

W = planes + S, S sparse (the dense-and-sparse form of SqueezeLLM). Its entries are stored by tiles of rows,
as many rows as have places below 2^16::

    starts  int32[tiles + 1]              entries starts[t] .. starts[t + 1] belong to tile t
    places  uint16 (int32)[entries]       row within the tile * k + column, ascending
    values  float16[entries]

4 bytes an entry, and no count per row: most rows have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_TILE_ROWS = 64
"""The kernels' block of rows: a tile lies within one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliers:
    """The entries of S [n, k].

    Attributes:
        places: int64[m], row * k + column, ascending.
        values: float16[m].
    """

    places: NDArray[np.int64]
    values: NDArray[np.float16]

    def __post_init__(self) -> None:
        if self.places.ndim != 1 or self.places.shape != self.values.shape:
            raise ValueError(f"{self.places.shape} places of outliers for {self.values.shape} values")


def outlier_count(percent: float, n: int, k: int) -> int:
    """Entries of a matrix [n, k] with so many percent of outliers."""
    return round(percent * n * k / 100)


def tile_rows(k: int) -> int:
    """Rows that share a start: the most, a power of two up to 64, whose places fit in uint16."""
    rows = MAX_TILE_ROWS
    while rows > 1 and rows * k > 1 << 16:
        rows //= 2
    return rows


def row_tiles(n: int, k: int) -> int:
    """Tiles of a matrix [n, k]; the last may have fewer rows."""
    return -(-n // tile_rows(k))


def place_dtype(k: int) -> str:
    """What places are stored in."""
    return "uint16" if tile_rows(k) * k <= 1 << 16 else "int32"


def outlier_arrays(percent: float, n: int, k: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each stored array by its name; none where not a single entry is kept."""
    count = outlier_count(percent, n, k)
    if not count:
        return {}
    return {
        "starts": ((row_tiles(n, k) + 1,), "int32"),
        "places": ((count,), place_dtype(k)),
        "values": ((count,), "float16"),
    }


def outlier_bytes(percent: float, n: int, k: int) -> int:
    """Bytes of the stored arrays."""
    arrays = outlier_arrays(percent, n, k).values()
    return sum(shape[0] * np.dtype(dtype).itemsize for shape, dtype in arrays)


def pack_outliers(outliers: Outliers, n: int, k: int) -> dict[str, NDArray[Any]]:
    """The stored arrays of a matrix [n, k] by name."""
    rows = tile_rows(k)
    edges = np.arange(row_tiles(n, k) + 1) * rows * k
    return {
        "starts": np.searchsorted(outliers.places, edges).astype(np.int32),
        "places": (outliers.places % (rows * k)).astype(place_dtype(k)),
        "values": outliers.values,
    }


def unpack_outliers(
    starts: NDArray[np.int32], places: NDArray[np.integer], values: NDArray[np.float16], n: int, k: int
) -> Outliers:
    """The inverse of ``pack_outliers``; ValueError for arrays that it cannot have made."""
    rows, counts = tile_rows(k), np.diff(starts)
    if starts[0] != 0 or starts[-1] != len(places) or (counts < 0).any():
        raise ValueError("the starts of outliers do not rise from 0 to their number")
    wide = np.repeat(np.arange(len(counts)) * rows * k, counts) + places
    if (places < 0).any() or (places >= rows * k).any() or (np.diff(wide) <= 0).any():
        raise ValueError("the places of outliers do not ascend within their rows")
    if len(wide) and wide[-1] >= n * k:
        raise ValueError(f"an outlier lies beyond the last of {n} rows")
    if not np.isfinite(values).all():
        raise ValueError("an outlier is not finite")
    return Outliers(places=wide.astype(np.int64), values=values)


def add_outliers(weight: NDArray[np.float32], outliers: Outliers) -> None:
    """Adds S to the planes' float32[n, k], in place."""
    weight.reshape(-1)[outliers.places] += outliers.values
