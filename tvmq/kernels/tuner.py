# SPDX-License-Identifier: Apache-2.0
"""``tvmq tune``: tries schedules of workloads and keeps every measured one in a log.

Each workload: the candidates not yet in the log, most promising first, then the best few again and longer.
Every result is appended at once, so that a kill or Ctrl-C loses at most the running candidate.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from schedules import tuning_log
from schedules.ranking import ranked
from schedules.schedule import AnySchedule, rule
from schedules.tuning_log import Key, TuningLog, TuningRecord
from schedules.tuning_space import candidates, same_prefetch
from schedules.workload import Workload
from targets import get_target
from tvmq.options import Progress, TuneOptions, no_progress

from .runner import Outcome, Runner

ROUNDS = 9
FINAL_ROUNDS = 41
FINALISTS = 3
UNITS = {"measured": "us", "modelled": "thousand cycles (modelled)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What tuning one workload found; ``gain`` is over the rule, measured in turn with it."""

    key: Key
    schedule: AnySchedule
    us: float
    rule_us: float
    gain: float
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """The end of a run.

    Attributes:
        log: the file.
        target, threads: what was tuned for.
        tuned: workloads that were finished.
        untouched: workloads that the budget did not reach.
        trials: candidates by status.
        seconds: wall time.
        stopped: ``done``, ``time budget`` or ``interrupted``.
    """

    log: Path
    target: str
    threads: int
    tuned: tuple[Tuned, ...]
    untouched: int
    trials: dict[str, int]
    seconds: float
    stopped: str

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "log": str(self.log)}


@dataclass(slots=True)
class Tuner:
    """One run over a log."""

    log: Path
    target: str
    options: TuneOptions
    runner: Runner
    say: Callable[[str], None]
    records: list[TuningRecord] = field(default_factory=list)
    trials: Counter[str] = field(default_factory=Counter)
    cut: bool = False
    """Whether the time ended before the trials of a workload."""

    def tune(self, workloads: Sequence[Workload], progress: Progress = no_progress) -> TuneReport:
        """Tunes all workloads, or as many as the budget allows."""
        start, stopped, tuned = time.monotonic(), "done", []
        keys = list(dict.fromkeys(Key.of(w, self.target, self.options.threads) for w in workloads))
        end = start + self.options.time_budget if self.options.time_budget else float("inf")
        try:
            for done, key in enumerate(keys):
                progress("tune", done, len(keys))
                if time.monotonic() >= end:
                    stopped = "time budget"
                    break
                tuned.append(self._workload(key, end))
                stopped = "time budget" if self.cut else stopped
        except KeyboardInterrupt:
            stopped = "interrupted"
        finally:
            self.runner.close()
        progress("tune", len(tuned), len(keys))
        return TuneReport(
            log=self.log,
            target=self.target,
            threads=self.options.threads,
            tuned=tuple(tuned),
            untouched=len(keys) - len(tuned),
            trials=dict(self.trials),
            seconds=round(time.monotonic() - start, 1),
            stopped=stopped,
        )

    def _workload(self, key: Key, end: float) -> Tuned:
        tried = {r.schedule for r in self.records if r.key == key and r.stage == "trial"}
        space = candidates(key.workload, key.threads, get_target(key.target).kernel_isa)
        if not self.runner.memory:
            space = same_prefetch(space)
        left = [s for s in space[1:] if s not in tried]
        budget = max(0, self.options.trials - len(tried))
        trials = 0
        while left and trials < budget and time.monotonic() < end:
            left = ranked(key, left, self.records)
            batch = left[: min(self.runner.batch, budget - trials)]
            left = left[len(batch) :]
            self._measure(key, batch, "trial")
            trials += len(batch)
        self.cut = bool(left) and trials < budget
        return self._finish(key, trials)

    def _finish(self, key: Key, trials: int) -> Tuned:
        """Measures the best again beside the rule; the rule stays where nothing clearly beats it."""
        own = [r for r in self.records if r.key == key and r.status == "ok"]
        final = {r.schedule for r in own if r.stage == "final"}
        best = sorted((r for r in own if r.stage == "trial"), key=lambda r: -r.gain)[:FINALISTS]
        again = [r.schedule for r in best if r.gain > 1 and r.schedule not in final]
        if again:
            self._measure(key, again, "final")
        finals = [r for r in self.records if r.key == key and r.stage == "final" and r.status == "ok"]
        if not finals:
            self._measure(key, [rule(key.workload)], "final")
        choice = TuningLog(tuple(self.records)).choose(key.workload, key.target, key.threads)
        record = choice.record if choice.source == "tuned" else None
        us, rule_us = (record.us, record.rule_us) if record else (0.0, 0.0)
        taken = record is not None and choice.schedule == record.schedule != rule(key.workload)
        gain = record.gain if record and taken else 1.0
        speed = f"{us:.1f} {UNITS[record.basis]}, {gain:.2f} times the rule" if record else _nothing(own)
        self.say(f"{key.op} {key.n} x {key.k}, {key.m} tokens, {key.bits} bits: {speed}, {trials} trials")
        return Tuned(key=key, schedule=choice.schedule, us=us, rule_us=rule_us, gain=gain, trials=trials)

    def _measure(self, key: Key, schedules: Sequence[AnySchedule], stage: tuning_log.Stage) -> None:
        rounds = ROUNDS if stage == "trial" else FINAL_ROUNDS
        for schedule, outcome in self.runner.run(key.workload, schedules, rounds):
            self.trials[outcome.status] += 1
            if outcome.status != "ok":
                what = f"{key.op} {key.n} x {key.k}"
                self.say(f"{what}: a candidate was lost ({outcome.status}: {outcome.why})")
            self._keep(key, schedule, stage, outcome)

    def _keep(self, key: Key, schedule: AnySchedule, stage: tuning_log.Stage, outcome: Outcome) -> None:
        record = TuningRecord(
            key=key,
            schedule=schedule,
            status=outcome.status,
            us=round(outcome.us, 4),
            rule_us=round(outcome.rule_us, 4),
            stage=stage,
            cpu=outcome.cpu,
            basis=outcome.basis,
        )
        tuning_log.append(self.log, [record])
        self.records.append(record)


def _nothing(records: Sequence[TuningRecord]) -> str:
    """Why a workload got no schedule."""
    return "times of an emulator, which are not used" if records else "nothing could be measured"
