# SPDX-License-Identifier: Apache-2.0
"""The tuning log keeps what was written, skips what is damaged, and applies to nothing else."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import tuning_log
from schedules.schedule import DEQUANT_RULE, LUT_RULE, DequantSchedule, Schedule, TokenTile
from schedules.tuning_log import (
    KERNEL_VERSION,
    MOST_BYTES,
    Key,
    TuningLog,
    TuningRecord,
    append,
    decode,
    distance,
    encode,
    merge,
    parse,
    read,
)
from schedules.workload import M_BUCKETS, Workload

TUNED = LUT_RULE.over(TokenTile(tokens=1, row_tiles=2, unroll=2, prefetch=4096))
TARGET = "x86_64_v3"


def record(workload: Workload, schedule: Any = TUNED, us: float = 1.0, **changes: Any) -> TuningRecord:
    facts: dict[str, Any] = {"status": "ok", "rule_us": 2.0, "stage": "final", "cpu": "a CPU"}
    threads, target = changes.pop("threads", 1), changes.pop("target", TARGET)
    facts |= changes
    return TuningRecord(key=Key.of(workload, target, threads), schedule=schedule, us=us, **facts)


def lut(n: int = 512, k: int = 512, m: int = 1, bits: int = 2, **facts: Any) -> Workload:
    return Workload.of("lut", n, k, m, bits, **facts)


tiles = st.builds(
    TokenTile,
    tokens=st.integers(2, 16),
    row_tiles=st.sampled_from([0, 1, 2, 4]),
    unroll=st.sampled_from([1, 2, 4]),
    prefetch=st.integers(0, 65536),
)
sizes = st.integers(1, 10**6)
luts = st.builds(
    record,
    st.builds(lut, n=sizes, k=sizes, m=st.integers(1, 999), bits=st.integers(1, 8)),
    st.builds(lambda tile, b: Schedule(tiles=(tile, TokenTile(tokens=1)), spread=b), tiles, st.booleans()),
    st.floats(1e-3, 1e9),
    cpu=st.text(max_size=30).filter(lambda text: text.isprintable()),
    stage=st.sampled_from(["trial", "final"]),
    threads=st.integers(1, 64),
)  # fmt: skip
dequants = st.builds(
    record,
    st.builds(lambda n, bits: Workload.of("dequant", n, 64, 4, bits), st.integers(1, 999), st.integers(1, 8)),
    st.builds(DequantSchedule, chunk_steps=st.integers(1, 64)),
    status=st.sampled_from(["ok", "crash", "timeout", "wrong", "error"]),
)
records = st.lists(luts | dequants, max_size=6)


@given(records)
@settings(deadline=None, max_examples=50)
def test_what_is_written_is_read(found: list[TuningRecord]) -> None:
    lines = [encode(r) for r in found]
    for line in lines:
        assert json.loads(line)["record"]["key"]["kernel"] == KERNEL_VERSION
    log = parse(b"".join(lines))
    assert list(log.records) == found
    assert log.damaged == ()


@given(records, records, st.data())
@settings(deadline=None, max_examples=50)
def test_a_kill_at_any_byte_loses_only_its_line(
    before: list[TuningRecord], after: list[TuningRecord], data: st.DataObject
) -> None:
    """Cut anywhere, append on: all whole lines and all later ones are there."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "log.jsonl"
        append(path, before)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        append(path, after)
        log = read(path)
    lines, kept, end = [encode(r) for r in before], 0, 0
    for line in lines:
        end += len(line)
        kept += end - 1 <= cut  # a missing line end is no loss
    assert list(log.records) == before[:kept] + after
    assert len(log.damaged) <= 1


