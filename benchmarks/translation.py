# SPDX-License-Identifier: Apache-2.0
"""Side by side: tvmq and its peers translate the same ids from the same checkpoint, batch 1.

    python -m benchmarks.translation --shape base --artifact base.tvmq
    python -m benchmarks.translation --model models/nmt-en-de --artifact en-de.tvmq --rounds 5

Peers are converted by their own converters into the work folder on the first run. Rounds go round
robin over the engines in one process; figures are medians with the extremes beside them.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .process import set_threads

DEFAULT_MODEL = Path("models/nmt-en-de")
WORK = Path("build/peers")
BASE = Path("build/nmt-base")
BASE_SEED = 1


def main(
    model: Annotated[Path | None, typer.Option(help="Marian folder; default: the shipped model.")] = None,
    shape: Annotated[
        Literal["base"] | None, typer.Option(help="Random-weight Transformer base instead of a model.")
    ] = None,
    artifact: Annotated[
        list[Path] | None, typer.Option(help="Compiled artifact of the same checkpoint; may repeat.")
    ] = None,
    artifact_label: Annotated[
        list[str] | None, typer.Option(help="Name of the artifact in the table; one per --artifact.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this engine; may repeat.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not this engine; may repeat.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine.")] = 1,
    beam: Annotated[list[int] | None, typer.Option(help="Beam sizes; default 1 and 4.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    sentences: Annotated[int, typer.Option(min=1, help="Sentences per round.")] = 8,
    data: Annotated[
        Path | None, typer.Option(help="Source TAB reference; default: the model's test sample.")
    ] = None,
    source_length: Annotated[int, typer.Option(min=2, help="Ids per random source.")] = 20,
    forced_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens to produce per sentence; default 24 for random sources.")
    ] = None,
    memory: Annotated[bool, typer.Option(help="Also measure memory, one process per engine.")] = False,
    work: Annotated[Path, typer.Option(help="Folder for converted peers.")] = WORK,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
) -> None:
    """Compare translation speed, size and memory with other engines."""
    set_threads(threads)
    load = os.getloadavg()
    from rich.console import Console

    from .engines import DEFAULT_ENGINES, Setup, build, disk_bytes, prepare
    from .measure import read_bandwidth, run_rounds
    from .memory_process import measure_memory
    from .report import facts, print_report, rows

    console = Console(stderr=True)
    random_weights = shape == "base"
    folder = _base_folder() if random_weights else (model or DEFAULT_MODEL)
    if random_weights and model is not None:
        raise typer.BadParameter("--model and --shape exclude each other")
    setup = Setup(model=folder, work=work, threads=threads)
    artifacts = _artifacts(artifact or [], artifact_label or [])
    chosen = [name for name in (only or DEFAULT_ENGINES) if name not in (skip or [])]
    if "tvmq" in chosen and not artifacts:
        raise typer.BadParameter("tvmq needs --artifact PATH of a compiled artifact (or --skip tvmq)")
    setups: dict[str, tuple[str, Setup]] = {}
    for name in chosen:
        if name == "tvmq":
            setups |= {label: (name, replace(setup, artifact=path)) for label, path in artifacts.items()}
        else:
            setups[name] = (name, setup)

    workload = _workload(folder, random_weights, data, sentences, source_length, forced_length)
    with console.status("") as status:
        for label, (name, own) in setups.items():
            status.update(f"converting for {label}")
            prepare(name, own)
        used: dict[str, Any] = {}
        if memory:
            for label, (name, own) in setups.items():
                status.update(f"memory of {label}")
                used[label] = measure_memory(name, own, workload, beams=max(beam or [4]))
        status.update("reading memory")
        read = read_bandwidth(threads)
        engines = {}
        for label, (name, own) in setups.items():
            status.update(f"loading {label}")
            engines[label] = build(name, own)
        series = run_rounds(
            engines, workload, beams=tuple(beam or (1, 4)), rounds=rounds, progress=status.update
        )
    reference = next(iter(artifacts), None) if "tvmq" in chosen else None
    sizes = {label: disk_bytes(name, own) for label, (name, own) in setups.items()}
    result = {
        "model": str(folder),
        "workload": workload.label,
        "rounds": rounds,
        "machine": facts(threads=threads, read_gbps=read, load=load),
        "results": rows(series, sizes, used, reference),
    }
    print_report(result, reference)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _base_folder() -> Path:
    if not (BASE / "model.safetensors").exists():
        from .make_base import write_base

        write_base(BASE, seed=BASE_SEED)
    return BASE


def _artifacts(paths: list[Path], labels: list[str]) -> dict[str, Path]:
    if labels and len(labels) != len(paths):
        raise typer.BadParameter("give one --artifact-label per --artifact, or none")
    names = labels or [f"tvmq {path.stem}" for path in paths]
    return dict(zip(names, paths, strict=True))


def _workload(
    folder: Path,
    random_weights: bool,
    data: Path | None,
    sentences: int,
    source_length: int,
    forced_length: int | None,
) -> Any:
    from .workload import random_workload, sentence_workload

    if not random_weights:
        data = data or folder / "sample" / "test.tsv"
        return sentence_workload(model=folder, data=data, sentences=sentences, forced=forced_length)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return random_workload(
        vocabulary=config["vocab_size"],
        eos=config["eos_token_id"],
        sentences=sentences,
        length=source_length,
        forced=forced_length or 24,
        seed=0,
    )


if __name__ == "__main__":
    typer.run(main)
