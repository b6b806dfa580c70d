# SPDX-License-Identifier: Apache-2.0
"""Threads keep to fast cores, as a machine's /sys tells them; without touching the machine's own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tvmq.native import library

NEVER, BIG, EACH = 0, 1, 2
SNAPDRAGON = [325] * 4 + [828] * 3 + [1024]
"""Capacities of a 1 + 3 + 4 phone."""
INTEL = [5_000_000, 5_200_000] + [3_800_000] * 4
"""Highest clock rates in kHz: cores of one kind differ a little."""


@pytest.fixture(scope="module")
def program(build_c: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cores") / "cores"
    build_c(path, "cores.c", files=[library.FOLDER / "src" / "cores.c"])
    return path


def machine(folder: Path, values: Sequence[int], name: str = "cpu_capacity") -> Path:
    """A /sys with these values for its cores; 0 leaves the file out."""
    for core, value in enumerate(values):
        path = folder / "devices" / "system" / "cpu" / f"cpu{core}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if value:
            path.write_text(f"{value}\n")
    return folder


def chosen(
    program: Path, sysfs: Path, allowed: Sequence[int], pin: int = BIG, number: int = 0, count: int = 1
) -> tuple[bool, list[int]]:
    """(whether the thread is moved, the cores that it may use then)."""
    words = [program, sysfs, ",".join(map(str, allowed)), str(pin), str(number), str(count)]
    put, *cores = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return put == "1", [int(core) for core in cores]


def test_the_fast_cores_of_a_phone(program: Path, tmp_path: Path) -> None:
    phone = machine(tmp_path, SNAPDRAGON)
    for count in (1, 2, 4):
        assert chosen(program, phone, range(8), count=count) == (True, [4, 5, 6, 7])
    assert chosen(program, phone, range(8), count=5)[0] is False  # all cores are needed
    assert chosen(program, phone, range(8), NEVER)[0] is False


def test_the_mask_of_the_process_is_kept(program: Path, tmp_path: Path) -> None:
    phone = machine(tmp_path, SNAPDRAGON)
    assert chosen(program, phone, [1, 2, 5]) == (True, [5])
    assert chosen(program, phone, [0, 1, 2])[0] is False  # alike among themselves
    assert chosen(program, phone, [6, 7])[0] is False
    assert chosen(program, phone, [1, 5, 6], count=2) == (True, [5, 6])
    assert chosen(program, phone, [1, 5, 6], EACH, 1, 2) == (True, [6])


def test_clock_rates_where_there_are_no_capacities(program: Path, tmp_path: Path) -> None:
    hybrid = machine(tmp_path, INTEL, "cpufreq/cpuinfo_max_freq")
    assert chosen(program, hybrid, range(6)) == (True, [0, 1])
    machine(tmp_path, [1024] * 6)  # where both are told, capacities count
    assert chosen(program, hybrid, range(6))[0] is False


@pytest.mark.parametrize("values", [[1024] * 4, [1024, 980, 1000, 1024], [0] * 4, [1024, 0, 325, 325]])
def test_cores_alike_or_unknown_are_left_alone(program: Path, tmp_path: Path, values: list[int]) -> None:
    alike = machine(tmp_path, values)
    assert chosen(program, alike, range(4), count=2) == (False, [0, 1, 2, 3])
    for number in range(4):
        assert chosen(program, alike, range(4), EACH, number, 4) == (True, [number])
    assert chosen(program, alike, range(4), EACH, 0, 5)[0] is False


def test_nonsense_is_no_capacity(program: Path, tmp_path: Path) -> None:
    strange = machine(tmp_path, [1024, 300])
    (strange / "devices" / "system" / "cpu" / "cpu1" / "cpu_capacity").write_text("fast\n")
    assert chosen(program, strange, range(2))[0] is False
