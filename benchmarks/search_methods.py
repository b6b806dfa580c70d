# SPDX-License-Identifier: Apache-2.0
"""Which way of choosing candidates finds good schedules after few of them, on measurements made before.

    tvmq tune workloads.json -o full.jsonl --trials 1000
    python -m benchmarks.search_methods full.jsonl

The log holds every candidate of every workload; each way is asked which to try next and is told what the log
says. Shown: the part of the best gain of all that its best candidate has after so many trials, by the
geometric mean over workloads, and the CPU seconds that choosing one costs. "alone": nothing is known before;
"others": all records of the other workloads are.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from schedules.ranking import ranked
from schedules.schedule import AnySchedule
from schedules.tuning_log import Key, TuningRecord, read

TRIALS = (4, 8, 16, 24)
SEEDS = 5

Choose = Callable[[Key, Sequence[AnySchedule], Sequence[TuningRecord]], AnySchedule]


@dataclass(frozen=True, slots=True)
class Landscape:
    """One workload with the record of each of its candidates, in the order of the space."""

    key: Key
    records: dict[AnySchedule, TuningRecord]

    @property
    def best(self) -> float:
        return max(1.0, *(record.gain for record in self.records.values()))


def landscapes(path: Path) -> list[Landscape]:
    """The workloads of a log."""
    found: dict[Key, dict[AnySchedule, TuningRecord]] = {}
    for record in read(path).records:
        if record.stage == "trial":
            found.setdefault(record.key, {})[record.schedule] = record
    return [Landscape(key, records) for key, records in found.items()]


def by_trees(key: Key, left: Sequence[AnySchedule], records: Sequence[TuningRecord]) -> AnySchedule:
    """What XGBoost expects most of: ``tvmq tune``'s way."""
    return ranked(key, left, records)[0]


def in_order(key: Key, left: Sequence[AnySchedule], records: Sequence[TuningRecord]) -> AnySchedule:
    """The order of the space."""
    return left[0]


def at_random(key: Key, left: Sequence[AnySchedule], records: Sequence[TuningRecord]) -> AnySchedule:
    """Any."""
    return random.choice(left)


METHODS: dict[str, Choose] = {
    "order of the space": in_order,
    "random": at_random,
    "enumeration, XGBoost": by_trees,
}


def replay(choose: Choose, land: Landscape, known: Sequence[TuningRecord]) -> list[float]:
    """The best gain after every trial; the rule's 1 is there from the start."""
    left, records, best, found = list(land.records), list(known), 1.0, []
    while left:
        chosen = choose(land.key, left, records)
        left.remove(chosen)
        records.append(land.records[chosen])
        best = max(best, land.records[chosen].gain)
        found.append(best)
    return found


def parts(curves: Sequence[Sequence[float]], lands: Sequence[Landscape]) -> list[float]:
    """Geometric means of the part of the best gain after each of ``TRIALS``."""
    return [
        math.exp(
            sum(
                math.log(curve[min(count, len(curve)) - 1] / land.best)
                for curve, land in zip(curves, lands, strict=True)
            )
            / len(lands)
        )
        for count in TRIALS
    ]


def rows(lands: Sequence[Landscape], *, meta: bool) -> list[dict[str, Any]]:
    """One per method."""
    found = []
    for name, choose in METHODS.items():
        for situation in ("alone", "others"):
            start, curves, several = time.process_time(), [], []
            for seed in range(SEEDS if choose is at_random else 1):
                random.seed(seed)
                for land in lands:
                    known = [r for o in lands if o is not land for r in o.records.values()]
                    curves.append(replay(choose, land, known if situation == "others" else []))
                    several.append(land)
            seconds = (time.process_time() - start) / sum(map(len, curves))
            row = {"method": name, "knows": situation, "seconds": seconds}
            found.append({**row, "parts": parts(curves, several)})
    if meta:
        from .search_metaschedule import load, metaschedule

        start = time.process_time()
        load()
        print(f"MetaSchedule's imports, once: {time.process_time() - start:.0f} s of CPU")
        start, curves = time.process_time(), []
        for land in lands:
            curves.append(metaschedule(land.key, {s: r.gain for s, r in land.records.items()}, max(TRIALS)))
        seconds = (time.process_time() - start) / sum(map(len, curves))
        row = {"method": "MetaSchedule, XGBoost", "knows": "alone", "seconds": seconds}
        found.append({**row, "parts": parts(curves, lands)})
    return found


def main(
    log: Annotated[Path, typer.Argument(help="A log with all candidates of some workloads.")],
    meta: Annotated[bool, typer.Option("--metaschedule/--no-metaschedule")] = True,
) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    lands = landscapes(log)
    table = Table("", "knows", *(f"after {count}" for count in TRIALS), "CPU ms a choice")
    for row in rows(lands, meta=meta):
        cells = (f"{part:.3f}" for part in row["parts"])
        table.add_row(row["method"], row["knows"], *cells, f"{1e3 * row['seconds']:.1f}")
    best = ", ".join(f"{land.best:.2f}" for land in lands)
    Console().print(table, f"{len(lands)} workloads, best gains over the rule {best}")


if __name__ == "__main__":
    typer.run(main)
