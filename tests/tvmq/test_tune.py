# SPDX-License-Identifier: Apache-2.0
"""``tvmq tune``: bad candidates lose only themselves, logs go on, budgets and Ctrl-C end a run cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from schedules.ranking import features, ranked
from schedules.schedule import AnySchedule, Schedule, TokenTile, rule
from schedules.tuning_log import Key, TuningRecord, append, read
from schedules.tuning_space import candidates
from schedules.workload import Workload
from targets import detect_host
from tvmq.kernels.runner import LocalRunner, Outcome
from tvmq.kernels.tuner import Tuner
from tvmq.options import TuneOptions

here = pytest.mark.isa("x86_64_v2")
WORKLOAD = Workload.of("lut", 64, 512, 1, 1)
FEW = {"op": "lut", "n": 64, "k": 64, "m": 4, "bits": 1}
"""Timed warm: no copies have to be made."""
PLANTED = """
import os, sys, time
from dataclasses import replace
from schedules.lut_gemm import lut_gemm
from schedules.problem import lut_spec
from tvmq.kernels import worker

real = worker.make_problem

def make_problem(workload, isa, schedule):
    ahead = schedule.tiles[-1].prefetch if schedule else 0
    if ahead == 1:
        os.abort()
    if ahead == 2:
        time.sleep(600)
    if ahead == 3:
        print("noise on stdout", flush=True)
        made, spec = real(workload, isa, schedule), replace(lut_spec(workload), activation=("relu",))
        return replace(made, kernels={**made.kernels, "lut_gemm": lut_gemm(spec, isa)})
    if ahead == 4:
        raise RuntimeError("LLVM is unhappy")
    return real(workload, isa, schedule)