@given(luts, st.data())
@settings(deadline=None, max_examples=50)
def test_any_changed_byte_is_noticed(found: TuningRecord, data: st.DataObject) -> None:
    line = bytearray(encode(found)[:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= data.draw(st.integers(1, 255))
    try:
        assert decode(bytes(line)) == found  # white space outside the record is no change
    except ValueError:
        return


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=50)
def test_rubbish_is_skipped(data: bytes) -> None:
    good = encode(record(lut()))
    log = parse(data + b"\n" + good)
    assert log.records == (record(lut()),)


def line_of(text: str) -> bytes:
    import hashlib

    return json.dumps(
        {"sha256": hashlib.sha256(text.encode()).hexdigest(), "record": "@"}, separators=(",", ":")
    ).replace('"@"', text).encode()


def changed(**facts: Any) -> bytes:
    plain = json.loads(encode(record(lut())))["record"]
    for name, value in facts.items():
        *outer, last = name.split("__")
        place = plain
        for part in outer:
            place = place[part]
        place[last] = value
    return line_of(json.dumps(plain, separators=(",", ":")))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (encode(record(lut()))[:-2], "not a line of a tuning log, or cut off"),
        (encode(record(lut())).replace(b'"us":1.0', b'"us":0.1')[:-1], "wrong checksum"),
        (changed(version=3), "a record of format 3, newer than this tvmq knows"),
        (changed(version="2"), "not a record"),
        (line_of("[]"), "a record that this tvmq cannot use"),
        (line_of("7"), "a record that this tvmq cannot use"),
        (changed(basis="guessed"), "a record that this tvmq cannot use"),
        (changed(us=0), "a record that this tvmq cannot use"),
        (changed(us=-1.0), "a record that this tvmq cannot use"),
        (changed(us=True), "a record that this tvmq cannot use"),
        (changed(key__n=0), "a record that this tvmq cannot use"),
        (changed(key__m=3), "a record that this tvmq cannot use"),
        (changed(key__op="rm"), "a record that this tvmq cannot use"),
        (changed(key__threads=0), "a record that this tvmq cannot use"),
        (changed(schedule={"tokens": [], "chunk_steps": 12}), "a record that this tvmq cannot use"),
        (changed(schedule__tiles=[]), "a record that this tvmq cannot use"),
        (changed(extra=1), "a record with fields that this tvmq does not know"),
        (b'{"sha256":"0","record":' + b"[" * 20000, "longer than a record"),
        (b"[" * 9000, "not a line of a tuning log, or cut off"),
        (b'{"sha256":"\xff","record":{}}', "not a line of a tuning log, or cut off"),
    ],
)  # fmt: skip
def test_bad_lines_say_why_and_do_no_harm(line: bytes, why: str) -> None:
    log = parse(encode(record(lut())) + line + b"\n" + encode(record(lut(bits=3))))
    assert len(log.records) == 2
    assert [(d.line, d.why) for d in log.damaged] == [(2, why)]


def test_huge_files_and_folders_are_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match=f"{MOST_BYTES + 1} bytes, expected at most"):
        read(huge)
    with pytest.raises(ValueError, match="not a regular file"):
        read(tmp_path)


def test_other_targets_threads_and_kernels_get_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    log = TuningLog((record(lut()),))
    assert log.choose(lut(), TARGET, 1).schedule == TUNED
    for workload, target, threads in [
        (lut(), "x86_64_v2", 1),
        (lut(), TARGET, 2),
        (lut(m=2), TARGET, 1),
        (Workload.of("exact", 512, 512, 1, 2), TARGET, 1),
    ]:
        found = log.choose(workload, target, threads)
        assert (found.schedule, found.source, found.record) == (LUT_RULE, "rule", None)
    monkeypatch.setattr(tuning_log, "KERNEL_VERSION", KERNEL_VERSION + 1)
    assert TuningLog((record(lut()),)).choose(lut(), TARGET, 1).source == "rule"


def test_the_nearest_record_serves_within_reach() -> None:
    far, near = record(lut(n=8192)), record(lut(n=1024), replace(TUNED, spread=True))
    log = TuningLog((far, near))
    found = log.choose(lut(n=600), TARGET, 1)
    assert (found.source, found.schedule, found.record) == ("nearest", near.schedule, near)
    assert found.distance == pytest.approx(math.log2(1024 / 600))
    assert log.choose(lut(n=64, k=64), TARGET, 1).source == "rule"


def test_the_rule_stays_unless_something_is_clearly_better() -> None:
    log = TuningLog((record(lut(), us=1.99),))
    found = log.choose(lut(), TARGET, 1)
    assert (found.source, found.schedule) == ("tuned", LUT_RULE)


def test_modelled_records_only_serve_where_nothing_was_measured() -> None:
    other = LUT_RULE.over(TokenTile(tokens=1, unroll=4))
    modelled = record(lut(), other, us=0.5, basis="modelled", cpu="neoverse-n1")
    log = TuningLog((modelled, record(lut(n=1024))))
    assert (log.choose(lut(), TARGET, 1).schedule, log.choose(lut(), TARGET, 1).source) == (TUNED, "nearest")
    assert TuningLog((modelled,)).choose(lut(), TARGET, 1).record == modelled
    assert TuningLog((modelled,)).choose(lut(n=1024), TARGET, 1).record == modelled
    assert TuningLog((modelled, record(lut(), us=1.9))).best() == [record(lut(), us=1.9)]


