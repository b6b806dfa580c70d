# SPDX-License-Identifier: Apache-2.0
"""The process that compiles for other machines: ``python -m tvmq.kernels.build_worker TARGET``.

A problem's expected bytes come from this machine: the rule's schedule on its best level, checked against the
NumPy reference. All levels give the same bytes.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schedules.problem import Problem, make_problem
from schedules.workload import Workload
from targets import detect_host, get_target
from targets.spec import TargetSpec
from tvmq import vm

from .cold import tuning_copies
from .problem_file import write_problem
from .product import Product, compile_kernels, compile_object, compile_timer
from .runner import Outcome
from .serving import serve
from .worker import failed, schedule_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """A library to make: of a schedule, or of the rule where it is None.

    Attributes:
        workload: the product.
        schedule: plain data of the workload's schedule type.
        library: where the library goes.
        problem: where the problem file goes, if one is wanted.
        alone: make an object file of the timed stage only, and a problem of it with its inputs filled in.
    """

    workload: Workload
    schedule: dict[str, Any] | None
    library: str
    problem: str | None = None
    alone: bool = False


class Builder:
    """Compiles for one target."""

    def __init__(self, target: TargetSpec, folder: Path) -> None:
        self._target, self._folder, self._count = target, folder, 0

    def answer(self, request: BuildRequest) -> Outcome:
        """Makes what was asked for; status ``ok`` without times."""
        try:
            self._make(request)
        except Exception as error:
            return failed(error)
        return Outcome(status="ok")

    def _make(self, request: BuildRequest) -> None:
        plain, workload = request.schedule, request.workload
        schedule = None if plain is None else schedule_of(workload, plain)
        problem = make_problem(workload, self._target.kernel_isa, schedule)
        if request.alone:
            last = problem.stages[-1]
            compile_object({last: problem.kernels[last]}, self._target, Path(request.library))
        else:
            compile_kernels(problem.kernels, self._target, Path(request.library))
        if request.problem is not None:
            self._write(request, problem, Path(request.problem))

    def _write(self, request: BuildRequest, problem: Problem, path: Path) -> None:
        workload = request.workload
        here = get_target(detect_host()[0])
        vm.set_threads(1)
        own = make_problem(workload, here.kernel_isa)
        self._count += 1
        library = self._folder / f"{self._count}.so"
        compile_kernels(own.kernels, here, library)
        product = Product(own, library, compile_timer(self._folder))
        outputs = product.run()
        own.check(outputs)
        copies, spacing = (1, 0) if request.alone else tuning_copies(workload, problem.weight_bytes)
        if request.alone:
            problem = replace(problem, stages=problem.stages[-1:], arrays=product.arrays)
        write_problem(path, problem, outputs, copies, spacing, warm=workload.m > 1)


def main() -> int:
    """Answer requests until there are no more."""
    (target,) = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="tvmq-build-") as name:
        return serve(BuildRequest, Builder(get_target(target), Path(name)).answer)


if __name__ == "__main__":
    sys.exit(main())
