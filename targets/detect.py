# SPDX-License-Identifier: Apache-2.0
"""Which ISA levels the running CPU can execute, read from the operating system."""

from __future__ import annotations

import platform
from pathlib import Path

from .spec import TargetSpec

CPUINFO = Path("/proc/cpuinfo")


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
    """The CPU's marketing name, or ``unknown``."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


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