def test_records_of_an_emulator_are_never_used() -> None:
    log = TuningLog((record(lut(), us=0.1, basis="emulated"),))
    assert log.best() == []
    assert log.choose(lut(), TARGET, 1).source == "rule"


def test_final_measurements_beat_lucky_trials() -> None:
    other = LUT_RULE.over(TokenTile(tokens=1, unroll=4))
    lucky = record(lut(), other, us=0.5, stage="trial")
    broken = record(lut(), other, us=0, status="crash")
    slow = record(lut(), us=1.2)
    for order in ([lucky, slow, record(lut()), broken], [record(lut()), slow, broken, lucky]):
        assert TuningLog(tuple(order)).best() == [record(lut())]


shapes_of_three = st.lists(st.tuples(sizes, sizes, st.integers(1, 8)), min_size=3, max_size=3)


@given(shapes_of_three)
@settings(deadline=None, max_examples=50)
def test_distance_is_a_distance(shapes: list[tuple[int, int, int]]) -> None:
    a, b, c = (Key.of(lut(n, k, 1, bits), TARGET, 1) for n, k, bits in shapes)
    assert distance(a, a) == 0
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9


def test_distance_counts_what_it_says() -> None:
    one = Key.of(lut(), TARGET, 1)
    for workload, apart in [
        (lut(n=1024), 1), (lut(k=256), 1), (lut(bits=4), 1), (lut(group=64), 0.5), (lut(scale="pow2"), 0.5)
    ]:  # fmt: skip
        assert distance(one, Key.of(workload, TARGET, 1)) == apart
    assert distance(Key.of(lut(group=64), TARGET, 1), Key.of(lut(group=128), TARGET, 1)) == 0.5
    assert math.isinf(distance(one, Key.of(lut(m=2), TARGET, 1)))


def test_merging_keeps_every_record_once() -> None:
    a, b, c = record(lut()), record(lut(bits=3)), record(lut(bits=4))
    assert merge([TuningLog((a, b)), TuningLog((b, c, a))]).records == (a, b, c)


def test_keys_keep_buckets() -> None:
    assert {Key.of(lut(m=m), TARGET, 1).m for m in range(1, 500)} == set(M_BUCKETS)
    assert Key.of(lut(m=20), TARGET, 1).workload.m == 64


def _write(path: Path, first: int) -> None:
    for n in range(first, first + 20):
        append(path, [record(lut(n=n))])


def _write_forever(path: Path) -> None:
    while True:
        append(path, [record(lut())] * 50)


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, first)) for first in (1, 101)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    log = read(path)
    assert not log.damaged
    assert sorted(r.key.n for r in log.records) == [*range(1, 21), *range(101, 121)]


def test_a_killed_writer_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        writer = context.Process(target=_write_forever, args=(path,))
        writer.start()
        while not path.exists() or path.stat().st_size < 10_000:
            time.sleep(0.001)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        append(path, [record(lut(bits=5))])
        log = read(path)
        assert len(log.damaged) <= 3
        assert log.records[-1] == record(lut(bits=5))
        assert log.choose(lut(), TARGET, 1).schedule == TUNED


def test_dequant_records_carry_their_own_schedule() -> None:
    workload = Workload.of("dequant", 64, 64, 4, 3)
    own = record(workload, DequantSchedule(tokens=(2, 1)))
    assert TuningLog((own,)).choose(workload, TARGET, 1).schedule == own.schedule
    assert TuningLog(()).choose(workload, TARGET, 1).schedule == DEQUANT_RULE
    with pytest.raises(ValueError, match="parts do not fit"):
        record(workload, LUT_RULE)


def test_changed_kernels_have_another_version(golden: Any) -> None:
    """Where this fails because a kernel changed: raise KERNEL_VERSION, then pytest --update-golden."""
    import hashlib

    from schedules.problem import make_problem

    digest = hashlib.sha256()
    for isa in ("avx512_vbmi", "avx2", "ssse3"):
        for op, bits in (("lut", 2), ("exact", 2), ("dequant", 2), ("dequant", 8), ("float", 32)):
            problem = make_problem(Workload.of(op, 70, 192, 4, bits), isa)  # type: ignore[arg-type]
            for function in problem.kernels.values():
                digest.update(function.script().encode())
    golden("kernel-version.txt", f"{KERNEL_VERSION} {digest.hexdigest()}\n")
