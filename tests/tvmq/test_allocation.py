# SPDX-License-Identifier: Apache-2.0
"""The solver: equal to brute force, never over a budget, never below its bound, better with more."""

from __future__ import annotations

import ctypes
import itertools
import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.allocation import TOLERANCE, Choice, Item, pareto, solve, solve_lagrangian
from tvmq.errors import UsageError


@st.composite
def problems(draw: st.DrawFn) -> list[Item]:
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    items = []
    for number in range(draw(st.integers(1, 5))):
        count = int(generator.integers(1, 5))
        sizes = generator.integers(1, 100, count)
        choices = tuple(
            Choice(
                clusters=((1, bits + 1),),
                bytes=int(size),
                ms=float(generator.uniform(0.1, 2)),
                damage=float(generator.exponential() * 4.0 ** -bits),
            )
            for bits, size in enumerate(np.sort(sizes) if draw(st.booleans()) else sizes)
        )
        items.append(Item(tensor=f"t{number}", choices=choices))
    return items


def brute_force(items: list[Item], max_bytes: float, max_ms: float) -> float:
    """Least damage of all combinations within both budgets; infinite where there is none."""
    return min(
        (
            sum(choice.damage for choice in combination)
            for combination in itertools.product(*(item.choices for item in items))
            if sum(choice.bytes for choice in combination) <= max_bytes
            and sum(choice.ms for choice in combination) <= max_ms
        ),
        default=math.inf,
    )


def between(items: list[Item], what: str, part: float) -> float:
    costs = [[getattr(choice, what) for choice in item.choices] for item in items]
    low, high = sum(map(min, costs)), sum(map(max, costs))
    return low + part * (high - low)


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0, 1.1))
def test_bytes_alone(items: list[Item], part: float) -> None:
    limit = between(items, "bytes", part)
    found = solve(items, max_bytes=limit)
    assert found.bytes <= limit
    assert found.damage == pytest.approx(brute_force(items, limit, math.inf), rel=1e-5, abs=1e-9)
    assert found.bound <= found.damage * (1 + 1e-9) + 1e-12
    picked = [item.choices[pick] for item, pick in zip(items, found.picks, strict=True)]
    assert found.bytes == sum(choice.bytes for choice in picked)
    assert found.damage == pytest.approx(sum(choice.damage for choice in picked))
    approximate = solve_lagrangian(items, max_bytes=limit)
    assert approximate.bytes <= limit
    assert approximate.damage >= found.damage - 1e-9
    assert approximate.bound == pytest.approx(found.bound, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0.2, 1), st.floats(0.2, 1))
def test_both_budgets(items: list[Item], bytes_part: float, ms_part: float) -> None:
    limit, time = between(items, "bytes", bytes_part), between(items, "ms", ms_part)
    best, safe = (brute_force(items, limit, time - slack) for slack in (0, 2 * TOLERANCE))
    if math.isinf(safe):  # nothing fits, or only within the solver's tolerance of the limit
        with suppress(UsageError):
            assert solve(items, max_bytes=limit, max_ms=time).ms <= time
        return
    found = solve(items, max_bytes=limit, max_ms=time)
    assert found.bytes <= limit
    assert found.ms <= time
    assert best * (1 - 1e-5) - 1e-9 <= found.damage <= safe * (1 + 1e-5) + 1e-9
    assert found.bound <= found.damage * (1 + 1e-9) + 1e-12


@settings(max_examples=25, deadline=None)
@given(problems())
def test_more_bytes_never_hurt(items: list[Item]) -> None:
    limits = [between(items, "bytes", part) for part in (0, 0.3, 0.6, 1)]
    damages = [solve(items, max_bytes=limit).damage for limit in limits]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(damages))
    curve = pareto(items, limits)
    assert [point.bytes for point in curve] == sorted(point.bytes for point in curve)
    assert [point.damage for point in curve] == sorted((point.damage for point in curve), reverse=True)


def test_the_bound_is_close_where_there_are_many_items() -> None:
    generator = np.random.default_rng(5)
    items = [
        Item(
            tensor=str(i),
            choices=tuple(
                Choice(
                    clusters=((1, bits),), bytes=1000 * bits, ms=bits, damage=weight * 0.25**bits
                )
                for bits in range(1, 5)
            ),
        )
        for i, weight in enumerate(generator.exponential(size=100))
    ]
    found = solve(items, max_bytes=230_000)
    assert 0 <= found.gap < 0.005
    both = solve(items, max_bytes=230_000, max_ms=220)
    assert both.damage > found.damage
    assert 0 <= both.gap < 0.01


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_bytes": 9}, "smallest plan takes"),
        ({"max_ms": 0.5}, "fastest plan takes"),
    ],
)
def test_budgets_that_cannot_be_kept(limits: dict[str, float], message: str) -> None:
    item = Item(tensor="t", choices=(Choice(clusters=((1, 1),), bytes=10, ms=1, damage=1),))
    with pytest.raises(UsageError, match=message):
        solve([item], **limits)


def test_the_solver_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its library prints past Python, which would end up in the output of ``--json``."""
    library, exact = ctypes.CDLL(None), scipy.optimize.milp

    def loud(*arguments: Any, **options: Any) -> Any:
        library.puts(b"a remark")
        return exact(*arguments, **options)

    monkeypatch.setattr(scipy.optimize, "milp", loud)
    print("before")
    solve([Item(tensor="t", choices=(Choice(clusters=((1, 1),), bytes=1, ms=1.0, damage=1.0),))])
    library.fflush(None)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
