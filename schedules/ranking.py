# SPDX-License-Identifier: Apache-2.0
"""Which candidate to try next: the one whose likes did best so far, here and on near workloads.

Spaces have tens of schedules, few enough to try them all; the order decides what a short budget finds. A
candidate's expected gain is the mean of measured gains, weighted by how many knobs differ and how far their
workload is, and of a 1 for what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from functools import cache

from .schedule import AnySchedule, Schedule
from .tuning_log import FARTHEST, Key, TuningRecord, distance

UNKNOWN = 0.1
"""Weight of the rule's own speed."""


def ranked(
    key: Key, schedules: Sequence[AnySchedule], records: Iterable[TuningRecord]
) -> list[AnySchedule]:
    """The schedules, most promising first; in their own order where nothing is known."""
    known = [(record, distance(key, record.key)) for record in records]
    near = [(record, apart) for record, apart in known if apart <= FARTHEST]
    if not near:
        return list(schedules)
    return sorted(schedules, key=lambda schedule: -expected_gain(schedule, near))


def expected_gain(schedule: AnySchedule, near: Sequence[tuple[TuningRecord, float]]) -> float:
    """The weighted mean of measured gains; a failure's is 0."""
    weights = [math.exp(-apart - 1.5 * difference(schedule, record.schedule)) for record, apart in near]
    total = sum(weight * record.gain for weight, (record, _) in zip(weights, near, strict=True))
    return (total + UNKNOWN) / (sum(weights) + UNKNOWN)


def difference(a: AnySchedule, b: AnySchedule) -> int:
    """How many knobs differ."""
    return sum(x != y for x, y in zip(_knobs(a), _knobs(b), strict=False))


@cache
def _knobs(schedule: AnySchedule) -> tuple[object, ...]:
    """Spread, then those of the smallest and of the largest token tile."""
    if isinstance(schedule, Schedule):
        return (schedule.spread, *astuple(schedule.tiles[-1]), *astuple(schedule.tiles[0]))
    return astuple(schedule)
