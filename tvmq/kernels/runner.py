# SPDX-License-Identifier: Apache-2.0
"""Runs candidates in a child process with a time-out: a crash, hang or wrong result loses only its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from schedules.schedule import AnySchedule
from schedules.tuning_log import Status
from schedules.workload import Workload

STARTUP = 60.0
"""Seconds that a new process may take until its first answer, on top of the candidate's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a candidate; times in microseconds are 0 unless ``status`` is ok."""

    status: Status
    us: float = 0.0
    rule_us: float = 0.0
    why: str = ""


class Runner(Protocol):
    """Where candidates run."""

    def run(self, workload: Workload, schedule: AnySchedule, rounds: int) -> Outcome:
        """Checks and times one."""
        ...

    def close(self) -> None:
        """Ends all processes."""
        ...


class LocalRunner:
    """One child process on this machine, started anew after it died or was stopped."""

    def __init__(
        self, target: str, threads: int, timeout: float = 30.0, command: Sequence[str] | None = None
    ) -> None:
        """``command`` is how the child is started; it gets target and threads as its last words."""
        words = command or (sys.executable, "-m", "tvmq.kernels.worker")
        self._command = [*words, target, str(threads)]
        self._timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, workload: Workload, schedule: AnySchedule, rounds: int) -> Outcome:
        """Checks and times one candidate."""
        request = {"workload": workload, "schedule": schedule, "rounds": rounds}
        limit = self._timeout
        if self._child is None:
            self._child = self._start()
            limit += STARTUP
        line = self._ask(msgspec.json.encode(request) + b"\n", limit)
        if line is None:
            self.close()
            return Outcome(status="timeout", why=f"no answer within {limit:.0f} s")
        if not line.endswith(b"\n"):
            code = self._child.wait()
            self.close()
            return Outcome(status="crash", why=f"the process ended with status {code}")
        return msgspec.json.decode(line, type=Outcome)

    def _start(self) -> subprocess.Popen[bytes]:
        # Its files lie in a folder of ours: a child that is killed cannot remove them.
        self._folder = tempfile.TemporaryDirectory(prefix="tvmq-tune-", ignore_cleanup_errors=True)
        # A session of its own: Ctrl-C ends the tuner first, which then ends the child.
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": self._folder.name},
            start_new_session=True,
        )

    def _ask(self, request: bytes, limit: float) -> bytes | None:
        """The answer's line; a piece of one where the child died, None where it took too long."""
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(request)
            self._child.stdin.flush()
        end, line, source = time.monotonic() + limit, b"", self._child.stdout.fileno()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([source], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            part = os.read(source, 1 << 16)
            if not part:
                break
            line += part
        return line

    def close(self) -> None:
        """Ends the child and whatever it started, and removes its files."""
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
