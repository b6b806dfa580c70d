# SPDX-License-Identifier: Apache-2.0
"""What the operating system must be asked for before a process may use some registers.

Linux keeps the eight tile registers of AMX from a process until it asks (``arch_prctl``), since they add
8 KB to every saved context. The permission covers all threads of the process and cannot be given back.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

ARCH_PRCTL = 158
"""Number of the system call on x86-64."""
ARCH_REQ_XCOMP_PERM = 0x1023
XFEATURE_XTILEDATA = 18


@cache
def request_tile_data() -> bool:
    """Asks once a process for the AMX tile registers; whether they may be used."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (AttributeError, OSError):
        return False
    call.restype = ctypes.c_long
    arguments = (ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return call(*(ctypes.c_long(value) for value in arguments)) == 0
