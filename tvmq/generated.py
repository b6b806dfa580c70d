# SPDX-License-Identifier: Apache-2.0
"""Weights that are computed or widened when a model is loaded, so that an artifact need not ship them.

``complete`` makes what functions take from what the weights file holds; ``halved`` is its counterpart at
compile time. Everything here is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .store import show
from .vm import aligned

if TYPE_CHECKING:
    from .manifest import Generated

MAX_ITEMS = 1 << 26
"""Entries of a computed table; a manifest that asks for more is not believed."""


def sinusoidal(rows: int, columns: int, *, start: int = 0) -> NDArray[np.float32]:
    """float32[rows - start, columns]: Marian's positions from ``start`` on.

    Sines are in the first half of the columns, then cosines. One number after the other: NumPy's sine and
    cosine would load 0.8 MB of code and tables for the few rows that a translation needs.
    """
    divisors = [10000 ** (2 * (column // 2) / columns) for column in range(columns)]
    table = np.empty((rows - start, columns), np.float32)
    for row, position in zip(table, range(start, rows), strict=True):
        sines = [math.sin(position / divisor) for divisor in divisors[0::2]]
        row[:] = sines + [math.cos(position / divisor) for divisor in divisors[1::2]]
    return table


def inverse(permutation: NDArray[Any]) -> NDArray[Any]:
    """The permutation that undoes ``permutation`` (integers [n]), in its dtype.

    Raises:
        ValueError: it does not hold each of 0..n-1 once.
    """
    count = permutation.size
    if permutation.ndim != 1 or not np.issubdtype(permutation.dtype, np.integer):
        raise ValueError(f"{permutation.dtype}{list(permutation.shape)} is no list of integers")
    if count and (permutation.min() < 0 or permutation.max() >= count):
        raise ValueError(f"it names numbers outside 0..{count - 1}")
    result = np.full(count, count, np.int64)
    result[permutation] = np.arange(count)
    if count and result.max() == count:
        raise ValueError(f"it does not name each of 0..{count - 1} once")
    return result.astype(permutation.dtype)


def is_plain_vector(name: str, array: NDArray[Any]) -> bool:
    """Whether a stored tensor is a bias, a norm or the like, which functions take in float32."""
    return array.ndim == 1 and ":" not in name


def halved(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """A plain float32 vector as float16 if that loses nothing; any other tensor as it is."""
    if array.dtype != np.float32 or not is_plain_vector(name, array):
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32).view(np.uint32), array.view(np.uint32)) else array


class PositionTable:
    """A table of ``sinusoidal`` positions whose rows are computed when first needed: few texts need all."""

    def __init__(self, rows: int, columns: int) -> None:
        """ValueError: more than MAX_ITEMS entries."""
        _check_size(rows, columns)
        self.array = aligned((rows, columns), np.float32)
        self._filled = 0

    def fill(self, count: int) -> None:
        """Make the first ``count`` rows right."""
        count = min(count, self.array.shape[0])
        if count > self._filled:
            self.array[self._filled : count] = sinusoidal(count, self.array.shape[1], start=self._filled)
            self._filled = count


def complete(
    stored: Mapping[str, NDArray[Any]],
    rules: Mapping[str, Generated],
    ready: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Everything that functions take: stored tensors (halved vectors widened), then computed ones.

    Args:
        stored: what the weights file holds.
        rules: how to compute what it does not hold.
        ready: tensors with a rule that the caller takes care of.

    Raises:
        ValueError: a rule that cannot be followed, naming its tensor.
    """
    tensors = {
        name: array.astype(np.float32)
        if array.dtype == np.float16 and is_plain_vector(name, array)
        else array
        for name, array in stored.items()
    }
    for name, rule in rules.items():
        if name in stored:
            raise ValueError(f"tensor {show(name)} is both stored and computed")
        try:
            tensors[name] = ready[name] if ready and name in ready else _compute(rule, stored)
        except ValueError as error:
            raise ValueError(f"tensor {show(name)} cannot be computed: {error}") from error
    return tensors


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MAX_ITEMS:
        raise ValueError(f"{rows} x {columns} entries, expected at most {MAX_ITEMS}")


def _compute(rule: Generated, stored: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    from .manifest import Sinusoidal

    if isinstance(rule, Sinusoidal):
        _check_size(rule.rows, rule.columns)
        return sinusoidal(rule.rows, rule.columns)
    if rule.source not in stored:
        raise ValueError(f"its source {show(rule.source)} is not stored")
    try:
        return inverse(stored[rule.source])
    except ValueError as error:
        raise ValueError(f"its source {show(rule.source)} is no permutation ({error})") from error
