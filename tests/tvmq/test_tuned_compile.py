# SPDX-License-Identifier: Apache-2.0
"""Compiling with a tuning log: the choice shows in dry runs, inspect and manifest; answers stay the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schedules.schedule import LUT_RULE, TokenTile
from schedules.tuning_log import Key, TuningLog, TuningRecord, append, read
from schedules.workload import Workload
from tvmq.kernels.logs import log_of

pytestmark = pytest.mark.isa("x86_64_v2")
TUNED = LUT_RULE.over(TokenTile(tokens=1, row_tiles=2, unroll=2, prefetch=1024))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A record of the tiny model's feed-forward layers, on the lowest level."""
    key = Key.of(Workload.of("lut", 128, 64, 1, 3), "x86_64_v2", 1)
    path = tmp_path / "log.jsonl"
    append(
        path,
        [
            TuningRecord(
                key=key, schedule=TUNED, status="ok", us=1.0, rule_us=3.0, stage="final", cpu="a CPU"
            )
        ],
    )
    return path


def of_layer(schedules: list[dict[str, Any]]) -> dict[str, Any]:
    return next(part for part in schedules if (part["n"], part["k"]) == (128, 64))


def test_the_choice_is_shown_and_the_answers_stay(
    tvmq: Any, tiny_model: Path, tmp_path: Path, log: Path
) -> None:
    words = ["compile", tiny_model, "--preset", "3-bit", "--isa", "x86_64_v2"]
    plain, tuned = tmp_path / "plain.tvmq", tmp_path / "tuned.tvmq"
    dry = json.loads(tvmq(*words, "--tuning-log", log, "--dry-run", "--json").out)
    wanted = {
        "kernel": "lut",
        "n": 128,
        "k": 64,
        "bits": 3,
        "target": "x86_64_v2",
        "source": "tuned at 1",
        "schedule": "4 tokens; 1 token: 2 row tiles, unroll 2, prefetch 1024",
    }
    assert of_layer(dry["schedules"]) == wanted
    assert tvmq(*words, "-o", plain, "-q").code == 0
    assert tvmq(*words, "-o", tuned, "--tuning-log", log, "-q").code == 0
    shown = json.loads(tvmq("inspect", tuned, "--json").out)
    assert of_layer(shown["schedules"]) == wanted
    assert "by measurement" in tvmq("inspect", tuned).out
    assert (plain / "lib/x86_64_v2.so").read_bytes() != (tuned / "lib/x86_64_v2.so").read_bytes()
    assert (plain / "selftest.json").read_bytes() == (tuned / "selftest.json").read_bytes()


def test_records_of_ones_own_come_before_shipped_ones(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shipped,) = read(log).records
    monkeypatch.setattr("tvmq.kernels.logs.shipped_log", lambda: TuningLog((shipped,)))
    own = replace(shipped, us=2 * shipped.rule_us, cpu="another CPU")
    append(tmp_path / "own.jsonl", [own])
    workload, target, threads = own.key.workload, own.key.target, own.key.threads
    assert log_of(tmp_path / "own.jsonl").choose(workload, target, threads).record == own
    assert log_of(None).choose(workload, target, threads).record == shipped


def test_a_bad_log_is_one_line_and_writes_nothing(tvmq: Any, tiny_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "log.jsonl"
    bad.write_text("no log\n")
    for path in (bad, tmp_path / "missing"):
        outcome = tvmq("compile", tiny_model, "-o", tmp_path / "x.tvmq", "--tuning-log", path, "-q")
        assert outcome.code == 3
        assert len(outcome.err.splitlines()) == 1
        assert not (tmp_path / "x.tvmq").exists()
