# SPDX-License-Identifier: Apache-2.0
"""A log of finished units survives a kill at any byte and belongs to one measurement only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvmq import sensitivity as module
from tvmq.samples import Sample, Samples
from tvmq.sensitivity import measure_sensitivities
from tvmq.sensitivity_table import UnitSensitivity
from tvmq.sweep_log import SweepLog

FACTS = ("model", "samples", 3)


def unit(number: int) -> UnitSensitivity:
    return UnitSensitivity(
        tensor="a", block="b", first=number, rows=1, bits=(1, 2), kl=(0.5, 0.1 / 3), error=(1, 0.5),
        bytes=(1, 2),
    )  # fmt: skip


def test_units_come_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = SweepLog(path, FACTS)
    for number in range(3):
        log.add(unit(number))
    again = SweepLog(path, FACTS)
    assert [again.get("a", number) for number in range(3)] == [unit(number) for number in range(3)]
    assert again.get("a", 3) is None
    assert again.get("c", 0) is None


def test_another_measurement_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    SweepLog(path, FACTS).add(unit(0))
    other = SweepLog(path, ("model", "samples", 4))
    assert other.get("a", 0) is None
    other.add(unit(1))
    assert SweepLog(path, FACTS).get("a", 0) is None
    assert SweepLog(path, ("model", "samples", 4)).get("a", 1) == unit(1)


def test_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = SweepLog(path, FACTS)
    ends = []
    for number in range(3):
        log.add(unit(number))
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        cut = SweepLog(path, FACTS)
        kept = sum(end <= length for end in ends)
        assert [cut.get("a", number) is not None for number in range(3)] == [i < kept for i in range(3)]
        cut.add(unit(7))
        again = SweepLog(path, FACTS)
        assert again.get("a", 7) == unit(7)
        assert sum(again.get("a", number) is not None for number in range(3)) == kept


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"\n\n\n", b"{}", b"[" * 10_000])
def test_anything_else_is_no_log(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "log"
    SweepLog(path, FACTS).add(unit(0))
    head = path.read_bytes().split(b"\n")[0]
    for text in (junk, head + b"\n" + junk + b"\n"):
        path.write_bytes(text)
        log = SweepLog(path, FACTS)
        assert log.get("a", 0) is None
        log.add(unit(1))
        assert SweepLog(path, FACTS).get("a", 1) == unit(1)


def test_nothing_is_kept_without_a_path() -> None:
    log = SweepLog(None, FACTS)
    log.add(unit(0))
    assert log.get("a", 0) is None


def test_a_killed_measurement_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Samples([Sample(source=(5, 6, 0), target=(7, 8, 0)), Sample(source=(9, 0), target=(4, 0))])
    options = {"widths": (1, 2), "log": tmp_path / "log"}
    measured: list[str] = []
    original = module._measure

    def counted(sweep: object, unit: module.Unit, *others: object) -> UnitSensitivity:
        measured.append(unit.tensor)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return original(sweep, unit, *others)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivities(tiny_model, samples, **options)  # pyright: ignore[reportArgumentType]
    found = measure_sensitivities(tiny_model, samples, **options)  # pyright: ignore[reportArgumentType]
    assert len(measured) == len(found.units) + 1
    whole = measure_sensitivities(tiny_model, samples, widths=(1, 2))
    for one, other in zip(found.units, whole.units, strict=True):
        assert (one.tensor, one.first, one.bytes) == (other.tensor, other.first, other.bytes)
        np.testing.assert_allclose(one.kl, other.kl, rtol=1e-6)
