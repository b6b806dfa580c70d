# SPDX-License-Identifier: Apache-2.0
"""A process of ours that answers lines with lines: whatever happens to it, the asking process goes on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

STARTUP = 120.0
"""Seconds that a process may take until it is ready: it imports TVM, beside whatever else runs."""
READY = b"ready\n"
"""What it says first."""


class ChildLost(Exception):
    """The process gave no answer; the text says why."""


class ChildTimeout(ChildLost):
    """It took too long and was ended."""


class Child:
    """Started when it is first asked, and again after it died or was ended.

    Its standard input is closed when the asking process dies, and its session is its own: Ctrl-C ends the
    asking process first, which then ends the child and whatever that started.
    """

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        """``timeout`` is the seconds that an answer may take once the process is ready."""
        self.timeout = timeout
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def ask(self, request: bytes) -> bytes:
        """The answer to one line; ChildLost where none comes."""
        if self._process is None:
            self._start()
            if self._line(STARTUP) != READY:
                self.close()
                raise ChildLost("the process did not become ready")
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request + b"\n")
            self._process.stdin.flush()
        return self._line(self.timeout)

    def _start(self) -> None:
        # Its files lie in a folder of ours: a child that is killed cannot remove them.
        self._folder = tempfile.TemporaryDirectory(prefix="tvmq-tune-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": self._folder.name},
            start_new_session=True,
        )

    def _line(self, limit: float) -> bytes:
        """The next line; the process is closed where none comes in time or it died."""
        assert self._process is not None
        assert self._process.stdout is not None
        end, line, source = time.monotonic() + limit, b"", self._process.stdout.fileno()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([source], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.close()
                raise ChildTimeout(f"no answer within {limit:.0f} s")
            part = os.read(source, 1 << 16)
            if not part:
                code = self._process.wait()
                self.close()
                raise ChildLost(f"the process ended with status {code}")
            line += part
        return line

    def close(self) -> None:
        """Ends the process and whatever it started, and removes its files."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
