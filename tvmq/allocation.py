# SPDX-License-Identifier: Apache-2.0
"""Which bits, under a budget in bytes, in milliseconds, or both: a multiple-choice knapsack.

Every matrix offers one choice per width; an embedding also offers many ways to cut its words, so that the
words are decided together with everything else. ``solve`` is exact (scipy's milp) and says by how much the
Lagrangian bound, which is found without scipy, lies below.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .installation import require

Floats = NDArray[np.float64]
Clusters = tuple[tuple[int, int], ...]
"""(rows, bits) in the order of storage; one pair is a matrix of one width."""

RELATIVE_GAP = 1e-6
"""How close to the optimum the exact solver must come before it stops."""
SECONDS = 60.0
"""Longest search of the exact solver; what it holds then is used, and the gap says how good that is."""
TOLERANCE = 1e-5
"""Milliseconds; ten times what the exact solver may exceed a limit by."""
_PRECISION = 1e-13
"""Relative width at which the bisection of a price stops."""
_SECTIONS = 60
"""Golden sections of the second price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to store a matrix.

    Attributes:
        clusters: bits, by rows.
        bytes: everything that ships for it.
        ms: milliseconds per output token that it takes.
        damage: expected loss.
    """

    clusters: Clusters
    bytes: int
    ms: float
    damage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A matrix and the ways to store it, at least one."""

    tensor: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """One choice per item.

    Attributes:
        picks: the chosen one of each item's choices.
        bytes: their sum.
        ms: their sum.
        damage: their sum.
        bound: no solution within the budgets has less damage (the Lagrangian dual).
    """

    picks: tuple[int, ...]
    bytes: int
    ms: float
    damage: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the damage lies above the bound, relative to the damage."""
        return max(self.damage - self.bound, 0.0) / self.damage if self.damage else 0.0


def solve(items: Sequence[Item], *, max_bytes: float = math.inf, max_ms: float = math.inf) -> Solution:
    """The choices of least total damage within both budgets.

    Both budgets are kept; of plans within ``TOLERANCE`` of the one in milliseconds the best may be missed.

    Raises:
        UsageError: even the smallest (or fastest) choices exceed a budget.
        MissingToolError: scipy is not installed.
    """
    require("scipy", "plan")
    table = _Table.of(items)
    _check_reachable(table, max_bytes, max_ms)
    picks = _milp(table, max_bytes, max_ms)
    if picks is not None and table.sum_of(table.ms, picks) > max_ms:
        picks = _milp(table, max_bytes, max_ms - TOLERANCE)
    if picks is None:
        raise UsageError("the budgets in bytes and milliseconds cannot both be kept; give more of one")
    return _solution(table, picks, max_bytes, max_ms)


def _milp(table: _Table, max_bytes: float, max_ms: float) -> NDArray[np.intp] | None:
    """The choice of each item, or None where nothing fits; ``max_ms`` holds to within the tolerance."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    real = table.real
    owner = np.repeat(np.arange(len(real)), table.counts)
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    # bytes are whole numbers: half a byte more admits nothing more, and keeps the solver's tolerance out
    whole = math.floor(max_bytes) + 0.5 if math.isfinite(max_bytes) else max_bytes
    limits = ((table.bytes, whole), (table.ms, max_ms))
    constraints += [
        LinearConstraint(cost[real][None], ub=limit) for cost, limit in limits if math.isfinite(limit)
    ]
    with _silence():
        found = milp(
            table.damage[real] / (float(table.damage[real].max()) or 1.0),
            constraints=constraints,
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": SECONDS},
        )
    if found.x is None:
        return None
    taken = np.zeros(real.shape)
    taken[real] = found.x
    return np.argmax(taken, 1)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing reaches stdout: the solver's C++ prints remarks there even when told not to, into our JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def solve_lagrangian(items: Sequence[Item], *, max_bytes: float) -> Solution:
    """Within ``max_bytes``, by one price per byte: on the convex hull of the optimum, without scipy."""
    table = _Table.of(items)
    _check_reachable(table, max_bytes, math.inf)
    price = _price(table, table.bytes, table.damage, max_bytes)
    return _solution(table, np.argmin(table.damage + price * table.bytes, 1), max_bytes, math.inf)


