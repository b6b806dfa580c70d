# SPDX-License-Identifier: Apache-2.0
"""Memory of a long computation on the CPU: freed arrays stay with the process."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Asks the C library not to give large freed arrays back to the kernel.

    By default every array is mapped anew and cleared page by page by the kernel, a third of the time of a
    training step on a virtual machine and a tenth of quantizing. Where the C library is not glibc nothing is
    done. It holds for the whole process, so commands ask for it, and long runs that have the process to
    themselves.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
