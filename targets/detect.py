# SPDX-License-Identifier: Apache-2.0
"""Which ISA levels the running CPU can execute, read from the operating system."""

from __future__ import annotations

import platform
from pathlib import Path

from .spec import TargetSpec

CPUINFO = Path("/proc/cpuinfo")
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4d"): "Cortex-A715",
    ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse-V2",
}
"""Arm's numbers of its cores (implementer 0x41), as Linux shows them."""


def host_architecture() -> str:
    """What ``uname -m`` says, in the spelling of LLVM's triples: ``x86_64``, ``aarch64``."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def host_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """CPU feature names of the first core, in ``/proc/cpuinfo`` spelling; empty where unreadable."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def host_cpu(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's marketing name, or the names of an Arm CPU's kinds of cores, or ``unknown``."""
    try:
        return cpu_name(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return "unknown"


def cpu_name(cpuinfo: str) -> str:
    """The same from the text of ``/proc/cpuinfo``, which names Arm cores by numbers."""
    kinds: dict[str, None] = {}
    implementer = ""
    for line in cpuinfo.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "model name":
            return value
        if name == "CPU implementer":
            implementer = value
        elif name == "CPU part":
            kinds[_ARM_CORES.get((implementer, value), f"CPU {implementer} part {value}")] = None
    return ", ".join(kinds) or "unknown"


def runnable(
    specs: tuple[TargetSpec, ...], flags: frozenset[str], architecture: str
) -> list[TargetSpec]:
    """The levels of an architecture whose features are all present and permitted, best first.

    A CPU may have AMX while the system refuses its registers (an old kernel, a sandbox): such a machine
    runs the level below.
    """
    own = [spec for spec in specs if spec.architecture == architecture]
    fit = [spec for spec in own if flags and spec.cpu_flags <= flags and spec.permission()]
    return sorted(fit, key=lambda spec: -spec.rank)
