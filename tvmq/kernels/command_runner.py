# SPDX-License-Identifier: Apache-2.0
"""Candidates on any machine that a shell command reaches: over adb, ssh, an emulator, or right here.

The command is a template: ``{folder}`` is the local folder, ``{files}`` what in it is new since the last
command, ``{run}`` the measuring program with its words, to be run where the files are. What it prints is
searched for the program's JSON lines. A command that loses candidates (the device went away, the connection
broke) is repeated for each of those alone: only one that is lost alone counts as a crash.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence

from schedules.schedule import AnySchedule
from schedules.workload import Workload
from targets.spec import TargetSpec
from tvmq.errors import InputError, UsageError

from .runner import Outcome
from .workshop import (
    PROBLEM,
    PROGRAM,
    RULE,
    Workshop,
    libraries,
    measure_words,
    measured,
    read_answers,
    time_limit,
)

BATCH = 8
FIELDS = ("folder", "files", "run")
MOST_OUTPUT = 16 << 20


def check_template(template: str) -> None:
    """UsageError where a command cannot run the measuring program."""
    try:
        expand(template, dict.fromkeys(FIELDS, ""))
    except (ValueError, KeyError, IndexError, AttributeError):
        raise UsageError(
            f"--runner command:{template}: only {{folder}}, {{files}} and {{run}} are known (write "
            "other braces twice)"
        ) from None
    if "{run}" not in template:
        raise UsageError(f"--runner command:{template}: lacks {{run}}, the program that measures")


def expand(template: str, fields: dict[str, str]) -> str:
    """The command of a template; ValueError or KeyError where it is none."""
    return template.format_map(fields)


class CommandRunner:
    """Builds here, runs there."""

    batch = BATCH
    memory = True

    def __init__(self, target: TargetSpec, threads: int, timeout: float, template: str) -> None:
        check_template(template)
        self._template, self._threads, self._timeout = template, threads, timeout
        self._shop = Workshop(target)
        self._new = {PROGRAM}
        """Files that the device does not have yet."""

    def run(
        self, workload: Workload, schedules: Sequence[AnySchedule], rounds: int
    ) -> Iterator[tuple[AnySchedule, Outcome]]:
        """Checks and times candidates, several by one command."""
        known = self._shop.prepared
        failure = self._shop.prepare(workload)
        if failure is not None:
            yield from ((schedule, failure) for schedule in schedules)
            return
        if known != workload:
            self._new |= {PROBLEM, RULE}
        built: dict[str, AnySchedule] = {}
        for schedule, name in zip(schedules, libraries(len(schedules)), strict=True):
            failure = self._shop.library(schedule, name)
            if failure is None:
                built[name] = schedule
                self._new.add(name)
            else:
                yield schedule, failure
        if built:
            for name, outcome in measured(list(built), lambda names: self._command(names, rounds)):
                yield built[name], outcome

    def _command(self, names: Sequence[str], rounds: int) -> tuple[dict[str, Outcome], str]:
        """Runs the command for some libraries; InputError where the program did not start at all."""
        words = [f"./{PROGRAM}", *measure_words(names, rounds, self._threads, self._timeout)]
        command = expand(
            self._template,
            {
                "folder": shlex.quote(str(self._shop.folder)),
                "files": shlex.join(str(self._shop.folder / name) for name in sorted(self._new)),
                "run": shlex.join(words),
            },
        )
        output, complaint = _shell(command, time_limit(names, self._timeout))
        answers = read_answers(output, self._shop.target)
        if not answers.started:
            raise InputError(f"the command of --runner did not start {PROGRAM}: {complaint}")
        # A file that an unsuccessful command did not bring is brought again.
        self._new = set() if len(answers.outcomes) == len(names) else {PROGRAM, PROBLEM, RULE, *names}
        return answers.outcomes, "the command gave no answer for it"

    def close(self) -> None:
        """Ends all processes here and removes the folder."""
        self._shop.close()


def _shell(command: str, limit: float) -> tuple[bytes, str]:
    """What a command printed within so many seconds, and its last complaint in a line."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=limit)
        end = f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        _end(process)
        output, errors = process.communicate()
        end = f"no end within {limit:.0f} s"
    except BaseException:
        _end(process)
        raise
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return output[:MOST_OUTPUT], f"{end}, {lines[-1][:200] if lines else 'nothing said'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
