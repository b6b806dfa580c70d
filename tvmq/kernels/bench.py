# SPDX-License-Identifier: Apache-2.0
"""``tvmq bench kernels``: one product by every kernel family, beside the machine's limits in the same run.

Warm: the same weights again and again, in whatever cache holds them. Cold: weights come from memory, copies
of them are used in turn that together are far larger than the last-level cache. All kernels and limits take
turns in short pieces; medians count.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmq.errors import UsageError
from tvmq.loading import MAX_THREADS
from tvmq.options import KernelBenchOptions, Progress, no_progress

from .cold import MEMORY, MOST_COPIES, copies_of

if TYPE_CHECKING:
    from targets.spec import TargetSpec

    from .product import Product

SLICE = 2e-3
"""Seconds of a timed piece: short, so that rounds meet the same neighbours."""
KERNELS = ("lut", "lut+table", "exact", "exact+table", "dequant", "float")
"""Kernel families; ``+table`` counts the building of the lookup tables too, which linears share."""
TABLE = "+table"
LINE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResult:
    """Times of one kernel; GB are 10^9 bytes of stored weights (planes, scales, padding).

    Attributes:
        kernel: one of ``KERNELS``.
        us_warm: microseconds of a call with the weights in the caches (those that fit).
        us_cold: the same with weights from memory.
        gbps_warm: GB/s at which weights are used, warm.
        gbps_cold: the same, cold.
        read_gbps: GB/s of reading memory in order, in the same rounds and with as many threads.
        fraction_of_read: gbps_cold / read_gbps.
        gmacs_warm: 10^9 multiply-adds per second that the product stands for, warm.
        fraction_of_peak: gmacs_warm / peak_gmacs of the report.
    """

    kernel: str
    us_warm: float
    us_cold: float
    gbps_warm: float
    gbps_cold: float
    read_gbps: float
    fraction_of_read: float
    gmacs_warm: float
    fraction_of_peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """All kernels of one product.

    Attributes:
        n, k, m, bits: rows, columns, tokens, bits of the product.
        threads: threads of every kernel and limit.
        target: ISA level.
        cpu: name of the CPU.
        read_gbps: GB/s of reading memory in order.
        peak_gmacs: 10^9 int8 multiply-adds per second of this level on registers, all threads.
        results: one per kernel.
    """

    n: int
    k: int
    m: int
    bits: int
    threads: int
    target: str
    cpu: str
    read_gbps: float
    peak_gmacs: float
    results: tuple[KernelResult, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def bench_kernels(options: KernelBenchOptions, progress: Progress = no_progress) -> KernelReport:
    """Check and time one product on every kernel family that computes it.

    Raises:
        UsageError: a size, a kernel or a target that does not exist or does not run here.
        MissingToolError: no C compiler.
        schedules.problem.WrongResult: a kernel is wrong (nothing is timed then).
    """
    from tvmq import vm

    from .product import compile_timer

    target, names = runnable_target(options.target), _names(options)
    vm.set_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="tvmq-kernels-") as name:
        folder = Path(name)
        timer = compile_timer(folder)
        timed: list[_Timed] = []
        families = list(dict.fromkeys(names.values()))
        for done, op in enumerate(families):
            progress("compile and check", done, len(families))
            wanted = [name for name in names if names[name] == op]
            timed += _timed(options, target, op, wanted, folder, timer)
        limits = measure_limits(target, options.threads, folder, timer)
        pieces = [limits.read, limits.peak, *(p for kernel in timed for p in (kernel.warm, kernel.cold))]
        for piece in pieces:
            piece.prepare()
        for done in range(options.rounds):
            progress("measure", done, options.rounds)
            for piece in pieces:
                piece.turn()
        progress("measure", options.rounds, options.rounds)
        return _report(options, target.name, timed, limits)


def runnable_target(name: str) -> TargetSpec:
    """An ISA level that this CPU runs; UsageError for any other."""
    from targets import detect_host, get_target, target_names

    here = detect_host()
    wanted = here[0] if name == "host" and here else name
    if wanted not in ("host", *target_names()):
        raise UsageError(f"unknown target {wanted!r}; known: host, {', '.join(target_names())}")
    if wanted not in here:
        raise UsageError(f"this CPU does not run {wanted}; choose one of {', '.join(here) or 'none'}")
    return get_target(wanted)


def _names(options: KernelBenchOptions) -> dict[str, str]:
    """Kernels to time and their families."""
    if options.kernel is not None and options.kernel not in KERNELS:
        raise UsageError(f"unknown kernel {options.kernel!r}; known: {', '.join(KERNELS)}")
    for what, value, most in (("threads", options.threads, MAX_THREADS), ("rounds", options.rounds, 1024)):
        if not 1 <= value <= most:
            raise UsageError(f"{what} is {value}, expected 1 to {most}")
    found, refusals = {}, []
    for name in [options.kernel] if options.kernel else KERNELS:
        op = name.removesuffix(TABLE)
        try:
            _workload(options, op)
        except ValueError as error:
            refusals.append(str(error))
        else:
            found[name] = op
    if not found:
        raise UsageError(refusals[0])
    return found


def _workload(options: KernelBenchOptions, op: Any) -> Any:
    from schedules.problem import check_memory
    from schedules.workload import Workload

    n, k, m = options.n, options.k, options.m
    workload = Workload.of(op, n, k, m, options.bits, options.group, options.scale_dtype)
    check_memory(workload)
    return workload


@dataclass(slots=True)
class Piece:
    """Something that is timed in turn: seconds per call, one entry a round."""

    run: Callable[[int], float]
    seconds: list[float] = field(default_factory=list)
    number: int = 1

    def prepare(self) -> None:
        """Chooses how many calls a timed piece has."""
        self.run(1)
        self.number = max(1, int(SLICE / max(1e-8, min(self.run(2) for _ in range(3)))))

    def turn(self) -> None:
        """One timed piece."""
        self.seconds.append(self.run(self.number))

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class _Timed:
    """One kernel, warm and cold."""

    name: str
    weight_bytes: int
    warm: Piece
    cold: Piece


@dataclass(frozen=True, slots=True)
class _Limits:
    """What the machine can do: a read of ``MEMORY`` bytes, and so many products on registers."""

    read: Piece
    peak: Piece
    macs: int

    @property
    def read_gbps(self) -> float:
        return MEMORY / self.read.median / 1e9

    @property
    def peak_gmacs(self) -> float:
        return self.macs / self.peak.median / 1e9


def _timed(
    options: KernelBenchOptions, target: TargetSpec, op: str, names: Sequence[str], folder: Path, timer: Path
) -> list[_Timed]:
    """One family's kernels, checked."""
    from schedules.problem import make_problem

    from .product import Product, compile_kernels

    problem = make_problem(_workload(options, op), target.kernel_isa, seed=options.seed)
    library = folder / f"{op}.so"
    compile_kernels(problem.kernels, target, library)
    whole = Product(problem, library, timer)
    problem.check(whole.run())
    filled = replace(problem, arrays=whole.arrays)
    copies, apart = copies_of(problem.weight_bytes, MEMORY, MOST_COPIES)
    found = []
    for name in names:
        stages = problem.stages if name.endswith(TABLE) else problem.stages[-1:]
        warm = Product(filled, library, timer, stages)
        cold = Product(filled, library, timer, stages, copies, apart)
        found.append(_Timed(name, problem.weight_bytes, Piece(_warmed(warm)), Piece(cold.seconds)))
    return found