def pareto(items: Sequence[Item], max_bytes: Sequence[float]) -> list[Solution]:
    """The different solutions for several sizes, as far as they can be reached, on the convex hull."""
    least = sum(min(choice.bytes for choice in item.choices) for item in items)
    found = [solve_lagrangian(items, max_bytes=limit) for limit in max_bytes if limit >= least]
    return list({solution.picks: solution for solution in found}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """All choices as matrices [items, most choices], rows by rising bytes, padded with infinite damage.

    Attributes:
        place: index of each choice among its item's.
        counts: choices per item.
    """

    bytes: Floats
    ms: Floats
    damage: Floats
    place: NDArray[np.intp]
    counts: NDArray[np.intp]

    @classmethod
    def of(cls, items: Sequence[Item]) -> _Table:
        counts = np.array([len(item.choices) for item in items])
        shape = (len(items), int(counts.max()))
        damage, place = np.full(shape, np.inf), np.zeros(shape, np.intp)
        sizes, ms = np.zeros(shape), np.zeros(shape)
        for row, item in enumerate(items):
            order = sorted(range(counts[row]), key=lambda i: (item.choices[i].bytes, item.choices[i].damage))
            for column, index in enumerate(order):
                place[row, column] = index
                sizes[row, column] = item.choices[index].bytes
                ms[row, column] = item.choices[index].ms
                damage[row, column] = item.choices[index].damage
        return cls(bytes=sizes, ms=ms, damage=damage, place=place, counts=counts)

    @property
    def real(self) -> NDArray[np.bool_]:
        """Where a choice is, not padding."""
        return np.isfinite(self.damage)

    def sum_of(self, values: Floats, picks: NDArray[np.intp]) -> float:
        """The total of ``values`` over one column per row."""
        return float(values[np.arange(len(picks)), picks].sum())

    def least(self, values: Floats) -> float:
        """The smallest total that any choices have."""
        return float(np.where(self.real, values, np.inf).min(1).sum())


def _check_reachable(table: _Table, max_bytes: float, max_ms: float) -> None:
    least, fastest = table.least(table.bytes), table.least(table.ms)
    if least > max_bytes:
        raise UsageError(
            f"a budget of {max_bytes / 1e6:.3f} MB for the matrices cannot be kept: the smallest plan takes "
            f"{least / 1e6:.3f} MB"
        )
    if fastest > max_ms:
        raise UsageError(
            f"a budget of {max_ms:g} ms per token cannot be kept: the fastest plan takes {fastest:.3g} ms"
        )


def _solution(table: _Table, picks: NDArray[np.intp], max_bytes: float, max_ms: float) -> Solution:
    return Solution(
        picks=tuple(table.place[np.arange(len(picks)), picks].tolist()),
        bytes=int(table.sum_of(table.bytes, picks)),
        ms=table.sum_of(table.ms, picks),
        damage=table.sum_of(table.damage, picks),
        bound=_bound(table, max_bytes, max_ms),
    )


def _bound(table: _Table, max_bytes: float, max_ms: float) -> float:
    """max over a, b >= 0 of min damage + a (bytes - max_bytes) + b (ms - max_ms).

    Any a and b give a valid bound. The value is concave in them: a by bisection, b by golden section.
    """

    def dual(ms_price: float) -> float:
        cost = table.damage + ms_price * table.ms
        price = _price(table, table.bytes, cost, max_bytes)
        paid = (price * max_bytes if price else 0.0) + (ms_price * max_ms if ms_price else 0.0)
        return table.least(cost + price * table.bytes) - paid

    best = dual(0.0)
    if not math.isfinite(max_ms):
        return best
    low, high = 0.0, 2 * _price(table, table.ms, table.damage, max_ms)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(_SECTIONS):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        left, right = dual(a), dual(b)
        best = max(best, left, right)
        low, high = (low, b) if left > right else (a, high)
    return best


def _price(table: _Table, spent: Floats, cost: Floats, limit: float) -> float:
    """The lowest price per unit ``spent`` at which the choices of least total cost keep ``limit``.

    At least 0; the limit must be one that some choices keep.
    """

    def keeps(price: float) -> bool:
        return table.sum_of(spent, np.argmin(cost + price * spent, 1)) <= limit

    if not math.isfinite(limit) or keeps(0.0):
        return 0.0
    high = 1e-12 * float(cost[table.real].max())
    while not keeps(high):
        high *= 4
    low = 0.0
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high
