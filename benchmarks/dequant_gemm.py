# SPDX-License-Identifier: Apache-2.0
"""Integer products (dequantize + dot product) by shape, tokens and bits, beside the dot product's peak.

    python -m benchmarks.dequant_gemm --json dequant.json

Everything runs in one process, each kernel round robin with PyTorch's dynamic int8 linear (which also
quantizes the activations and gives floats) and with its level's bare dot product instruction in a loop.
Weights and activations are random and stay the same ("warm": in whatever cache holds them).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

SHAPES = ("768x768", "3072x768", "768x3072", "4096x4096")
TOKENS = (8, 32, 128)
BITS = (1, 2, 3, 4, 8)
LEVELS = ("x86_64_v4_amx", "x86_64_v4_vnni")
ENGINES = ("onednn", "x86")
SLICE_SECONDS = 2e-3
"""Length of one timed piece: short, so that rounds meet the same neighbours."""
PEAK_LOOPS = 20_000


@dataclass(kw_only=True)
class Series:
    """Seconds of one call, one entry a round.

    Attributes:
        name: level or engine.
        n, k, m, bits: the product; bits 8 are stored levels.
        run: runs a number of calls, gives back seconds per call.
    """

    name: str
    n: int
    k: int
    m: int
    bits: int
    run: Callable[[int], float]
    seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The result as JSON: medians and minima in microseconds, GMAC/s at both."""
        macs = self.n * self.k * self.m
        median, best = statistics.median(self.seconds), min(self.seconds)
        return {
            "name": self.name,
            "shape": f"{self.n}x{self.k}",
            "tokens": self.m,
            "bits": self.bits,
            "us": round(float(median) * 1e6, 2),
            "us_min": round(float(best) * 1e6, 2),
            "gmacs": round(float(macs / median) / 1e9, 1),
            "gmacs_max": round(float(macs / best) / 1e9, 1),
        }


def compiled(function: Any, level: str, arguments: Sequence[NDArray]) -> Callable[[int], float]:
    """A kernel of an ISA level on fixed arguments."""
    import tvm

    from targets import get_target

    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    kernel = tvm.compile(module, target=get_target(level).to_tvm()).jit()
    tensors = [tvm.runtime.tensor(a) for a in arguments]

    def run(number: int) -> float:
        return kernel.time_evaluator("kernel", tvm.cpu(), number=number, repeat=1)(*tensors).mean

    return run


