# SPDX-License-Identifier: Apache-2.0
"""The other side of ``child``: answers JSON lines on standard input until there are no more."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from .child import READY

PR_SET_PDEATHSIG = 1
Request = TypeVar("Request")


def serve(kind: type[Request], answer: Callable[[Request], Any]) -> int:
    """Answers every request; the process's exit code."""
    if sys.platform == "linux":  # what hangs must not outlive an asking process that is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    answers.write(READY)
    for line in sys.stdin.buffer:
        answers.write(msgspec.json.encode(answer(msgspec.json.decode(line, type=kind))) + b"\n")
    return 0
