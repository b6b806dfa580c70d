# SPDX-License-Identifier: Apache-2.0
"""From a tuning log to the schedule of a whole kernel, which serves every number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from .schedule import AnySchedule, Schedule, rule
from .tuning_log import Choice, TuningLog, merge, parse
from .workload import M_BUCKETS, Workload


@cache
def shipped_log() -> TuningLog:
    """The records that come with the package, of all targets."""
    folder = files("schedules").joinpath("logs")
    parts = sorted(folder.iterdir(), key=lambda part: part.name) if folder.is_dir() else []
    return merge([parse(part.read_bytes()) for part in parts if part.name.endswith(".jsonl")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The schedule of a kernel and the choices it is put together from, by bucket of tokens."""

    schedule: AnySchedule
    choices: dict[int, Choice]


def tuned(log: TuningLog, workload: Workload, target: str) -> Tuned:
    """Puts the choices for all numbers of tokens together.

    The tile of one token is that of the bucket of one; the larger ones are those of the largest bucket that
    has a record of its own, or else one of a near workload. Tiles are tuned for one thread; whether threads
    are worth it, for two: where numbers of tokens do not agree, the amount of work decides.
    """
    choices = {m: log.choose(replace(workload, m=m), target, 1) for m in M_BUCKETS}
    found = {m: choice for m, choice in choices.items() if choice.source != "rule"}
    if any(choice.source == "tuned" for m, choice in found.items() if m > 1):
        found = {m: choice for m, choice in found.items() if m == 1 or choice.source == "tuned"}
    if not found:
        return Tuned(schedule=rule(workload), choices={})
    largest = found[max(found)].schedule
    spread = _spread(log, workload, target)
    if not isinstance(largest, Schedule):
        return Tuned(schedule=replace(largest, spread=spread), choices=found)
    one = choices[1].schedule
    assert isinstance(one, Schedule)
    many = largest if max(found) > 1 else one
    schedule = replace(many.over(one.tiles[-1]), spread=spread)
    return Tuned(schedule=schedule, choices=found)


def _spread(log: TuningLog, workload: Workload, target: str) -> bool | None:
    """Whether work is spread over threads, by the records of two."""
    choices = [log.choose(replace(workload, m=m), target, 2) for m in M_BUCKETS]
    found = {choice.schedule.spread for choice in choices if choice.source != "rule"}
    return found.pop() if len(found) == 1 else None
