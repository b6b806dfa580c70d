# SPDX-License-Identifier: Apache-2.0
"""Tuning logs as files of a user: read with refusals in words, checked, merged, exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schedules import tuning_log
from schedules.tuned import shipped_log
from schedules.tuning_log import Damage, TuningLog, TuningRecord
from tvmq.errors import InputError
from tvmq.store import atomic_write, refuse_existing


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What a log holds.

    Attributes:
        path: the file.
        records: whole records.
        usable: those of this kernel version.
        workloads: keys with a fastest record.
        damaged: lines that hold no record.
    """

    path: Path
    records: int
    usable: int
    workloads: int
    damaged: tuple[Damage, ...]

    def to_json(self) -> dict[str, Any]:
        """The facts as plain data."""
        return {**asdict(self), "path": str(self.path)}


def read_log(path: Path) -> TuningLog:
    """A log, damaged lines skipped; InputError where the file is none."""
    try:
        log = tuning_log.read(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    if log.damaged and not log.records:
        first = log.damaged[0]
        raise InputError(f"{path}: no tuning log: line {first.line}: {first.why}")
    return log


def log_of(path: Path | None) -> TuningLog:
    """What models are compiled with: the records of a file, and shipped ones of what it does not know."""
    shipped = shipped_log()
    if path is None:
        return shipped
    own = read_log(path)
    known = {record.key for record in own.best()}
    others = tuple(record for record in shipped.records if record.key not in known)
    return tuning_log.merge([own, TuningLog(others)])


def check_logs(paths: Sequence[Path]) -> list[LogFacts]:
    """What every log holds."""
    found = []
    for path in paths:
        log = read_log(path)
        usable = sum(record.key.kernel == tuning_log.KERNEL_VERSION for record in log.records)
        facts = LogFacts(
            path=path,
            records=len(log.records),
            usable=usable,
            workloads=len(log.best()),
            damaged=log.damaged,
        )
        found.append(facts)
    return found


def merge_logs(paths: Sequence[Path], output: Path, force: bool) -> tuple[int, int]:
    """Writes all records of several logs; (records, damaged lines left out)."""
    logs = [read_log(path) for path in paths]
    records = tuning_log.merge(logs).records
    _write(output, records, force)
    return len(records), sum(len(log.damaged) for log in logs)


def best_records(paths: Sequence[Path], target: str | None = None) -> list[TuningRecord]:
    """The fastest record of every workload of several logs."""
    best = tuning_log.merge([read_log(path) for path in paths]).best()
    return [record for record in best if target in (None, record.key.target)]


def export_logs(paths: Sequence[Path], output: Path, target: str | None, force: bool) -> int:
    """Writes the fastest record of every workload, in the order of their keys; how many there are."""
    best = best_records(paths, target)
    if not best:
        raise InputError("no log has a fastest record of this target and kernel version")
    best.sort(key=lambda record: [str(value).rjust(12) for value in _values(record)])
    _write(output, best, force)
    return len(best)


def _values(record: TuningRecord) -> list[Any]:
    return list(asdict(record.key).values())


def _write(output: Path, records: Sequence[TuningRecord], force: bool) -> None:
    refuse_existing(output, force)
    atomic_write(output, b"".join(tuning_log.encode(record) for record in records))
