# SPDX-License-Identifier: Apache-2.0
"""The tuning log: measured schedules of workloads, one JSON line each with a checksum, found again by key.

A line is ``{"sha256": <64 hex digits of the record's text>, "record": {...}}``. Lines are only appended, in
one write under a file lock: a kill at any byte leaves at most one damaged line, which reading skips. A record
applies to its own target, number of threads and ``KERNEL_VERSION`` and to no other.

Where a workload has no record, the nearest one with the same family, token bucket, target, threads and kernel
version serves, by ``distance``; beyond ``FARTHEST`` the rule does.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from .schedule import AnySchedule, DequantSchedule, Schedule, rule, schedule_type
from .workload import M_BUCKETS, Op, Workload, m_bucket

KERNEL_VERSION = 1
"""Raised whenever a kernel's code changes, which makes its measured times worthless."""
RECORD_VERSION = 2
MOST_BYTES = 64 << 20
MOST_LINE = 1 << 14
FARTHEST = 4.0
WORTH = 1.05
"""How many times as fast as the rule a schedule must be to be taken: above what a busy machine makes up."""

Status = Literal["ok", "wrong", "crash", "timeout", "error"]
Stage = Literal["trial", "final"]
Basis = Literal["measured", "modelled", "emulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a measured time belongs to; ``m`` is a bucket of tokens."""

    op: Op
    n: int
    k: int
    m: int
    bits: int
    group: int
    layout: str
    target: str
    threads: int
    kernel: int = KERNEL_VERSION

    @staticmethod
    def of(workload: Workload, target: str, threads: int) -> Key:
        """The key of a workload on an ISA level."""
        return Key(
            op=workload.op,
            n=workload.n,
            k=workload.k,
            m=m_bucket(workload.m),
            bits=workload.bits,
            group=workload.group,
            layout=workload.layout,
            target=target,
            threads=threads,
        )

    @property
    def workload(self) -> Workload:
        """The workload that stands for the key's bucket."""
        facts = {name: getattr(self, name) for name in ("op", "n", "k", "m", "bits", "group", "layout")}
        return Workload(**facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRecord:
    """One measured schedule.

    Attributes:
        key: workload, target and kernel version.
        schedule: what was measured.
        status: ``ok``, or how the candidate failed.
        us: microseconds of a call (weights from memory for one token, else warm); 0 unless ok.
        rule_us: the same of the rule's schedule, measured in turn with it.
        stage: ``trial``, or ``final`` for those that were measured again and longer.
        cpu: name of the CPU, or of the model of one.
        basis: what the times are. Modelled ones, thousands of cycles, only say which schedule is faster, and
            only where nothing was measured; those of an emulator say nothing, and are never used.
        version: of this format.
    """

    key: Key
    schedule: Schedule | DequantSchedule
    status: Status
    us: float
    rule_us: float
    stage: Stage
    cpu: str
    basis: Basis = "measured"
    version: int = RECORD_VERSION

    def __post_init__(self) -> None:
        fits = isinstance(self.schedule, schedule_type(self.key.op))
        times = all(math.isfinite(us) and us >= 0 for us in (self.us, self.rule_us))
        if not fits or not times or (self.status == "ok" and not (self.us and self.rule_us)):
            raise ValueError("a record whose parts do not fit")
        if self.key.threads < 1 or self.key.m not in M_BUCKETS:
            raise ValueError("a key that no workload has")
        _ = self.key.workload

    @property
    def gain(self) -> float:
        """How many times as fast as the rule; 0 for a failure."""
        return self.rule_us / self.us if self.status == "ok" else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A line that was skipped: its number from 1 on, and why."""

    line: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The schedule for a workload and where it comes from.

    Attributes:
        schedule: what to compile.
        source: ``tuned``, ``nearest`` or ``rule``.
        record: the record that it comes from; None for the rule.
        distance: of the record's workload.
    """

    schedule: AnySchedule
    source: Literal["tuned", "nearest", "rule"]
    record: TuningRecord | None = None
    distance: float = 0.0


@dataclass(frozen=True, slots=True)
class TuningLog:
    """Records in order, and the lines that hold none."""

    records: tuple[TuningRecord, ...] = ()
    damaged: tuple[Damage, ...] = ()
    _best: dict[Key, TuningRecord] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        for record in self.records:
            usable = record.status == "ok" and record.basis != "emulated"
            if usable and record.key.kernel == KERNEL_VERSION:
                known = self._best.get(record.key)
                if known is None or _rank(record) > _rank(known):
                    self._best[record.key] = record

    def best(self) -> list[TuningRecord]:
        """The fastest record of every key of this kernel version: final ones before trials."""
        return list(self._best.values())

    def choose(self, workload: Workload, target: str, threads: int) -> Choice:
        """The schedule of a workload: its own record, the nearest one or the rule; measured ones first."""
        wanted = Key.of(workload, target, threads)
        found, apart = self._best.get(wanted), 0.0
        if found is None or found.basis != "measured":
            near = [
                (record.basis != "measured", distance(wanted, key), i, record)
                for i, (key, record) in enumerate(self._best.items())
                if distance(wanted, key) <= FARTHEST
            ]
            _, apart, _, found = min(near, default=(True, math.inf, 0, None))
        if found is None:
            return Choice(schedule=rule(workload), source="rule")
        schedule = found.schedule if found.gain >= WORTH else rule(workload)
        source = "nearest" if apart else "tuned"
        return Choice(schedule=schedule, source=source, record=found, distance=apart)


NO_RECORDS = TuningLog()
"""Leaves every workload its rule."""


def _rank(record: TuningRecord) -> tuple[bool, bool, float]:
    return record.basis == "measured", record.stage == "final", record.gain


def distance(a: Key, b: Key) -> float:
    """How unlike two workloads are; infinite where one's schedule says nothing about the other.

    Halving or doubling rows or columns is 1; a bit more or less, other groups and another way of storing
    scales are a half each.
    """
    same = ("op", "m", "target", "threads", "kernel")
    if any(getattr(a, name) != getattr(b, name) for name in same):
        return math.inf
    sizes = abs(math.log2(a.n) - math.log2(b.n)) + abs(math.log2(a.k) - math.log2(b.k))
    whole = (a.group == a.k) != (b.group == b.k)
    groups = 0.5 * (whole or (a.group != a.k and a.group != b.group))
    return sizes + 0.5 * abs(a.bits - b.bits) + groups + 0.5 * (a.layout != b.layout)


def encode(record: TuningRecord) -> bytes:
    """The line of a record, newline included."""
    text = msgspec.json.encode(record)
    return b'{"sha256":"%s","record":%s}\n' % (hashlib.sha256(text).hexdigest().encode(), text)


def decode(line: bytes) -> TuningRecord:
    """The record of a line; ValueError with the reason where it is none."""
    if len(line) > MOST_LINE:
        raise ValueError("longer than a record")
    try:
        raw: Any = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        claimed = msgspec.json.decode(raw["sha256"], type=str)
        text = bytes(raw["record"])
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError, RecursionError):
        raise ValueError("not a line of a tuning log, or cut off") from None
    if hashlib.sha256(text).hexdigest() != claimed:
        raise ValueError("wrong checksum")
    try:
        facts = msgspec.json.decode(text)
        newer = facts["version"] > RECORD_VERSION if isinstance(facts, dict) else False
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
        raise ValueError("not a record") from None
    if newer:
        raise ValueError(f"a record of format {facts['version']}, newer than this tvmq knows")
    return _record(facts, text)


def _record(facts: dict[str, Any], text: bytes) -> TuningRecord:
    try:
        kind = schedule_type(facts["key"]["op"])
        schedule = msgspec.convert(facts["schedule"], kind)
        record = TuningRecord(
            key=msgspec.convert(facts["key"], Key),
            schedule=schedule,
            status=msgspec.convert(facts["status"], Status),
            us=msgspec.convert(facts["us"], float),
            rule_us=msgspec.convert(facts["rule_us"], float),
            stage=msgspec.convert(facts["stage"], Stage),
            cpu=msgspec.convert(facts["cpu"], str),
            basis=msgspec.convert(facts["basis"], Basis),
            version=msgspec.convert(facts["version"], int),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("a record that this tvmq cannot use") from None
    if msgspec.json.encode(record) != text:
        raise ValueError("a record with fields that this tvmq does not know")
    return record


def parse(data: bytes) -> TuningLog:
    """The log of a file's bytes; damaged lines are noted and skipped."""
    records, damaged = [], []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line:
            continue
        try:
            records.append(decode(line))
        except ValueError as error:
            damaged.append(Damage(line=number, why=str(error)))
    return TuningLog(tuple(records), tuple(damaged))


def read(path: Path) -> TuningLog:
    """The log at ``path``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file or larger than any log.
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{path}: not a regular file")
    if info.st_size > MOST_BYTES:
        raise ValueError(f"{path}: {info.st_size} bytes, expected at most {MOST_BYTES}")
    with path.open("rb") as file:
        return parse(file.read(MOST_BYTES + 1))


def append(path: Path, records: Iterable[TuningRecord]) -> None:
    """Adds records at the end of a log, which is made if it is not there; OSError where that fails."""
    data = b"".join(encode(record) for record in records)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        end = os.fstat(handle).st_size
        if end and os.pread(handle, 1, end - 1) != b"\n":
            data = b"\n" + data  # a kill cut the last line off: it must not swallow this one
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def merge(logs: Sequence[TuningLog]) -> TuningLog:
    """All records of several logs, equal ones once."""
    records = dict.fromkeys(record for log in logs for record in log.records)
    return TuningLog(tuple(records))
