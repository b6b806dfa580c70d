# SPDX-License-Identifier: Apache-2.0
"""Schedules change how work is cut and never a bit of what comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schedules.lut_gemm import worth_threads
from schedules.problem import lut_spec, make_problem
from schedules.same_code import code_of
from schedules.schedule import LUT_RULE, AnySchedule, DequantSchedule, Schedule, TokenTile, rule
from schedules.tuning_space import _schedules, candidates
from schedules.workload import M_BUCKETS, Workload

ONE = TokenTile(tokens=1)
SCHEDULES: dict[str, list[AnySchedule]] = {
    "lut": [
        Schedule(tiles=(TokenTile(tokens=1, row_tiles=1, unroll=2, prefetch=4096),)),
        Schedule(tiles=(TokenTile(tokens=2, row_tiles=2, unroll=4), replace(ONE, row_tiles=2)), spread=True),
        Schedule(tiles=(TokenTile(tokens=6, row_tiles=1), TokenTile(tokens=3, row_tiles=2), ONE)),
    ],
    "float": [
        Schedule(tiles=(ONE,)),
        Schedule(tiles=(TokenTile(tokens=3, prefetch=8192), replace(ONE, prefetch=512)), spread=True),
    ],
    "dequant": [
        DequantSchedule(tokens=(1,)),
        DequantSchedule(tokens=(3, 2, 1), chunk_steps=3, spread=True),
        DequantSchedule(chunk_steps=40),
    ],
}
SCHEDULES["exact"] = SCHEDULES["lut"]
WORKLOADS = [
    Workload.of("lut", 130, 200, 9, 2, 0, "float16+offset"),
    Workload.of("lut", 70, 192, 9, 2, 64),
    Workload.of("exact", 70, 96, 9, 1, 48),
    Workload.of("float", 130, 33, 7, 32),
    Workload.of("dequant", 130, 1700, 7, 3),
    Workload.of("dequant", 70, 384, 7, 8, 128),
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: f"{w.op}-{w.n}x{w.k}")
def test_every_schedule_gives_the_same_bits(build: Any, kernel_level: Any, workload: Workload) -> None:
    isa = "avx512_vbmi" if kernel_level.kernel_isa == "amx" else kernel_level.kernel_isa

    def outputs(schedule: AnySchedule | None) -> list[np.ndarray]:
        problem = make_problem(workload, isa, schedule)
        arrays = dict(problem.arrays)
        for stage in problem.stages:
            names = problem.calls[stage]
            kernel = build(problem.kernels[stage], kernel_level)
            arrays |= dict(zip(names, kernel([arrays[name] for name in names]), strict=True))
        problem.check(arrays)
        return [arrays[name] for name in problem.outputs]

    expected = outputs(None)
    for schedule in SCHEDULES[workload.op]:
        found = outputs(schedule)
        for a, b in zip(expected, found, strict=True):
            assert a.tobytes() == b.tobytes(), schedule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "0 tokens in a tile, expected 1 to 16"),
        ({"row_tiles": 3}, "row tiles 3 and unroll 1, expected 1, 2 or 4"),
        ({"unroll": 0}, "row tiles 0 and unroll 0, expected 1, 2 or 4"),
        ({"prefetch": 1 << 20}, "prefetch of 1048576 bytes, expected 0 to 65536"),
    ],
)
def test_bad_tiles_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ONE, **change)


@pytest.mark.parametrize("tokens", [(), (4,), (1, 4), (4, 4, 1)])
def test_token_tiles_fall_to_one(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected falling numbers that end with 1"):
        Schedule(tiles=tuple(TokenTile(tokens=t) for t in tokens))
    if tokens:
        with pytest.raises(ValueError, match="expected falling numbers, 8 at most, 1 last"):
            DequantSchedule(tokens=tokens)


def test_a_tile_replaces_its_like() -> None:
    tile = TokenTile(tokens=4, unroll=2)
    four, one = LUT_RULE.tiles
    assert LUT_RULE.over(tile).tiles == (tile, one)
    assert LUT_RULE.over(replace(tile, tokens=2)).tiles == (four, replace(tile, tokens=2), one)


def test_threads_follow_the_schedule() -> None:
    spec = lut_spec(Workload.of("lut", 4096, 512, 1, 2))
    small = lut_spec(Workload.of("lut", 64, 512, 1, 2))
    assert not worth_threads(spec, spec.segments[0], replace(LUT_RULE, spread=False))
    assert not worth_threads(small, small.segments[0], replace(LUT_RULE, spread=True)), "one block"


@pytest.mark.parametrize("op", ["lut", "exact", "dequant", "float"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("m", M_BUCKETS)
def test_candidates_begin_with_the_rule_and_differ(op: Any, m: int, threads: int) -> None:
    workload = Workload.of(op, 4096, 512, m, 32 if op == "float" else 2)
    found = candidates(workload, threads, "avx2")
    assert found[0] == rule(workload)
    assert len(set(found)) == len(found) > 1


@pytest.mark.parametrize(
    ("op", "isa"), [("lut", "avx2"), ("exact", "neon"), ("dequant", "avx2"), ("dequant", "neon_dotprod")]
)
def test_schedules_of_the_same_code_are_one_candidate(op: Any, isa: str) -> None:
    """By the functions themselves: equal ones are told to be equal, others to differ."""
    workload = Workload.of(op, 64, 768, 8 if op == "dequant" else 4, 2)
    raw = [rule(workload), *_schedules(workload)]
    texts: dict[Any, set[str]] = {}
    for schedule in raw:
        function = make_problem(workload, isa, schedule).kernels[f"{op}_gemm".replace("exact", "lut")]
        texts.setdefault(code_of(workload, isa, schedule), set()).add(function.script())
    assert all(len(own) == 1 for own in texts.values())
    assert len(set.union(*texts.values())) == len(texts) == len(candidates(workload, 1, isa)) < len(set(raw))


def test_tiles_of_amx_are_not_cut_by_schedules() -> None:
    workload = Workload.of("dequant", 512, 512, 64, 2)
    assert candidates(workload, 2, "amx") == [rule(workload)]