worker.make_problem = make_problem
sys.exit(worker.main())
"""


def schedule(prefetch: int) -> Schedule:
    return Schedule(tiles=(TokenTile(tokens=1, prefetch=prefetch),))


@here
def test_bad_candidates_lose_only_themselves(tmp_path: Path) -> None:
    """A hang as the very first, a crash, a wrong result and an error, each between good ones."""
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    few = Workload.of("lut", 64, 64, 4, 1)
    runner = LocalRunner(detect_host()[-1], 1, 0.5, [sys.executable, str(script)])
    try:
        ((_, hung),) = runner.run(few, [schedule(2)], 1)
        runner.child.timeout = 30.0
        found = [outcome for _, outcome in runner.run(few, [schedule(a) for a in (64, 1, 3, 4, 128)], 1)]
        after = found[-1]
    finally:
        runner.close()
    assert [outcome.status for outcome in found] == ["ok", "crash", "wrong", "error", "ok"]
    assert "ended with status -6" in found[1].why
    assert "LLVM is unhappy" in found[3].why
    assert (hung.status, hung.why) == ("timeout", "no answer within 0 s")
    assert after.status == "ok"
    assert all(outcome.us > 0 and outcome.rule_us > 0 for outcome in (found[0], found[4], after))


class Fake:
    """Answers without running anything: the time falls with the prefetch; some schedules are broken."""

    batch = 1
    memory = True

    def __init__(self, interrupt_at: int = 0) -> None:
        self.asked: list[tuple[AnySchedule, int]] = []
        self.closed = False
        self._interrupt_at = interrupt_at

    def run(
        self, workload: Workload, schedules: Sequence[AnySchedule], rounds: int
    ) -> Iterator[tuple[AnySchedule, Outcome]]:
        for schedule in schedules:
            yield schedule, self.one(workload, schedule, rounds)

    def one(self, workload: Workload, schedule: AnySchedule, rounds: int) -> Outcome:
        self.asked.append((schedule, rounds))
        if len(self.asked) == self._interrupt_at:
            raise KeyboardInterrupt
        assert isinstance(schedule, Schedule)
        tile = schedule.tiles[-1]
        if tile.unroll == 4:
            return Outcome(status="crash", why="planted")
        return Outcome(status="ok", us=10.0 - tile.prefetch / 4096 - (tile.row_tiles == 2), rule_us=9.0)

    def close(self) -> None:
        self.closed = True


def tuner(log: Path, runner: Fake, **options: Any) -> Tuner:
    records = list(read(log).records) if log.exists() else []
    return Tuner(log, "x86_64_v3", TuneOptions(**options), runner, lambda text: None, records)


def test_the_best_is_measured_again_and_kept(tmp_path: Path) -> None:
    log, runner = tmp_path / "log.jsonl", Fake()
    report = tuner(log, runner, trials=1000).tune([WORKLOAD, WORKLOAD])
    (found,) = report.tuned
    assert runner.closed
    assert (report.stopped, report.untouched) == ("done", 0)
    assert found.trials == len(candidates(WORKLOAD, 1, "avx2")) - 1
    assert report.trials["crash"] > 0
    best = found.schedule
    assert isinstance(best, Schedule)
    assert (best.tiles[-1].prefetch, best.tiles[-1].row_tiles) == (8192, 2)
    assert found.gain == pytest.approx(9 / 7)
    again = read(log).choose(WORKLOAD, "x86_64_v3", 1)
    assert again.schedule == best
    assert again.record is not None
    assert again.record.stage == "final"
    assert [rounds for _, rounds in runner.asked[-3:]] == [41] * 3


def test_the_rule_stays_where_nothing_beats_it(tmp_path: Path) -> None:
    class Slow(Fake):
        def one(self, workload: Workload, schedule: AnySchedule, rounds: int) -> Outcome:
            return Outcome(status="ok", us=9.0, rule_us=9.0)

    report = tuner(tmp_path / "log.jsonl", Slow(), trials=5).tune([WORKLOAD])
    assert report.tuned[0].schedule == rule(WORKLOAD)
    assert report.tuned[0].gain == 1.0


def test_ctrl_c_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    log, first = tmp_path / "log.jsonl", Fake(interrupt_at=8)
    report = tuner(log, first, trials=20).tune([WORKLOAD])
    assert (report.stopped, report.tuned, report.untouched) == ("interrupted", (), 1)
    assert first.closed
    assert len(read(log).records) == 7
    second = Fake()
    tuner(log, second, trials=20).tune([WORKLOAD])
    again = {schedule for schedule, rounds in second.asked if rounds == 9}
    assert len(again) == 13
    assert not again & {schedule for schedule, _ in first.asked[:7]}, "nothing is tried twice, crashes too"


def test_the_time_budget_ends_a_run(tmp_path: Path) -> None:
    others = [Workload.of("lut", 64 * i, 64, 1, 1) for i in range(1, 4)]
    report = tuner(tmp_path / "log.jsonl", Fake(), time_budget=1e-9).tune(others)
    assert (report.stopped, report.untouched) == ("time budget", 3)


def test_the_time_budget_cuts_the_last_product_too(tmp_path: Path) -> None:
    class Slow(Fake):
        def one(self, workload: Workload, schedule: AnySchedule, rounds: int) -> Outcome:
            time.sleep(0.2)
            return super().one(workload, schedule, rounds)

    report = tuner(tmp_path / "log.jsonl", Slow(), time_budget=0.1).tune([WORKLOAD])
    assert (report.stopped, report.untouched, len(report.tuned)) == ("time budget", 0, 1)


def test_failures_do_not_show_the_times_of_a_near_product(tmp_path: Path) -> None:
    class Broken(Fake):
        def one(self, workload: Workload, schedule: AnySchedule, rounds: int) -> Outcome:
            if workload.n == 64:
                return super().one(workload, schedule, rounds)
            return Outcome(status="crash", why="planted")

    near = Workload.of("lut", 128, 512, 1, 1)
    report = tuner(tmp_path / "log.jsonl", Broken(), trials=3).tune([WORKLOAD, near])
    assert [(found.us > 0, found.gain == 1.0) for found in report.tuned] == [(True, False), (False, True)]


def record(workload: Workload, schedule: Any, us: float) -> TuningRecord:
    key = Key.of(workload, "x86_64_v3", 1)
    return TuningRecord(
        key=key, schedule=schedule, status="ok", us=us, rule_us=6.0, stage="trial", cpu="a CPU"
    )


def test_candidates_are_ranked_by_what_trees_expect() -> None:
    """What did well on another product is tried first, what did badly last."""
    pytest.importorskip("xgboost")
    near = Workload.of("lut", 128, 512, 1, 1)
    space = candidates(WORKLOAD, 1, "avx2")[1:]
    far_ahead = [s for s in space if isinstance(s, Schedule) and s.tiles[-1].prefetch == 8192]
    records = [record(near, s, 3.0 if s in far_ahead else 9.0) for s in space]
    order = ranked(Key.of(WORKLOAD, "x86_64_v3", 1), space, records)
    assert set(order[: len(far_ahead)]) == set(far_ahead)
    assert sorted(order, key=repr) == sorted(space, key=repr)


def test_without_a_model_candidates_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    space, key = candidates(WORKLOAD, 1, "avx2")[1:], Key.of(WORKLOAD, "x86_64_v3", 1)
    other = Workload.of("exact", 64, 512, 1, 1)
    assert ranked(key, space, []) == space
    assert ranked(key, space, [record(other, s, 3.0) for s in space]) == space, "of another family"
    monkeypatch.setattr("schedules.ranking.find_spec", lambda name: None)
    assert ranked(key, space, [record(WORKLOAD, s, float(i + 1)) for i, s in enumerate(space)]) == space


@pytest.mark.parametrize("op", ["lut", "exact", "dequant", "float"])
def test_features_tell_candidates_apart(op: Any) -> None:
    workload = Workload.of(op, 512, 512, 64, 32 if op == "float" else 2)
    key = Key.of(workload, "x86_64_v3", 2)
    space = candidates(workload, 2, "avx2")
    assert len({tuple(features(key, schedule)) for schedule in space}) == len(space)


@here
def test_tunes_a_file_of_workloads(tvmq: Any, tmp_path: Path) -> None:
    work, log = tmp_path / "w.json", tmp_path / "log.jsonl"
    work.write_text(json.dumps([FEW]))
    outcome = tvmq("tune", work, "-o", log, "--trials", 2, "--json", "--target", detect_host()[-1])
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert (report["stopped"], len(report["tuned"]), report["trials"]["ok"] >= 3) == ("done", 1, True)
    few = Workload.of("lut", 64, 64, 4, 1)
    assert read(log).choose(few, detect_host()[-1], 1).source == "tuned"
    refused = tvmq("tune", work, "-o", log)
    assert refused.code == 2
    assert "exists already (add --resume to go on with it" in refused.err


@here
def test_interrupt_from_the_keyboard(tmp_path: Path) -> None:
    """SIGINT to the real command: exit code 130, a whole log, no child left."""
    work, log = tmp_path / "w.json", tmp_path / "log.jsonl"
    work.write_text(json.dumps([FEW]))
    command = [sys.executable, "-m", "tvmq", "tune", str(work), "-o", str(log), "--trials", "30", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while (not log.exists() or len(read(log).records) < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert json.loads(out)["stopped"] == "interrupted"
    assert len(read(log).records) >= 2
    assert not read(log).damaged


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a list of workloads"),
        ("{}", "expected a list of workloads"),
        ("[7]", "workload 0:"),
        ('[{"op": "lut", "n": 8, "k": 8, "m": 1}]', "workload 0: Object missing required field `bits`"),
        ('[{"op": "rm", "n": 8, "k": 8, "m": 1, "bits": 2}]', "workload 0: unknown kernel 'rm'"),
        ('[{"op": "lut", "n": "8", "k": 8, "m": 1, "bits": 2}]', "Expected `int`, got `str`"),
        ('[{"op": "lut", "n": 8.5, "k": 8, "m": 1, "bits": 2}]', "Expected `int`, got `float`"),
        ('[{"op": "lut", "n": 8, "k": 8, "m": 1, "bits": 2, "x": 1}]', "unknown field `x`"),
        ('[{"op": "lut", "n": 8, "k": 8, "m": 1, "bits": 2, "layout": "z"}]', "lut has no layout 'z'"),
        ('[{"op": "lut", "n": 99999, "k": 99999, "m": 1, "bits": 8}]', "takes more memory than 2 GiB"),
        ("nonsense", "not valid JSON"),
    ],
)
@here
def test_bad_workloads_are_one_line(tvmq: Any, tmp_path: Path, text: str, message: str) -> None:
    work, log = tmp_path / "w.json", tmp_path / "log.jsonl"
    work.write_text(text)
    outcome = tvmq("tune", work, "-o", log)
    assert outcome.code == 3, outcome.err
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not log.exists()


@here
def test_bad_options_and_logs_are_one_line(tvmq: Any, tmp_path: Path) -> None:
    work, log = tmp_path / "w.json", tmp_path / "log.jsonl"
    work.write_text(json.dumps([FEW]))
    assert "unknown target 'z80'" in tvmq("tune", work, "-o", log, "--target", "z80").err
    assert "expected numbers, such as 1,4" in tvmq("tune", work, "-o", log, "--tokens", "1,x").err
    log.write_text("not a log\n")
    outcome = tvmq("tune", work, "-o", log, "--resume")
    assert (outcome.code, len(outcome.err.splitlines())) == (3, 1)
    assert log.read_text() == "not a log\n"


def test_records_of_others_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    key = Key.of(WORKLOAD, "x86_64_v2", 1)
    other = TuningRecord(
        key=key, schedule=schedule(64), status="ok", us=1.0, rule_us=2.0, stage="final", cpu="b"
    )
    append(log, [other])
    tuner(log, Fake(), trials=2).tune([WORKLOAD])
    assert read(log).records[0] == other
    assert read(log).choose(WORKLOAD, "x86_64_v2", 1).record == other
