# SPDX-License-Identifier: Apache-2.0
"""What is carried to a machine to be timed there: the measuring program, a problem, libraries of kernels."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from schedules.schedule import AnySchedule
from schedules.tuning_log import Basis, Status
from schedules.workload import Workload
from targets import cpu_name
from targets.spec import TargetSpec
from tvmq.errors import InputError, MissingToolError
from tvmq.native.library import FOLDER, require_linker, run_compiler

from .build_worker import BuildRequest
from .child import Child, ChildLost
from .runner import Outcome, lost

PROGRAM = "tvmq-measure"
LIBRARY = "tvmq-measure.so"
PROBLEM = "problem"
RULE = "rule.so"
MOST_LINE = 1 << 17
BUILD = 120.0
"""Seconds that making a problem or a library may take."""
START = 60.0
"""Seconds that a run of the measuring program may take besides its candidates: files travel."""
_FLAGS = ("-std=gnu11", "-O2", "-fvisibility=hidden", "-Wl,-z,max-page-size=16384")


def build_measure(target: TargetSpec, path: Path) -> None:
    """Compiles ``measure.c`` for a target: a program, or the library that ``LIBRARY`` names.

    Raises:
        MissingToolError: nothing links for the target, or the compiler fails; its first complaint is told.
    """
    linker = require_linker(target)
    folders = (FOLDER / "src", FOLDER / "include")
    kind = ("-shared", "-fPIC") if path.name == LIBRARY else ("-rdynamic",)
    threads = [FOLDER / "src" / name for name in ("threads.c", "cores.c")]
    sources = (Path(__file__).with_name("measure.c"), *threads)
    command = [*linker.command, *_FLAGS, *kind, *(f"-I{folder}" for folder in folders)]
    command += [*map(str, sources), "-o", str(path), "-lpthread", "-ldl"]
    run_compiler(linker, command, "the measuring program")


def failed_build(child: Child, request: BuildRequest) -> Outcome | None:
    """Has a ``build_worker`` make what is asked for; what went wrong, if something did."""
    try:
        outcome = msgspec.json.decode(child.ask(msgspec.json.encode(request)), type=Outcome)
    except ChildLost as error:
        return lost(error)
    return None if outcome.status == "ok" else outcome


class Workshop:
    """A folder with everything for one target, filled by a child process that compiles."""

    def __init__(self, target: TargetSpec, measure: str = PROGRAM) -> None:
        self.target = target
        self._temporary = tempfile.TemporaryDirectory(prefix="tvmq-tune-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.measure = self.folder / measure
        self._child = Child([sys.executable, "-m", "tvmq.kernels.build_worker", target.name], BUILD)
        self.prepared: Workload | None = None
        try:
            build_measure(target, self.measure)
        except MissingToolError:
            self.close()
            raise

    def prepare(self, workload: Workload) -> Outcome | None:
        """The problem and the rule's library of a workload; what went wrong, if something did."""
        if workload == self.prepared:
            return None
        self.prepared = None
        failure = self._build(workload, None, RULE, PROBLEM)
        if failure is None:
            self.prepared = workload
        return failure

    def library(self, schedule: AnySchedule, name: str) -> Outcome | None:
        """A candidate's library of the prepared workload; what went wrong, if something did."""
        assert self.prepared is not None
        return self._build(self.prepared, schedule, name)

    def _build(
        self, workload: Workload, schedule: AnySchedule | None, name: str, problem: str | None = None
    ) -> Outcome | None:
        request = BuildRequest(
            workload=workload,
            schedule=None if schedule is None else msgspec.to_builtins(schedule),
            library=str(self.folder / name),
            problem=None if problem is None else str(self.folder / problem),
        )
        return failed_build(self._child, request)

    def close(self) -> None:
        """Ends the child and removes the folder."""
        self._child.close()
        self._temporary.cleanup()


def measure_words(names: Sequence[str], rounds: int, threads: int, timeout: float) -> list[str]:
    """The measuring program's words: the problem, how to time, the rule's library and the candidates'."""
    return [PROBLEM, str(rounds), str(threads), f"{timeout:g}", RULE, *names]


def time_limit(names: Sequence[str], timeout: float) -> float:
    """Seconds that a run of the measuring program on some libraries may take in all."""
    return START + timeout * (len(names) + 1)


Ask = Callable[[Sequence[str]], tuple[dict[str, Outcome], str]]
"""Runs the measuring program on some libraries: what it said of them, and why it did not say more."""


def measured(names: Sequence[str], ask: Ask) -> Iterator[tuple[str, Outcome]]:
    """Outcomes of libraries: all by one run, then those that were lost one by one.

    The device went away, or the connection broke: only what is lost alone counts as a crash.
    """
    found, why = ask(names)
    yield from ((name, found[name]) for name in names if name in found)
    for name in names:
        if name not in found:
            again, why = ({}, why) if len(names) == 1 else ask([name])
            yield name, again.get(name, Outcome(status="crash", why=why))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What ``measure.c`` printed: outcomes by library, and whether it ran at all."""

    outcomes: dict[str, Outcome]
    started: bool


class _Line(msgspec.Struct):
    """One line of it; which of the fields are there tells its kind."""

    machine: str = ""
    cpuinfo: str | None = None
    failure: str = ""
    library: str = ""
    status: Status = "error"
    us: float = 0.0
    rule_us: float = 0.0
    why: str = ""


def read_answers(text: bytes, target: TargetSpec) -> Answers:
    """Reads what ``measure.c`` printed among what else a command prints.

    Raises:
        InputError: the program says that it cannot work with what it was given.
    """
    outcomes: dict[str, Outcome] = {}
    cpu: str | None = None
    basis: Basis = "measured"
    for line in text.split(b"\n"):
        facts = _line(line)
        if facts is None:
            continue
        if facts.failure:
            raise InputError(f"{PROGRAM} on the device: {facts.failure[:200]}")
        if facts.cpuinfo is not None:
            cpu = cpu_name(facts.cpuinfo)
            basis = "measured" if _is_own(facts, target) else "emulated"
        elif cpu is not None and facts.library:
            outcomes[facts.library] = _outcome(facts, cpu, basis)
    return Answers(outcomes=outcomes, started=cpu is not None)


def _line(line: bytes) -> _Line | None:
    if not line.startswith(b"{") or len(line) > MOST_LINE:
        return None
    try:
        return msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _is_own(facts: _Line, target: TargetSpec) -> bool:
    """Whether the CPU itself is of the target's architecture: emulators show their host's."""
    arm = "CPU implementer" in str(facts.cpuinfo)
    return arm == (target.architecture == "aarch64") or not facts.cpuinfo


def _outcome(facts: _Line, cpu: str, basis: Basis) -> Outcome:
    times: dict[str, Any] = {}
    status = facts.status
    if status == "ok":
        usable = all(0 < us < 1e12 for us in (facts.us, facts.rule_us))
        status = "ok" if usable else "error"
        times = {"us": facts.us, "rule_us": facts.rule_us} if usable else {"why": "times of nothing"}
    return Outcome(status=status, **{"why": facts.why[:300], **times}, cpu=cpu, basis=basis)


def libraries(count: int) -> Sequence[str]:
    """Names of candidates' libraries; used again, so that a device's folder does not fill up."""
    return [f"candidate{index}.so" for index in range(count)]
