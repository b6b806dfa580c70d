# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of tuning: replays of searches, and reuse of a log for products of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import search_methods, tuning_reuse
from schedules.schedule import LUT_RULE, TokenTile, rule
from schedules.tuning_log import Key, TuningLog, TuningRecord, append
from schedules.tuning_space import candidates
from schedules.workload import Workload
from targets import detect_host

WORKLOAD = Workload.of("lut", 128, 256, 1, 2)


def record(workload: Workload, schedule: object, us: float, target: str = "x86_64_v3") -> TuningRecord:
    return TuningRecord(
        key=Key.of(workload, target, 1), schedule=schedule, status="ok", us=us, rule_us=2.0, stage="trial",
        cpu="a CPU",
    )  # type: ignore[arg-type]  # fmt: skip


def test_replays_find_what_the_log_holds(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    log = tmp_path / "log.jsonl"
    for rows in (128, 256):
        space = candidates(replace(WORKLOAD, n=rows), 1, "avx2")[1:]
        append(log, [record(replace(WORKLOAD, n=rows), s, 2.0 - i / len(space)) for i, s in enumerate(space)])
    lands = search_methods.landscapes(log)
    assert [len(land.records) for land in lands] == [len(space)] * 2
    found = {(row["method"], row["knows"]): row["parts"] for row in search_methods.rows(lands, meta=False)}
    assert len(found) == 2 * len(search_methods.METHODS)
    assert all(0 < part <= 1 for parts in found.values() for part in parts)
    assert found["enumeration, XGBoost", "others"][0] > found["order of the space", "others"][0]


@pytest.mark.isa("x86_64_v2")
def test_reuse_compares_what_both_logs_give() -> None:
    target = detect_host()[-1]
    tuned = LUT_RULE.over(TokenTile(tokens=1, unroll=2))
    wanted = replace(WORKLOAD, m=4)
    own = TuningLog((record(wanted, tuned, 1.0, target),))
    near = TuningLog((record(replace(wanted, n=256), rule(wanted), 2.0, target),))
    (found,) = tuning_reuse.compare(own, near, 3)
    assert (found.key.n, found.source, found.same) == (128, "nearest", False)
    assert found.part > 0
    (same,) = tuning_reuse.compare(own, TuningLog((record(replace(wanted, n=256), tuned, 1.0, target),)), 3)
    assert (same.same, same.part) == (True, 1.0)
    assert tuning_reuse.compare(own, own, 3) == []