def product(level: str, n: int, k: int, m: int, bits: int) -> Series:
    """Our product with bias and rows of different exponents."""
    from schedules.dequant_gemm import DequantSpec, dequant_gemm
    from schedules.level_packing import (
        LIMIT,
        LevelPlanes,
        pack_level_keys,
        pack_levels,
        pack_row_exponents,
        pack_rows,
    )
    from targets import get_target

    rng = np.random.default_rng([n, k, m, bits])
    spec = DequantSpec(n=n, k=k, bits=bits, bias=True, bias_shift=-12)
    x = np.zeros((m, spec.padded_k), np.int8)
    x[:, :k] = rng.integers(-LIMIT, LIMIT + 1, (m, k))
    weights: tuple[NDArray, ...]
    if spec.planes:
        planes = np.packbits(rng.integers(0, 2, (bits, n, k), np.uint8), axis=2, bitorder="little")
        alphas = rng.integers(1, LIMIT // bits, (bits, n, 1)).astype(np.int8)
        weights = pack_level_keys(LevelPlanes(planes=planes, alphas=alphas, shape=(n, k)))
    else:
        weights = (pack_levels(rng.integers(-LIMIT, LIMIT + 1, (n, k)).astype(np.int8)),)
    bias = rng.integers(-(1 << 20), 1 << 20, n).astype(np.int32)
    rows = pack_row_exponents(rng.integers(-3, 4, n).astype(np.int8))
    arguments = [x, rng.integers(-9, -4, (m, 1)).astype(np.int32), *weights, pack_rows(bias), *rows]
    arguments += [np.zeros((m, n), np.int32), np.zeros(m, np.int32)]
    kernel = dequant_gemm(spec, get_target(level).kernel_isa)
    return Series(name=level, n=n, k=k, m=m, bits=bits, run=compiled(kernel, level, arguments))


def peak(level: str) -> Series:
    """The level's dot product instruction on registers: as many as the CPU issues."""
    from schedules.tir import KernelBuilder, body

    amx = level == "x86_64_v4_amx"
    kernel = KernelBuilder("peak")
    with kernel.define():
        y = kernel.param("y", (256,), "int32")
        with body([y], []):
            (_repeat_tdpbssd if amx else _repeat_vpdpbusd)(y)
    run = compiled(kernel.result, level, [np.zeros(256, np.int32)])
    macs = 4 * 16 * 16 * 64 if amx else 16 * 64
    return Series(name=f"peak {level}", n=macs, k=PEAK_LOOPS, m=1, bits=8, run=run)


def _repeat_tdpbssd(_: Any) -> None:
    from schedules.intrin_amx import tile_call, tile_session
    from schedules.tir import T

    with tile_session(T.int64(16), levels=(6, 7)), T.serial(0, PEAK_LOOPS):
        for tile in range(4):
            tile_call("tdpbssd", T.int8(tile), T.int8(4 + tile // 2), T.int8(6 + tile % 2))


def _repeat_vpdpbusd(y: Any) -> None:
    from schedules.tir import T, isplat, load, scratch, splat, store

    sums = [scratch((16,), "int32") for _ in range(16)]
    for buffer in sums:
        store(buffer, (0,), isplat(0), 16)
    sides = splat(T.uint8(1), 64), splat(T.int8(1), 64)
    with T.serial(0, PEAK_LOOPS):
        for buffer in sums:
            old = load(buffer, (0,), 16)
            added = T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", old, *sides)
            store(buffer, (0,), added, 16)
    for i, buffer in enumerate(sums):
        store(y, (16 * i,), load(buffer, (0,), 16), 16)


def torch_linear(engine: str, n: int, k: int, m: int) -> Series:
    """PyTorch's dynamic int8 linear, float activations in and out."""
    import warnings

    import torch

    torch.backends.quantized.engine = engine
    linear = torch.nn.Sequential(torch.nn.Linear(k, n)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor at every call
        layer = torch.ao.quantization.quantize_dynamic(linear, {torch.nn.Linear}, dtype=torch.qint8)
    x = torch.randn(m, k)

    def run(number: int) -> float:
        torch.backends.quantized.engine = engine
        with torch.inference_mode():
            start = time.perf_counter()
            for _ in range(number):
                layer(x)
            return (time.perf_counter() - start) / number

    return Series(name=f"pytorch {engine}", n=n, k=k, m=m, bits=8, run=run)


def measure(series: Sequence[Series], rounds: int) -> None:
    """Round robin over everything; each piece lasts about two milliseconds."""
    numbers = []
    for s in series:
        s.run(1)
        numbers.append(max(1, int(SLICE_SECONDS / min(s.run(2) for _ in range(3)))))
    for _ in range(rounds):
        for s, number in zip(series, numbers, strict=True):
            s.seconds.append(s.run(number))


def installed(name: str) -> str:
    """A package's version, or a dash."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is timed for one shape and number of tokens."""

    n: int
    k: int
    m: int
    bits: Sequence[int]
    levels: Sequence[str]
    peers: bool
    rounds: int

    def run(self) -> list[dict[str, Any]]:
        """A row for every kernel and peer.

        A kernel is timed beside the peers and its level's peak alone: few weights compete for the caches.
        """
        peers = [torch_linear(engine, self.n, self.k, self.m) for engine in ENGINES if self.peers]
        rows = []
        for level in self.levels:
            for width in self.bits:
                kernel = product(level, self.n, self.k, self.m, width)
                top = [peak(level)] if level in LEVELS else []
                measure([kernel, *peers, *top], self.rounds)
                rows.append(kernel.row() | share(kernel, top))
        return rows + [peer.row() | share(peer, []) for peer in peers]


def share(kernel: Series, top: Sequence[Series]) -> dict[str, Any]:
    """The kernel's best round against the peak's, which other work on the machine disturbs least."""
    if not top:
        return {"peak_gmacs": None, "of_peak": None}
    most = top[0].row()["gmacs_max"]
    return {"peak_gmacs": most, "of_peak": round(kernel.row()["gmacs_max"] / most, 3)}


def facts(threads: int, load: Sequence[float]) -> dict[str, Any]:
    """The machine and the versions; ``load`` is the average before the run."""
    from targets import detect_host, host_cpu

    return {
        "cpu": host_cpu(),
        "levels": detect_host(),
        "threads": threads,
        "load": [round(value, 2) for value in load],
        "python": platform.python_version(),
        **{name: installed(name) for name in ("apache-tvm", "torch", "numpy")},
    }


def show(console: Any, plan: Plan, rows: Sequence[dict[str, Any]]) -> None:
    """One table."""
    from rich.table import Table

    table = Table(title=f"{plan.n}x{plan.k}, {plan.m} tokens")
    for column in ("", "bits", "us", "least us", "most GMAC/s", "of the peak"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        of_peak = "" if row["of_peak"] is None else f"{row['of_peak']:.0%} of {row['peak_gmacs']:.0f}"
        cells = (row["bits"], row["us"], row["us_min"], row["gmacs_max"], of_peak)
        table.add_row(row["name"], *(str(cell) for cell in cells))
    console.print(table)


def main(
    shape: Annotated[list[str] | None, typer.Option(help="NxK: rows x columns.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Tokens of a call.")] = None,
    bits: Annotated[list[int] | None, typer.Option(min=1, max=8, help="8 are stored levels.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="ISA levels [default: AMX, VNNI].")] = None,
    peers: Annotated[bool, typer.Option(help="Also PyTorch's int8 linear.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians and minima are shown.")] = 15,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time integer products; print a table for every shape and number of tokens."""
    from rich.console import Console

    from targets import detect_host
    from tvmq import vm

    load = os.getloadavg()
    vm.set_threads(threads)
    if peers:
        import torch

        torch.set_num_threads(threads)
    levels = [name for name in (level or LEVELS) if name in detect_host()]
    console, found = Console(), []
    for text in shape or SHAPES:
        n, k = (int(part) for part in text.split("x"))
        for m in tokens or TOKENS:
            widths = bits or BITS
            plan = Plan(n=n, k=k, m=m, bits=widths, levels=levels, peers=peers, rounds=rounds)
            rows = plan.run()
            show(console, plan, rows)
            found += rows
    machine = facts(threads, load)
    console.print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
