# SPDX-License-Identifier: Apache-2.0
"""The result of a side-by-side run of encoders: JSON rows, and a table for people per workload."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .encoder_choice import Choice, fastest_peer
from .encoder_measure import Timing
from .memory_process import Memory
from .report import MB, console, print_machine

PACKAGES = (
    "tvmq",
    "openvino",
    "nncf",
    "onnxruntime",
    "onnx",
    "ctranslate2",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
)


def rows(
    timings: Sequence[Timing],
    choices: Mapping[str, Choice],
    sizes: Mapping[str, int],
    memory: Mapping[str, Memory],
) -> list[dict[str, Any]]:
    """One row per workload and engine; ``speed`` is how many times as fast as the fastest peer it is."""
    found = []
    for label in dict.fromkeys(timing.workload.label for timing in timings):
        group = {timing.engine: timing for timing in timings if timing.workload.label == label}
        medians = {name: statistics.median(timing.milliseconds) for name, timing in group.items()}
        leader = fastest_peer(choices, medians)
        for name, timing in group.items():
            row = _row(timing, group[leader] if leader else None) | {"size_bytes": sizes[name]}
            found.append(row | _memory(memory.get(name)))
    return found


def _row(timing: Timing, leader: Timing | None) -> dict[str, Any]:
    milliseconds = timing.milliseconds
    return {
        "workload": timing.workload.label,
        "engine": timing.engine,
        "texts": timing.workload.texts,
        "tokens": timing.workload.tokens,
        "ms_per_text": round(statistics.median(milliseconds), 3),
        "min": round(min(milliseconds), 3),
        "max": round(max(milliseconds), 3),
        "tokens_per_s": round(timing.tokens_per_s, 1),
        "speed": round(timing.times_as_fast_as(leader), 3) if leader else None,
    }


def _memory(figures: Memory | None) -> dict[str, Any]:
    if figures is None:
        return {}
    return {
        "baseline_rss_mb": round(figures.baseline_mb, 1),
        "peak_above_mb": round(figures.above_baseline_mb, 1),
        "run_peak_above_mb": round(figures.run_above_baseline_mb, 1),
    }


def print_report(result: Mapping[str, Any], choices: Mapping[str, Choice]) -> None:
    """Tables on standard output: one per workload, then size and memory."""
    out = console()
    print_machine(out, result["machine"], f"[bold]{result['model']}[/]: {result['rounds']} rounds")
    for workload in dict.fromkeys(row["workload"] for row in result["results"]):
        entries = [row for row in result["results"] if row["workload"] == workload]
        out.print(_times(entries, choices))
    out.print(_sizes({row["engine"]: row for row in result["results"]}, choices))


def _times(entries: Sequence[dict[str, Any]], choices: Mapping[str, Choice]) -> Any:
    table = _table(entries[0]["workload"], ("ms per text", "min .. max", "tokens/s", "speed"))
    for row in sorted(entries, key=lambda row: row["ms_per_text"]):
        table.add_row(
            row["engine"],
            f"{row['ms_per_text']:.2f}",
            f"{row['min']:.2f} .. {row['max']:.2f}",
            f"{row['tokens_per_s']:.0f}",
            "" if row["speed"] is None else f"{row['speed']:.2f} x",
            style="bold" if choices[row["engine"]].ours else None,
        )
    return table


def _sizes(engines: Mapping[str, dict[str, Any]], choices: Mapping[str, Choice]) -> Any:
    measured = any("peak_above_mb" in row for row in engines.values())
    memory = ("MB imported", "peak MB above", "encoding") if measured else ()
    table = _table("size and memory", ("MB on disk", *memory))
    for name, row in engines.items():
        cells = [f"{row['size_bytes'] / MB:.1f}"]
        if measured:
            keys = ("baseline_rss_mb", "peak_above_mb", "run_peak_above_mb")
            cells += [f"{row[key]:.1f}" if key in row else "" for key in keys]
        table.add_row(name, *cells, style="bold" if choices[name].ours else None)
    return table


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table("engine", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table
