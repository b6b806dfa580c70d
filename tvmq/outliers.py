# SPDX-License-Identifier: Apache-2.0
"""Outliers while a matrix is quantized: which weights they are, rows without them, values as stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import check_percent
from schedules.outliers import outlier_count

CHUNK_WEIGHTS = 1 << 20
"""Weights whose damage is looked at together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The weights of some rows that are outliers: what the planes miss there is stored beside them.

    Attributes:
        places: intp[m], row * k + column within the rows, ascending.
        values: float32[m], what they should be.
    """

    places: NDArray[np.intp]
    values: NDArray[np.float32]


NOTHING = Taken(places=np.empty(0, np.intp), values=np.empty(0, np.float32))


def choose_outliers(
    weight: NDArray[np.floating],
    bits: int,
    group: int,
    percent: float,
    importance: NDArray[np.floating] | None,
) -> NDArray[np.int64]:
    """The weights that planes alone would do the most damage to: int64[m] places, ascending.

    The damage of weight j of a row is r_j^2 H_jj, r what greedy codes of so many bits leave of it: close to
    what better codes leave of the weights beyond the largest level. (By r_j^2 with better codes, by |w_j|, or
    by r_j^2 / (H^-1)_jj, a whole model loses as much, within 5 %.)

    Args:
        weight: float[n, k].
        bits: of its planes.
        group: columns that share a scale.
        percent: of the weights.
        importance: float[k], H_jj; None counts all columns alike.

    Raises:
        ValueError: a share that is none.
    """
    check_percent(percent)
    n, k = weight.shape
    count, step = outlier_count(percent, n, k), max(1, CHUNK_WEIGHTS // k)
    places, damage = np.empty(0, np.int64), np.empty(0, np.float32)
    for first in range(0, n if count else 0, step):
        left = np.abs(np.asarray(weight[first : first + step], np.float32)).reshape(-1, group)
        for _ in range(bits):
            left = np.abs(left - left.mean(1, keepdims=True))
        found = np.square(left.reshape(-1, k)) * (1 if importance is None else importance)
        damage = np.concatenate([damage, found.reshape(-1).astype(np.float32)])
        places = np.concatenate([places, np.arange(first * k, first * k + left.size)])
        worst = np.argpartition(-damage, count - 1)[:count]
        places, damage = places[worst], damage[worst]
    return np.sort(places)


def take_out(
    rows: NDArray[np.float32], places: NDArray[np.int64], first: int, group: int
) -> tuple[NDArray[np.float32], Taken]:
    """Rows with outliers at the mean magnitude of their group, and the outliers.

    Args:
        rows: float32[r, k].
        places: those of the whole matrix.
        first: place of the first weight of the rows.
        group: columns that share a scale.
    """
    begin, end = np.searchsorted(places, [first, first + rows.size])
    if begin == end:
        return rows, NOTHING
    within = (places[begin:end] - first).astype(np.intp)
    flat = rows.reshape(-1)
    values = flat[within]
    kept = np.abs(flat)
    kept[within] = 0
    totals = kept.reshape(-1, group).sum(1, dtype=np.float64)
    counts = np.maximum(group - np.bincount(within // group, minlength=len(totals)), 1)
    replaced = flat.copy()
    replaced[within] = np.copysign((totals / counts)[within // group], values)
    return replaced.reshape(rows.shape), Taken(places=within, values=values)


def halves(values: NDArray[np.floating]) -> NDArray[np.float16]:
    """Values as they are stored; ValueError where one is too large."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError(f"an outlier exceeds float16 (largest {np.finfo(np.float16).max:g}); rescale")
    return halves


