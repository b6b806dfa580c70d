# SPDX-License-Identifier: Apache-2.0
"""What the operating system says about this process and machine (Linux /proc), and freed memory back to it.

Used by bench and doctor, and when an artifact is loaded.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")


def _kib_field(path: Path, name: str) -> int | None:
    """A ``Name:  123 kB`` field in bytes; None where the file or field does not exist."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


def resident_bytes() -> int | None:
    """Resident memory of this process now."""
    return _kib_field(STATUS, "VmRSS")


def reset_peak() -> None:
    """Make ``peak_bytes`` count from now; without effect where the kernel does not allow it."""
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return


def peak_bytes() -> int | None:
    """Largest resident memory of this process since it began or since ``reset_peak``."""
    return _kib_field(STATUS, "VmHWM")


def return_freed_memory() -> None:
    """Give the system back what this process freed; without effect where the C library is not glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(ctypes.c_size_t(0))


def memory_bytes() -> tuple[int | None, int | None]:
    """(total, available) memory of the machine."""
    return _kib_field(MEMINFO, "MemTotal"), _kib_field(MEMINFO, "MemAvailable")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
