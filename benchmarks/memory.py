# SPDX-License-Identifier: Apache-2.0
"""How much smaller artifacts are than FP32, on disk and in memory while they translate.

    python -m benchmarks.memory --model build/nmt-base --fp32 fp32.tvmq --artifact small.tvmq

Disk: the whole artifact against the checkpoint's tensors as FP32. Memory: the peak while translating,
above the bare interpreter, against the same for the FP32 artifact; every artifact in a process of its own.
The bare interpreter is Python with the runtime's modules and native libraries loaded (numpy,
sentencepiece, tvm_ffi, libtvm_runtime), before an artifact is opened.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmq.checkpoint import Checkpoint

from .engines import Setup, disk_bytes
from .memory_process import Memory, measure_memory
from .workload import random_workload

MB = 1e6


def main(
    model: Annotated[Path, typer.Option(help="Marian folder the artifacts were compiled from.")],
    fp32: Annotated[Path, typer.Option(help="Artifact with everything kept in FP32.")],
    artifact: Annotated[list[Path], typer.Option(help="Artifact to compare; may repeat.")],
    beam: Annotated[int, typer.Option(min=1, help="Beam size.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    sentences: Annotated[int, typer.Option(min=1, help="Random sources translated.")] = 4,
    source_length: Annotated[int, typer.Option(min=2, help="Ids per source.")] = 20,
    forced_length: Annotated[int, typer.Option(min=1, help="Tokens produced per sentence.")] = 24,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
) -> None:
    """Compare size and peak memory of artifacts with FP32."""
    checkpoint = Checkpoint.open(model)
    workload = random_workload(
        vocabulary=checkpoint.config["vocab_size"],
        eos=checkpoint.config["eos_token_id"],
        sentences=sentences,
        length=source_length,
        forced=forced_length,
        seed=0,
    )
    checkpoint_bytes = sum(4 * math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    rows = []
    reference: Memory | None = None
    for path in (fp32, *artifact):
        setup = Setup(model=model, work=Path(), threads=threads, artifact=path)
        memory = measure_memory("tvmq", setup, workload, beams=beam)
        reference = reference or memory
        rows.append(_row(path, memory, reference, disk_bytes("tvmq", setup), checkpoint_bytes))
    result = {
        "model": str(model),
        "workload": workload.label,
        "beam": beam,
        "threads": threads,
        "fp32_checkpoint_bytes": checkpoint_bytes,
        "results": rows,
    }
    _print(result)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _row(path: Path, memory: Memory, reference: Memory, size: int, checkpoint: int) -> dict[str, Any]:
    return {
        "artifact": path.name,
        "size_bytes": size,
        "times_smaller": round(checkpoint / size, 2),
        "baseline_rss_mb": round(memory.baseline_mb, 1),
        "peak_above_mb": round(memory.above_baseline_mb, 1),
        "peak_times_smaller": round(reference.above_baseline_mb / memory.above_baseline_mb, 2),
        "run_peak_above_mb": round(memory.run_above_baseline_mb, 1),
        "run_times_smaller": round(reference.run_above_baseline_mb / memory.run_above_baseline_mb, 2),
    }


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    checkpoint = result["fp32_checkpoint_bytes"] / MB
    title = f"{result['model']}: {checkpoint:.1f} MB in FP32; {result['workload']}, beam {result['beam']}"
    table = Table(title=title, title_justify="left")
    table.add_column("artifact")
    headings = ("MB on disk", "smaller", "MB before", "peak MB above", "smaller", "translating", "smaller")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in result["results"]:
        table.add_row(
            row["artifact"],
            f"{row['size_bytes'] / MB:.1f}",
            f"{row['times_smaller']:.1f} x",
            f"{row['baseline_rss_mb']:.1f}",
            f"{row['peak_above_mb']:.1f}",
            f"{row['peak_times_smaller']:.1f} x",
            f"{row['run_peak_above_mb']:.1f}",
            f"{row['run_times_smaller']:.1f} x",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
