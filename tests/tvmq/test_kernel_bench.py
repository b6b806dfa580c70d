# SPDX-License-Identifier: Apache-2.0
"""``bench kernels``: the keys that others read, kernels that are checked first, limits, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schedules import problem as problems
from schedules.problem import WrongResult, make_problem
from schedules.workload import M_BUCKETS, Workload, m_bucket
from targets import detect_host, get_target
from tvmq import vm
from tvmq.kernels.bench import bench_kernels
from tvmq.kernels.product import Product, compile_kernels, compile_timer
from tvmq.options import KernelBenchOptions

KEYS = {"kernel", "us_warm", "us_cold", "gbps_warm", "gbps_cold", "read_gbps", "fraction_of_read"}
here = pytest.mark.isa("x86_64_v2")


@here
def test_json_has_the_keys_that_others_read(tvmq: Any) -> None:
    outcome = tvmq("bench", "kernels", "--n", 70, "--k", 64, "--bits", 2, "--m", 5, "--rounds", 1, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    kernels = {row["kernel"]: row for row in found["results"]}
    assert list(kernels) == ["lut", "lut+table", "exact", "exact+table", "dequant"]
    assert found["target"] == detect_host()[0]
    for row in kernels.values():
        assert set(row) >= KEYS
        # 70 rows are two blocks: 2 planes of 2 steps of 256 bytes each, and scales of 64 rows.
        nbytes = 2 * 2 * 2 * 256 + (2 * 2 * 64 + 128 if row["kernel"] == "dequant" else 2 * 2 * 64 * 2)
        assert row["gbps_warm"] == pytest.approx(nbytes / row["us_warm"] / 1e3, rel=0.02, abs=2e-3)
        fraction = row["gbps_cold"] / row["read_gbps"]
        assert row["fraction_of_read"] == pytest.approx(fraction, rel=0.02, abs=2e-4)
        assert row["gmacs_warm"] == pytest.approx(70 * 64 * 5 / row["us_warm"] / 1e3, rel=0.02, abs=0.02)


@here
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits", "9"], "lut has no kernel for 9 bits"),
        (["--bits", "2", "--kernel", "foo"], "unknown kernel 'foo'; known: lut, lut+table"),
        (["--bits", "2", "--kernel", "float"], "float has no kernel for 2 bits"),
        (["--bits", "2", "--group-size", "48"], "groups of 48 columns do not divide 64"),
        (["--bits", "2", "--target", "z80"], "unknown target 'z80'"),
        (["--bits", "2", "--m", "1000000000"], "m is 1000000000, expected 1 to 16777216"),
        (["--bits", "2", "--m", "16000000"], "takes more memory than 2 GiB"),
        (["--bits", "2", "--threads", "100000"], "threads is 100000, expected 1 to 256"),
        (["--bits", "two"], "Invalid value for '--bits'"),
    ],
)
def test_bad_input_is_one_line(tvmq: Any, words: list[str], message: str) -> None:
    outcome = tvmq("bench", "kernels", "--n", 8, "--k", 64, *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1


@here
def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = problems.lut.reference
    monkeypatch.setattr(problems.lut, "reference", lambda *args: [1.01 * real(*args)[0]])
    with pytest.raises(WrongResult, match=r"results are off by 0\.0099 of the largest"):
        bench_kernels(KernelBenchOptions(n=70, k=64, bits=2, kernel="lut", rounds=1))


@here
@pytest.mark.parametrize(
    "workload",
    [
        Workload.of("lut", 70, 96, 5, 2, 48),
        Workload.of("exact", 70, 33, 2, 3, 0, "pow2+offset"),
        Workload.of("lut", 70, 33, 3, 1, 0, "float32+offset"),
        Workload.of("dequant", 70, 128, 7, 3, 64),
        Workload.of("dequant", 70, 33, 2, 8),
        Workload.of("float", 70, 33, 5, 32),
    ],
    ids=lambda w: f"{w.op}-{w.layout}",
)
def test_problems_see_a_wrong_weight(workload: Workload, tmp_path: Path) -> None:
    """Every stored array matters: a changed one is noticed, and all copies hold the same."""
    target = get_target(detect_host()[0])
    problem = make_problem(workload, target.kernel_isa)
    compile_kernels(problem.kernels, target, tmp_path / "k.so")
    timer = compile_timer(tmp_path)
    product = Product(problem, tmp_path / "k.so", timer, copies=3, spacing=1 << 16)
    for _ in range(4):
        problem.check(product.run())
    for name in problem.weights:
        bad = np.array(problem.arrays[name])
        bad.reshape(-1)[:64] = 0 if bad.any() else 1
        if np.array_equal(bad, problem.arrays[name]):
            bad.reshape(-1)[:64] = 1
        changed = replace(problem, arrays={**problem.arrays, name: bad})
        with pytest.raises(WrongResult):
            problem.check(Product(changed, tmp_path / "k.so", timer).run())


@here
def test_copies_are_called_in_turn(tmp_path: Path) -> None:
    """With one output per copy, each call of the loop fills the next one."""
    target = get_target(detect_host()[0])
    problem = make_problem(Workload.of("float", 64, 8, 1, 32), target.kernel_isa)
    problem = replace(problem, weights=("weight", "y"))
    compile_kernels(problem.kernels, target, tmp_path / "k.so")
    product = Product(problem, tmp_path / "k.so", compile_timer(tmp_path), copies=4)
    vm.set_threads(1)
    outputs = [own["y"] for own in product.copies_of_weights]
    for filled in ([True, False, False, False], [True, True, True, False]):
        product.seconds(1 if filled == [True, False, False, False] else 2)
        assert [bool(y.any()) for y in outputs] == filled


def test_buckets_hold_what_they_stand_for() -> None:
    found = {bucket: [m for m in range(1, 400) if m_bucket(m) == bucket] for bucket in M_BUCKETS}
    assert {bucket: (m[0], m[-1]) for bucket, m in found.items()} == {
        1: (1, 1), 4: (2, 4), 16: (5, 16), 64: (17, 64), 256: (65, 399)
    }  # fmt: skip


@here
def test_products_that_share_memory_take_turns_with_its_copies(tmp_path: Path) -> None:
    """What one has just read is in the caches: the other must go on behind it."""
    target = get_target(detect_host()[0])
    problem = make_problem(Workload.of("float", 64, 8, 1, 32), target.kernel_isa)
    problem = replace(problem, weights=("weight", "y"))
    compile_kernels(problem.kernels, target, tmp_path / "k.so")
    first = Product(problem, tmp_path / "k.so", compile_timer(tmp_path), copies=4)
    second = Product(problem, tmp_path / "k.so", first.timer, copies=4, beside=first)
    outputs = [own["y"] for own in first.copies_of_weights]
    first.seconds(1)
    outputs[0][...] = 0
    second.seconds(2)
    assert [bool(y.any()) for y in outputs] == [False, True, True, False]
