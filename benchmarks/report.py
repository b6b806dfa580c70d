# SPDX-License-Identifier: Apache-2.0
"""The result of a side-by-side run: facts about machine and versions, JSON, and a table for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from targets import host_cpu
from tvmq.machine import usable_cores

from .measure import READ_METHOD, Series
from .memory_process import Memory

PACKAGES = ("tvmq", "ctranslate2", "onnxruntime", "onnx", "torch", "transformers", "numpy")
MB = 1e6
FILE_WIDTH = 140
"""Columns where the output is not a terminal."""


def facts(
    *,
    threads: int,
    read_gbps: float,
    load: tuple[float, float, float],
    packages: Sequence[str] = PACKAGES,
) -> dict[str, Any]:
    """Machine, settings and versions; ``load`` is the system's load average before the run."""
    return {
        "cpu": host_cpu(),
        "cores": usable_cores(),
        "threads": threads,
        "read_gbps": round(read_gbps, 1),
        "read_method": READ_METHOD,
        "load_before": [round(value, 2) for value in load],
        "load_after": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def rows(
    series: Sequence[Series], sizes: Mapping[str, int], memory: Mapping[str, Memory], reference: str | None
) -> list[dict[str, Any]]:
    """One JSON row per engine and beam size; ``speedup`` is how many times faster ``reference`` is."""
    leaders = {entry.beams: entry for entry in series if entry.engine == reference}
    result = []
    for entry in series:
        leader = leaders.get(entry.beams)
        row: dict[str, Any] = {
            "engine": entry.engine,
            "beam": entry.beams,
            "tokens_per_s": round(entry.median, 1),
            "min": round(min(entry.speeds), 1),
            "max": round(max(entry.speeds), 1),
            "tokens": entry.tokens[0],
            "speedup": round(entry.ratio(leader), 2) if leader else None,
            "size_bytes": sizes[entry.engine],
        }
        if entry.engine in memory:
            figures = memory[entry.engine]
            row |= {
                "baseline_rss_mb": round(figures.baseline_mb, 1),
                "peak_above_mb": round(figures.above_baseline_mb, 1),
                "run_peak_above_mb": round(figures.run_above_baseline_mb, 1),
            }
        result.append(row)
    return result


def print_report(result: Mapping[str, Any], reference: str | None) -> None:
    """Tables on standard output: one per beam size, with the conditions above."""
    out = console()
    heading = f"[bold]{result['model']}[/]: {result['workload']}, batch 1, {result['rounds']} rounds"
    print_machine(out, result["machine"], heading)
    for beam in sorted({row["beam"] for row in result["results"]}):
        out.print(_table([row for row in result["results"] if row["beam"] == beam], beam, reference))


def console() -> Any:
    """Standard output; ``FILE_WIDTH`` wide where it is not a terminal."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=FILE_WIDTH)


def print_machine(out: Any, machine: Mapping[str, Any], heading: str) -> None:
    """The heading, then CPU, threads, memory speed, load and versions."""
    packages = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if found)
    out.print(f"\n{heading}")
    out.print(
        f"{machine['cpu']}, {machine['threads']} thread(s) of {machine['cores']}, "
        f"memory read {machine['read_gbps']} GB/s ({machine['read_method']}), "
        f"load {machine['load_before'][0]} before, {machine['load_after'][0]} after"
    )
    out.print(packages, style="dim")


def _table(entries: list[dict[str, Any]], beam: int, reference: str | None) -> Any:
    from rich.table import Table

    table = Table(title="greedy" if beam == 1 else f"beam {beam}", title_justify="left")
    table.add_column("engine")
    versus = [f"{reference} is faster by"] if reference else []
    for column in ("tokens/s", "min .. max", *versus, "MB on disk"):
        table.add_column(column, justify="right")
    with_memory = any("peak_above_mb" in row for row in entries)
    if with_memory:
        table.add_column("peak MB above import", justify="right")
        table.add_column("translating", justify="right")
    for row in sorted(entries, key=lambda row: -row["tokens_per_s"]):
        cells = [
            row["engine"],
            f"{row['tokens_per_s']:.0f}",
            f"{row['min']:.0f} .. {row['max']:.0f}",
            *([f"{row['speedup']:.2f} x"] if reference else []),
            f"{row['size_bytes'] / MB:.1f}",
        ]
        if with_memory:
            for key in ("peak_above_mb", "run_peak_above_mb"):
                cells.append(f"{row[key]:.1f}" if key in row else "")
        table.add_row(*cells, style="bold" if row["engine"] == reference else None)
    return table
