# SPDX-License-Identifier: Apache-2.0
"""Where candidates run, and on this machine: in a child process with a time-out.

A crash, a hang or a wrong result loses only its own candidate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from schedules.schedule import AnySchedule
from schedules.tuning_log import Basis, Status
from schedules.workload import Workload

from .child import Child, ChildLost, ChildTimeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        status: ``ok``, or how it failed.
        us: microseconds of a call; 0 unless ok.
        rule_us: the same of the rule's schedule.
        why: the reason of a failure.
        cpu: name of the CPU.
        basis: what the times are.
    """

    status: Status
    us: float = 0.0
    rule_us: float = 0.0
    why: str = ""
    cpu: str = "unknown"
    basis: Basis = "measured"


class Runner(Protocol):
    """Where candidates run.

    Attributes:
        batch: candidates that it takes at once without losing time.
        memory: whether times tell what reading memory costs, and so whether prefetching is worth a trial.
    """

    batch: int
    memory: bool

    def run(
        self, workload: Workload, schedules: Sequence[AnySchedule], rounds: int
    ) -> Iterator[tuple[AnySchedule, Outcome]]:
        """Checks and times candidates, each in so many rounds; in the order in which they get done."""
        ...

    def close(self) -> None:
        """Ends all processes."""
        ...


def lost(error: ChildLost) -> Outcome:
    """The outcome of a candidate whose process gave no answer."""
    return Outcome(status="timeout" if isinstance(error, ChildTimeout) else "crash", why=str(error))


class LocalRunner:
    """One child process on this machine compiles, checks and times."""

    batch = 1
    memory = True

    def __init__(
        self, target: str, threads: int, timeout: float = 30.0, command: Sequence[str] | None = None
    ) -> None:
        """``command`` is how the child is started; it gets target and threads as its last words."""
        words = command or (sys.executable, "-m", "tvmq.kernels.worker")
        self.child = Child([*words, target, str(threads)], timeout)

    def run(
        self, workload: Workload, schedules: Sequence[AnySchedule], rounds: int
    ) -> Iterator[tuple[AnySchedule, Outcome]]:
        """Checks and times one candidate after the other."""
        for schedule in schedules:
            request = {"workload": workload, "schedule": schedule, "rounds": rounds}
            try:
                answer = self.child.ask(msgspec.json.encode(request))
            except ChildLost as error:
                yield schedule, lost(error)
            else:
                yield schedule, msgspec.json.decode(answer, type=Outcome)

    def close(self) -> None:
        """Ends the child."""
        self.child.close()
