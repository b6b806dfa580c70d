# SPDX-License-Identifier: Apache-2.0
"""Side by side: tvmq and its peers encode the same ids with the same checkpoint.

    python -m benchmarks.encoders --shape base --artifact base.tvmq --memory
    python -m benchmarks.encoders --model models/sentiment-minilm --artifact sentiment.tvmq

Peers are converted by their own converters into the work folder on the first run. Rounds go round robin
over the engines in one process; figures are medians with the extremes beside them. ``speed`` is how many
times as fast as the fastest peer an engine is, paired by round.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .process import set_threads

DEFAULT_MODEL = Path("models/sentiment-minilm")
WORK = Path("build/peers")
BASE = Path("build/bert-base")
BASE_SEED = 1
LENGTHS = (8, 32, 128)
MIXED_LENGTHS = (8, 128)
REAL_BATCH = 16
REAL_TEXTS = 64


def main(
    model: Annotated[Path | None, typer.Option(help="Encoder folder; default: the shipped model.")] = None,
    shape: Annotated[
        Literal["base"] | None, typer.Option(help="Random-weight BERT base instead of a model.")
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
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 7,
    tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Length of random texts; may repeat. Default 8, 32, 128.")
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Random texts of each length per round.")] = 4,
    mixed: Annotated[
        int, typer.Option(min=0, help="Random texts of 8 to 128 tokens in a batch; 0: none.")
    ] = 16,
    text: Annotated[
        Path | None, typer.Option(help="File of texts for --model; default: the model's test sample.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration texts of peers; default: the dev sample.")
    ] = None,
    memory: Annotated[bool, typer.Option(help="Also measure memory, one process per engine.")] = False,
    work: Annotated[Path, typer.Option(help="Folder for converted peers.")] = WORK,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
) -> None:
    """Compare encoding speed, size and memory with other engines."""
    set_threads(threads)
    load = os.getloadavg()
    from rich.console import Console

    from .encoder_choice import choose
    from .encoder_engines import EncoderSetup, disk_bytes
    from .encoder_measure import run_rounds
    from .encoder_memory import measure_memory
    from .encoder_report import PACKAGES, print_report, rows
    from .measure import read_bandwidth
    from .report import facts

    if shape and (model or text):
        raise typer.BadParameter("--shape goes with neither --model nor --text")
    folder = _base_folder() if shape else (model or DEFAULT_MODEL)
    if shape:
        workloads = _random_workloads(folder, tokens or LENGTHS, texts, mixed)
    else:
        workloads = _text_workloads(folder, text or folder / "sample" / "test.tsv")
    setup = EncoderSetup(
        model=folder,
        work=work,
        threads=threads,
        calibration=_calibration(folder, calibration, random=shape is not None),
        shapes=tuple(known for workload in workloads for known in workload.shapes),
    )
    choices = choose(
        setup, artifacts=artifact or [], labels=artifact_label or [], only=only or [], skip=skip or []
    )
    with Console(stderr=True).status("") as status:
        sizes = {}
        for label, choice in choices.items():
            status.update(f"converting for {label}")
            sizes[label] = disk_bytes(choice.engine, choice.setup)
        used: dict[str, Any] = {}
        if memory:
            longest = max(workloads, key=lambda workload: workload.tokens / workload.texts)
            for label, choice in choices.items():
                status.update(f"memory of {label}")
                used[label] = measure_memory(choice.engine, choice.setup, longest)
        status.update("reading memory")
        read = read_bandwidth(threads)
        engines = {}
        for label, choice in choices.items():
            status.update(f"loading {label}")
            engines[label] = choice.build()
        timings = run_rounds(engines, workloads, rounds=rounds, progress=status.update)
    result = {
        "model": str(folder),
        "rounds": rounds,
        "machine": facts(threads=threads, read_gbps=read, load=load, packages=PACKAGES),
        "results": rows(timings, choices, sizes, used),
    }
    print_report(result, choices)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _base_folder() -> Path:
    if not (BASE / "model.safetensors").exists():
        from .make_bert import write_bert

        write_bert(BASE, seed=BASE_SEED)
    return BASE


def _random_workloads(folder: Path, lengths: Sequence[int], texts: int, mixed: int) -> list[Any]:
    from .encoder_workload import fixed_workload, mixed_workloads

    vocabulary = _vocabulary(folder)
    found = [fixed_workload(vocabulary=vocabulary, tokens=n, texts=texts, seed=n) for n in lengths]
    if mixed:
        found += mixed_workloads(vocabulary=vocabulary, lengths=MIXED_LENGTHS, texts=mixed, seed=0)
    return found


def _text_workloads(folder: Path, path: Path) -> list[Any]:
    from .encoder_texts import every, read_texts, token_ids
    from .encoder_workload import text_workloads

    ids = token_ids(folder, every(read_texts([path]), REAL_TEXTS))
    return list(text_workloads(ids, f"of {path.name}", batch=REAL_BATCH))


def _calibration(folder: Path, path: Path | None, *, random: bool) -> tuple[tuple[int, ...], ...]:
    from .encoder_texts import CALIBRATION_SAMPLE, CALIBRATION_TEXTS, calibration
    from .encoder_workload import random_texts

    if path is None and random:
        count = CALIBRATION_TEXTS
        return random_texts(vocabulary=_vocabulary(folder), lengths=MIXED_LENGTHS, texts=count, seed=1)
    return calibration(folder, path or CALIBRATION_SAMPLE)


def _vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])


if __name__ == "__main__":
    typer.run(main)