def _warmed(product: Product) -> Callable[[int], float]:
    """Timed calls after some untimed ones, which bring the weights back into the caches."""
    return lambda number: product.seconds(number, number // 4 + 1)


def measure_limits(target: TargetSpec, threads: int, folder: Path, timer: Path) -> _Limits:
    """The limits as pieces to be timed."""
    from schedules.limits import READ_PARTS, peak_kernel, read_kernel
    from schedules.problem import Problem

    from .product import Product, compile_kernels

    peak, macs = peak_kernel(target.kernel_isa, threads)
    shape = (READ_PARTS, MEMORY // READ_PARTS // LINE, LINE)
    problem = Problem(
        kernels={"read": read_kernel(MEMORY), "peak": peak},
        calls={"read": ("data", "sums"), "peak": ("y",)},
        stages=("read",),
        arrays={
            "data": np.ones(shape, np.uint8),
            "sums": np.zeros((READ_PARTS, 16), np.int32),
            "y": np.zeros((threads, 256), np.int32),
        },
        weights=(),
        outputs=("sums",),
        check=lambda outputs: None,
    )
    library = folder / "limits.so"
    compile_kernels(problem.kernels, target, library)
    read, peak_run = (Product(problem, library, timer, (stage,)) for stage in ("read", "peak"))
    return _Limits(Piece(read.seconds), Piece(peak_run.seconds), macs)


def _report(
    options: KernelBenchOptions, target: str, timed: Sequence[_Timed], limits: _Limits
) -> KernelReport:
    from targets import host_cpu

    macs = options.n * options.k * options.m
    results = []
    for kernel in timed:
        warm, cold = kernel.warm.median, kernel.cold.median
        gmacs = macs / warm / 1e9
        results.append(
            KernelResult(
                kernel=kernel.name,
                us_warm=round(warm * 1e6, 3),
                us_cold=round(cold * 1e6, 3),
                gbps_warm=round(kernel.weight_bytes / warm / 1e9, 3),
                gbps_cold=round(kernel.weight_bytes / cold / 1e9, 3),
                read_gbps=round(limits.read_gbps, 3),
                fraction_of_read=round(kernel.weight_bytes / cold / 1e9 / limits.read_gbps, 4),
                gmacs_warm=round(gmacs, 2),
                fraction_of_peak=round(gmacs / limits.peak_gmacs, 4),
            )
        )
    return KernelReport(
        n=options.n,
        k=options.k,
        m=options.m,
        bits=options.bits,
        threads=options.threads,
        target=target,
        cpu=host_cpu(),
        read_gbps=round(limits.read_gbps, 3),
        peak_gmacs=round(limits.peak_gmacs, 2),
        results=tuple(results),
    )
