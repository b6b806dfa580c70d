# SPDX-License-Identifier: Apache-2.0
"""Candidates judged by a model of a core instead of a clock: for levels that no machine at hand runs.

An emulator runs the kernel once and notes how often every piece of its code runs; llvm-mca says how many
cycles each takes. Caches and memory are not part of it: only schedules that differ in computing are compared.
Times of the records are thousands of cycles.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from schedules.schedule import AnySchedule, rule
from schedules.workload import Workload
from targets.spec import TargetSpec
from targets.toolchain import find_emulator
from tvmq.build import require_linker
from tvmq.errors import MissingToolError, UsageError

from .blocks import Code, Trace, merged
from .build_worker import BuildRequest
from .child import Child
from .llvm import find_llvm, mca_cycles
from .runner import Outcome
from .workshop import BUILD, failed_build

CPUS = {"arm64_v8": "cortex-a53", "arm64_dotprod": "neoverse-n1", "arm64_i8mm": "neoverse-v1"}
"""LLVM's models that are taken if none is named: N1 is the server twin of Cortex-A76, V1 that of X1."""
MOST_ROWS = 128
"""Rows that are run: all blocks of rows take the same time, and logs have a line for every piece of code."""
REPEATS = 40
"""Of a piece, one after the other: so loops run, and what runs once between them is taken to hide there."""
WRONG = 3
"""Exit code of ``modelled.c`` for other bytes than the expected."""
_SECTION = "tvmq_kernels"
_KERNELS = {"lut": "lut_gemm", "exact": "lut_gemm", "dequant": "dequant_gemm", "float": "float_gemm"}


class ModelRunner:
    """Builds for an Arm level, runs under qemu, asks llvm-mca."""

    batch = 1
    memory = False

    def __init__(self, target: TargetSpec, threads: int, timeout: float, cpu: str) -> None:
        if threads != 1 or target.name not in CPUS:
            raise UsageError(f"--runner model judges one thread of {', '.join(CPUS)}, not {target.name}")
        emulator, mca, objdump = find_emulator(target), find_llvm("llvm-mca"), find_llvm("llvm-objdump")
        if emulator is None or mca is None or objdump is None:
            raise MissingToolError(
                "--runner model needs qemu-aarch64, its C library and llvm-mca (Debian: qemu-user, "
                "libc6-dev-arm64-cross, llvm-19 or newer)"
            )
        self._emulator, self._mca, self._objdump = emulator, mca, objdump
        self._target, self._timeout = target, timeout
        self._linker = require_linker(target)
        self.cpu = cpu or CPUS[target.name]
        self._temporary = tempfile.TemporaryDirectory(prefix="tvmq-tune-", ignore_cleanup_errors=True)
        self._folder = Path(self._temporary.name)
        mca_cycles([["nop"]], mca, self.cpu, repeats=1)  # refuses a core that it does not know
        self._child = Child([sys.executable, "-m", "tvmq.kernels.build_worker", target.name], BUILD)
        self._known: dict[tuple[Workload, AnySchedule], float] = {}
        self._prepared: Workload | None = None

    def run(
        self, workload: Workload, schedules: Sequence[AnySchedule], rounds: int
    ) -> Iterator[tuple[AnySchedule, Outcome]]:
        """Judges one candidate after the other; ``rounds`` make no difference."""
        for schedule in schedules:
            yield schedule, self._outcome(workload, schedule)

    def _outcome(self, workload: Workload, schedule: AnySchedule) -> Outcome:
        name = f"{self.cpu} ({Path(self._mca).name})"
        try:
            rule_us, us = (self._kilocycles(workload, own) for own in (rule(workload), schedule))
        except _Failed as failure:
            return replace(failure.outcome, cpu=name, basis="modelled")
        return Outcome(status="ok", us=us, rule_us=rule_us, cpu=name, basis="modelled")

    def _kilocycles(self, workload: Workload, schedule: AnySchedule) -> float:
        """Thousands of cycles of a call."""
        if (workload, schedule) not in self._known:
            part = replace(workload, n=min(workload.n, MOST_ROWS))
            cycles = self._cycles(part, schedule)
            self._known[workload, schedule] = cycles * workload.n / part.n / 1e3
        return self._known[workload, schedule]

    def _cycles(self, workload: Workload, schedule: AnySchedule) -> float:
        self._build(workload, schedule)
        program = self._link(_KERNELS[workload.op])
        log = self._folder / "trace"
        noting = ("-d", "in_asm,exec,nochain", "-D", str(log))
        command = [*self._emulator, *noting, str(program), str(self._problem)]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=self._timeout)
        except subprocess.TimeoutExpired:
            why = f"no end within {self._timeout:.0f} s"
            raise _Failed(Outcome(status="timeout", why=why)) from None
        if done.returncode:
            status = "wrong" if done.returncode == WRONG else "crash"
            raise _Failed(Outcome(status=status, why=f"the emulated kernel ended with {done.returncode}"))
        code = self._disassembled(program)
        pieces = merged(Trace.parse(log.read_bytes(), code), code)
        texts = [[code.lines[address] for address in addresses] for addresses, _ in pieces]
        cycles = mca_cycles(texts, self._mca, self.cpu, repeats=REPEATS)
        return sum(count * one.modelled for (_, count), one in zip(pieces, cycles, strict=True))

    @property
    def _problem(self) -> Path:
        return self._folder / "problem"

    def _build(self, workload: Workload, schedule: AnySchedule) -> None:
        fresh = workload != self._prepared
        self._prepared = None
        request = BuildRequest(
            workload=workload,
            schedule=msgspec.to_builtins(schedule),
            library=str(self._folder / "kernel.o"),
            problem=str(self._problem) if fresh else None,
            alone=True,
        )
        failure = failed_build(self._child, request)
        if failure is not None:
            raise _Failed(failure)
        self._prepared = workload

    def _link(self, kernel: str) -> Path:
        """A static program, whose code lies where its file says; the kernel's in a section of its own."""
        program, source = self._folder / "program", Path(__file__).with_name("modelled.c")
        objcopy = self._objdump.replace("objdump", "objcopy")
        commands = [
            [objcopy, "--rename-section", f".text={_SECTION}", str(self._folder / "kernel.o")],
            [
                *self._linker.command, "-O1", "-static", "-no-pie", f"-DKERNEL=__tvm_ffi_{kernel}",
                str(source), str(self._folder / "kernel.o"), "-o", str(program), "-lm",
            ],
        ]  # fmt: skip
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                first = next(iter(done.stderr.strip().splitlines()), "no message")
                raise MissingToolError(f"{Path(command[0]).name} cannot make a program to emulate: {first}")
        return program

    def _disassembled(self, program: Path) -> Code:
        command = [self._objdump, "-d", "--no-show-raw-insn", f"--section={_SECTION}", "--mattr=+all"]
        done = subprocess.run([*command, str(program)], capture_output=True, text=True, check=True)
        return Code.parse(done.stdout)

    def close(self) -> None:
        """Ends the child and removes the folder."""
        self._child.close()
        self._temporary.cleanup()


class _Failed(Exception):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.why)
        self.outcome = outcome
