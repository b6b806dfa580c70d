# SPDX-License-Identifier: Apache-2.0
"""One schedule for all numbers of tokens, put together from the records of their buckets; the shipped log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from schedules.schedule import DEQUANT_RULE, LUT_RULE, DequantSchedule, Schedule, TokenTile
from schedules.tuned import shipped_log, tuned
from schedules.tuning_log import KERNEL_VERSION, NO_RECORDS, Key, TuningLog, TuningRecord
from schedules.workload import Workload
from targets import target_names

WORKLOAD = Workload.of("lut", 512, 512, 1, 2)
ONE = TokenTile(tokens=1, row_tiles=2, prefetch=8192)
SIX = Schedule(tiles=(TokenTile(tokens=6), LUT_RULE.tiles[0], LUT_RULE.tiles[1]))


def record(schedule: Any, m: int, threads: int = 1, workload: Workload = WORKLOAD) -> TuningRecord:
    key = Key.of(replace(workload, m=m), "x86_64_v3", threads)
    return TuningRecord(
        key=key, schedule=schedule, status="ok", us=1.0, rule_us=2.0, stage="final", cpu="a CPU"
    )


def test_the_rule_stays_without_records() -> None:
    found = tuned(NO_RECORDS, WORKLOAD, "x86_64_v3")
    assert (found.schedule, found.choices) == (LUT_RULE, {})


def test_one_token_and_many_come_from_their_buckets() -> None:
    log = TuningLog((record(LUT_RULE.over(ONE), 1), record(SIX, 64)))
    found = tuned(log, WORKLOAD, "x86_64_v3")
    assert found.schedule == Schedule(tiles=(*SIX.tiles[:2], ONE))
    assert {m: choice.source for m, choice in found.choices.items()} == {1: "tuned", 64: "tuned"}


def test_one_bucket_alone_changes_its_own_tile() -> None:
    found = tuned(TuningLog((record(LUT_RULE.over(ONE), 1),)), WORKLOAD, "x86_64_v3")
    assert found.schedule == LUT_RULE.over(ONE)
    found = tuned(TuningLog((record(SIX, 64),)), WORKLOAD, "x86_64_v3")
    assert found.schedule == SIX


def test_own_records_come_before_near_ones_of_more_tokens() -> None:
    near = replace(WORKLOAD, n=2048)
    two = Schedule(tiles=(TokenTile(tokens=2), LUT_RULE.tiles[-1]))
    found = tuned(TuningLog((record(SIX, 64), record(two, 256, workload=near))), WORKLOAD, "x86_64_v3")
    assert (found.schedule, list(found.choices)) == (SIX, [64])
    found = tuned(TuningLog((record(two, 256, workload=near),)), WORKLOAD, "x86_64_v3")
    assert found.schedule == two


def test_threads_are_decided_by_records_of_two() -> None:
    spread = record(replace(LUT_RULE, spread=True), 1, threads=2)
    log = TuningLog((record(LUT_RULE.over(ONE), 1), spread))
    assert tuned(log, WORKLOAD, "x86_64_v3").schedule == replace(LUT_RULE.over(ONE), spread=True)
    many = record(replace(LUT_RULE, spread=False), 64, threads=2)
    assert tuned(TuningLog((*log.records, many)), WORKLOAD, "x86_64_v3").schedule == LUT_RULE.over(ONE)


def test_integer_products_take_their_largest_bucket() -> None:
    workload = Workload.of("dequant", 512, 512, 1, 8)
    small, large = DequantSchedule(tokens=(2, 1)), DequantSchedule(tokens=(3, 1))
    log = TuningLog((record(small, 1, workload=workload), record(large, 64, workload=workload)))
    assert tuned(log, workload, "x86_64_v3").schedule == large
    assert tuned(NO_RECORDS, workload, "x86_64_v3").schedule == DEQUANT_RULE
    spread = record(DequantSchedule(spread=False), 1, threads=2, workload=workload)
    found = tuned(TuningLog((*log.records, spread)), workload, "x86_64_v3").schedule
    assert found == replace(large, spread=False)


def test_shipped_records_are_whole_and_final() -> None:
    log = shipped_log()
    assert not log.damaged
    for found in log.records:
        assert found.key.target in target_names()
        assert (found.status, found.stage) == ("ok", "final")
        arm = found.key.target.startswith("arm64")
        assert found.basis == ("modelled" if arm else "measured"), "no Arm machine was at hand"
        assert found.key.kernel == KERNEL_VERSION, "tune again, or leave the file out"
