# SPDX-License-Identifier: Apache-2.0
"""``tvmq log``: check, merge, top, export on good, damaged and hostile files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schedules.describe import describe
from schedules.schedule import LUT_RULE, DequantSchedule, TokenTile
from schedules.tuning_log import Key, TuningRecord, append, read
from schedules.workload import Workload

TUNED = LUT_RULE.over(TokenTile(tokens=1, row_tiles=2, unroll=2, prefetch=4096))


def record(n: int, us: float, stage: Any = "final", target: str = "x86_64_v3") -> TuningRecord:
    key = Key.of(Workload.of("lut", n, 512, 1, 2), target, 1)
    return TuningRecord(key=key, schedule=TUNED, status="ok", us=us, rule_us=6.0, stage=stage, cpu="a CPU")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    append(path, [record(512, 4.0), record(512, 3.0), record(512, 1.0, "trial"), record(64, 2.0)])
    append(path, [record(512, 5.0, target="x86_64_v2")])
    return path


def test_check_passes_a_whole_log(tvmq: Any, log: Path) -> None:
    outcome = tvmq("log", "check", log, "--json")
    assert outcome.code == 0, outcome.err
    (facts,) = json.loads(outcome.out)["files"]
    assert (facts["records"], facts["usable"], facts["workloads"], facts["damaged"]) == (5, 5, 3, [])


def test_check_names_a_damaged_line(tvmq: Any, log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"us":3.0', b'"us":0.3'))
    outcome = tvmq("log", "check", log)
    assert outcome.code == 5
    assert outcome.err == f"error: {log}: line 2: wrong checksum (tvmq log merge drops them)\n"


def test_merge_drops_damaged_lines_and_doubles(tvmq: Any, log: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "b.jsonl", tmp_path / "out.jsonl"
    append(other, [record(64, 2.0), record(128, 2.0)])
    other.write_bytes(other.read_bytes()[:-5])
    outcome = tvmq("log", "merge", log, other, log, "-o", out, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {"output": str(out), "records": 5, "damaged": 1}
    assert len(read(out).records) == 5
    again = tvmq("log", "merge", log, "-o", out)
    assert again.code == 2
    assert "exists already (use --force to replace it" in again.err
    assert tvmq("log", "merge", log, "-o", out, "--force").code == 0


def test_export_keeps_the_best_of_each_workload(tvmq: Any, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert tvmq("log", "export", log, "-o", out, "--target", "x86_64_v3").code == 0
    assert [(r.key.n, r.us, r.stage) for r in read(out).records] == [(64, 2.0, "final"), (512, 3.0, "final")]
    outcome = tvmq("log", "export", log, "-o", tmp_path / "none.jsonl", "--target", "z80")
    assert outcome.code == 3
    assert "no log has a fastest record of this target" in outcome.err
    assert not (tmp_path / "none.jsonl").exists()


def test_top_shows_the_largest_gains_first(tvmq: Any, log: Path) -> None:
    outcome = tvmq("log", "top", log, "--json", "--count", 2)
    found = json.loads(outcome.out)["records"]
    assert [(r["key"]["n"], r["gain"]) for r in found] == [(64, 3.0), (512, 2.0)]
    assert "prefetch" in tvmq("log", "top", log).out


VERBS = [("check",), ("top",), ("merge", "-o", "o.jsonl"), ("export", "-o", "o.jsonl")]


@pytest.mark.parametrize("verb", VERBS)
def test_bad_files_are_one_line(tvmq: Any, tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "text").write_text("hello\n")
    verb = tuple(str(tmp_path / word) if word.endswith("jsonl") else word for word in verb)
    for path, message in [
        (tmp_path / "missing", "cannot be read (No such file or directory)"),
        (tmp_path, "not a regular file"),
        (tmp_path / "text", "no tuning log: line 1: not a line of a tuning log, or cut off"),
    ]:
        outcome = tvmq("log", *verb, path)
        assert outcome.code == 3
        assert message in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_schedules_in_words() -> None:
    assert describe(LUT_RULE) == "4 tokens; 1 token: prefetch 4096"
    words = "4 tokens; 1 token: 2 row tiles, unroll 2, prefetch 4096, spread over threads"
    assert describe(replace(TUNED, spread=True)) == words
    assert describe(DequantSchedule(tokens=(2, 1), spread=False)) == "tokens 2/1, chunks of 12, one thread"
