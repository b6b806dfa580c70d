# SPDX-License-Identifier: Apache-2.0
"""The process that compiles, checks and times candidates: ``python -m tvmq.kernels.worker TARGET THREADS``.

It reads one JSON request a line and answers each with one line. Whatever a candidate does to it, the tuner
(``runner``) starts another one. A candidate is checked against the NumPy reference, must give the bits that
the rule's schedule gives, and is timed in turn with it.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from schedules.problem import WrongResult, make_problem
from schedules.schedule import AnySchedule, schedule_type
from schedules.workload import Workload
from targets import get_target, host_cpu
from targets.spec import TargetSpec
from tvmq import vm

from .cold import tuning_copies
from .product import Product, compile_kernels, compile_timer
from .runner import Outcome
from .serving import serve

SLICE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One candidate; ``schedule`` is plain data of the workload's schedule type."""

    workload: Workload
    schedule: dict[str, Any]
    rounds: int


def schedule_of(workload: Workload, plain: dict[str, Any]) -> AnySchedule:
    """A schedule from plain data; ValueError where it is none."""
    try:
        return msgspec.convert(plain, schedule_type(workload.op))
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def failed(error: Exception) -> Outcome:
    """The outcome of a candidate that could not be made: of TVM or LLVM, whose errors have no common type."""
    if isinstance(error, WrongResult):
        return Outcome(status="wrong", why=str(error))
    return Outcome(status="error", why=f"{type(error).__name__}: {error}"[:300])


class Bench:
    """Products of one target; the rule's one of the last workload is kept for comparison."""

    def __init__(self, target: TargetSpec, threads: int, folder: Path) -> None:
        vm.set_threads(threads)
        self._target, self._folder, self._timer = target, folder, compile_timer(folder)
        self._count = 0
        self._workload: Workload | None = None
        self._rule: Product | None = None
        self._expected: dict[str, bytes] = {}

    def answer(self, request: Request) -> Outcome:
        """Compiles, checks and times a candidate."""
        try:
            if request.workload != self._workload:
                self._workload, self._rule = None, None
                self._rule, self._expected = self._product(request.workload, None)
                self._workload = request.workload
            schedule = schedule_of(request.workload, request.schedule)
            candidate, outputs = self._product(request.workload, schedule)
        except Exception as error:
            return failed(error)
        if outputs != self._expected:
            return Outcome(status="wrong", why="other bits than the rule's schedule gives")
        assert self._rule is not None
        rule_us, us = self._times(self._rule, candidate, request.rounds, warm=request.workload.m > 1)
        return Outcome(status="ok", us=us, rule_us=rule_us, cpu=host_cpu())

    def _product(self, workload: Workload, schedule: AnySchedule | None) -> tuple[Product, dict[str, bytes]]:
        problem = make_problem(workload, self._target.kernel_isa, schedule)
        self._count += 1
        library = self._folder / f"{self._count}.so"
        compile_kernels(problem.kernels, self._target, library)
        copies, spacing = tuning_copies(workload, problem.weight_bytes)
        rule = self._rule if schedule is not None else None
        timed = Product(problem, library, self._timer, problem.stages[-1:], copies, spacing, rule)
        whole = Product(problem, library, self._timer, beside=timed)  # its tables are there from now on
        outputs = whole.run()
        problem.check(outputs)
        return timed, {name: array.tobytes() for name, array in outputs.items()}

    @staticmethod
    def _times(rule: Product, candidate: Product, rounds: int, *, warm: bool) -> tuple[float, float]:
        """Microseconds of both in turn: lower quartiles, which other work on the machine moves least."""
        number = max(1, int(SLICE / max(1e-8, rule.seconds(2))))
        untimed = number // 4 + 1 if warm else 0
        found: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for product, seconds in zip((rule, candidate), found, strict=True):
                seconds.append(product.seconds(number, untimed))
        before, after = (1e6 * sorted(seconds)[len(seconds) // 4] for seconds in found)
        return before, after


def main() -> int:
    """Answer requests until there are no more."""
    target, threads = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="tvmq-tune-") as name:
        bench = Bench(get_target(target), int(threads), Path(name))
        return serve(Request, bench.answer)


if __name__ == "__main__":
    sys.exit(main())
