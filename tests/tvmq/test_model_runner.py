# SPDX-License-Identifier: Apache-2.0
"""Candidates judged by llvm-mca: which code runs how often, what that takes, and marks that say so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schedules.schedule import AnySchedule, rule
from schedules.tuning_log import read
from schedules.tuning_space import candidates, same_prefetch
from schedules.workload import Workload
from targets import get_target
from targets.toolchain import find_emulator, find_linker
from tvmq.kernels.blocks import Code, Trace, merged
from tvmq.kernels.llvm import find_llvm
from tvmq.kernels.model_runner import ModelRunner

LEVEL = "arm64_dotprod"
CODE = """
program:     file format elf64-littleaarch64

0000000000001000 <kernel>:
    1000:      	mov	w8, #0x4                // =4
    1004:      	ldr	q0, [x1]
    1008:      	add	v0.4s, v0.4s, v1.4s
    100c:      	subs	w8, w8, #0x1
    1010:      	b.ne	0x1008 <kernel+0x8>
    1014:      	ret
"""
LOG = b"""----------------
IN: main
0x00000100:  14000000  b        #0x1000

Trace 0: 0x7f [0/0000000000000100/0/0] main
----------------
IN: kernel
0x00001000:  52800088  mov      w8, #4
0x00001004:  3dc00020  ldr      q0, [x1]

Trace 0: 0x7f [0/0000000000001000/0/0] kernel
----------------
IN: kernel
0x00001008:  4ea18400  add      v0.4s, v0.4s, v1.4s
0x0000100c:  71000508  subs     w8, w8, #1
0x00001010:  54ffffc1  b.ne     #0x1008

Trace 0: 0x7f [0/0000000000001008/0/0] kernel
Trace 0: 0x7f [0/0000000000001008/0/0] kernel
Trace 0: 0x7f [0/0000000000001008/0/0] kernel
Trace 0: 0x7f [0/0000000000001008/0/0] kernel
----------------
IN: kernel
0x00001014:  d65f03c0  ret

Trace 0: 0x7f [0/0000000000001014/0/0] kernel
"""


def test_pieces_are_counted_and_joined() -> None:
    """The emulator split the first run of the loop off; its other runs come from the branch."""
    code = Code.parse(CODE)
    assert code.lines[0x1000] == "mov\tw8, #0x4"
    assert code.lines[0x1010] == "b.ne\t#0"
    trace = Trace.parse(LOG, code)
    assert trace.counts == Counter({0x1000: 1, 0x1008: 4, 0x1014: 1})
    assert [(hex(addresses[0]), len(addresses), count) for addresses, count in merged(trace, code)] == [
        ("0x1000", 5, 1), ("0x1008", 3, 3), ("0x1014", 1, 1)
    ]  # fmt: skip


def test_schedules_that_only_differ_in_fetching_ahead_are_left_out() -> None:
    workload = Workload.of("lut", 512, 512, 1, 2)
    space = candidates(workload, 1, "neon")
    left = same_prefetch(space)
    assert left[0] == rule(workload)
    assert 1 < len(left) < len(space)
    assert {schedule.tiles[-1].prefetch for schedule in left} == {4096}  # type: ignore[union-attr]


@pytest.fixture
def model() -> Iterator[ModelRunner]:
    target = get_target(LEVEL)
    tools = (find_emulator(target), find_linker(target), find_llvm("llvm-mca"), find_llvm("llvm-objdump"))
    if None in tools:
        pytest.skip("needs qemu-user, gcc-aarch64-linux-gnu and llvm-mca (llvm-19)")
    runner = ModelRunner(target, 1, 60.0, "")
    yield runner
    runner.close()


def cycles(runner: ModelRunner, workload: Workload, schedule: AnySchedule | None = None) -> float:
    ((_, outcome),) = runner.run(workload, [schedule or rule(workload)], 9)
    assert (outcome.status, outcome.basis) == ("ok", "modelled"), outcome.why
    assert outcome.cpu.startswith("neoverse-n1 (llvm-mca")
    return 1e3 * outcome.us


def test_cycles_follow_the_work(model: ModelRunner) -> None:
    """Near the ports' bound of the table loop, four cycles for 128 weight bits, and linear in the columns."""
    short, long = (cycles(model, Workload.of("lut", 64, k, 1, 2)) for k in (1024, 2048))
    assert 1.8 < long / short < 2.1
    assert 4.0 < long / (64 * 2048 * 2 / 128) < 6.0
    assert cycles(model, Workload.of("lut", 256, 1024, 1, 2)) == pytest.approx(4 * short, rel=0.1)
    workload = Workload.of("lut", 64, 2048, 1, 2)
    slow = next(s for s in candidates(workload, 1, "neon") if s.tiles[-1].row_tiles == 4)  # type: ignore[union-attr]
    assert cycles(model, workload, slow) > 1.05 * long, "four row tiles spill"


def test_tunes_with_marked_records(model: ModelRunner, tvmq: Any, tmp_path: Path) -> None:
    work, log = tmp_path / "w.json", tmp_path / "log.jsonl"
    work.write_text(json.dumps([{"op": "dequant", "n": 64, "k": 128, "m": 4, "bits": 8}]))
    words = ["tune", work, "-o", log, "--target", LEVEL, "--runner", "model:cortex-a55", "--trials", 2]
    outcome = tvmq(*words)
    assert outcome.code == 0, outcome.err
    assert "thousand cycles (modelled)" in outcome.err
    records = read(log).records
    assert {(r.basis, r.status) for r in records} == {("modelled", "ok")}
    assert {r.cpu.partition(" ")[0] for r in records} == {"cortex-a55"}
    assert "kcycles" in tvmq("log", "top", log).out
    outcome = tvmq(*words[:-3], "model:z80", "--trials", 1, "--resume")
    assert (outcome.code, len(outcome.err.splitlines())) == (4, 1)
    assert "llvm-mca cannot judge code for z80" in outcome.err


def test_other_levels_are_refused(tvmq: Any, tmp_path: Path) -> None:
    work = tmp_path / "w.json"
    work.write_text(json.dumps([{"op": "lut", "n": 64, "k": 64, "m": 4, "bits": 1}]))
    words = ["tune", work, "-o", tmp_path / "log.jsonl", "--target", "x86_64_v2", "--runner", "model"]
    outcome = tvmq(*words)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "judges one thread of arm64_v8, arm64_dotprod, arm64_i8mm, not x86_64_v2" in outcome.err
