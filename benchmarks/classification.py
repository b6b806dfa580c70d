# SPDX-License-Identifier: Apache-2.0
"""Accuracy of tvmq and its peers on labelled texts, paired with PyTorch's in FP32.

    python -m benchmarks.classification --artifact blockint.tvmq --artifact 3bit.tvmq

Intervals are 95 %, by paired bootstrap; ``p`` is McNemar's exact test of the difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from .encoders import DEFAULT_MODEL, WORK
from .process import set_threads

if TYPE_CHECKING:
    from tvmq.encoder_evaluation import EncoderEvalResult

REFERENCE = "pytorch-fp32"


def main(
    model: Annotated[Path, typer.Option(help="Folder of a classifier of texts.")] = DEFAULT_MODEL,
    artifact: Annotated[
        list[Path] | None, typer.Option(help="Compiled artifact of the same checkpoint; may repeat.")
    ] = None,
    artifact_label: Annotated[
        list[str] | None, typer.Option(help="Name of the artifact in the table; one per --artifact.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this engine; may repeat.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not this engine; may repeat.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Text TAB label; default: the model's test sample.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration texts of peers; default: the dev sample.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder for converted peers.")] = WORK,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
) -> None:
    """Compare accuracy with other engines."""
    set_threads(threads)
    from rich.console import Console

    from tvmq.encoder_evaluation import LABELLED, score_labels
    from tvmq.evaluation import read_columns

    from . import encoder_texts
    from .encoder_choice import Choice, choose
    from .encoder_engines import EncoderSetup
    from .encoder_rows import rows_of

    data = data or model / "sample" / "test.tsv"
    lines = read_columns(data, LABELLED, (2,))
    texts, gold = [line[0] for line in lines], [line[1] for line in lines]
    ids = encoder_texts.token_ids(model, texts)
    quantizing = encoder_texts.calibration(model, calibration or encoder_texts.CALIBRATION_SAMPLE)
    setup = EncoderSetup(model=model, work=work, threads=threads, calibration=quantizing)
    if setup.task != "classify":
        raise typer.BadParameter(f"{model} does not label texts; take benchmarks.embeddings")
    choices = choose(
        setup, artifacts=artifact or [], labels=artifact_label or [], only=only or [], skip=skip or []
    )
    names = _labels(setup)

    def labels_of(choice: Choice) -> list[str]:
        return [names[index] for index in rows_of(choice, texts, ids).argmax(axis=1)]

    with Console(stderr=True).status("PyTorch in FP32") as status:
        baseline = labels_of(Choice(engine=REFERENCE, setup=setup))
        found = {REFERENCE: score_labels(baseline, gold, names)}
        for label, choice in choices.items():
            status.update(label)
            if label != REFERENCE:
                found[label] = score_labels(labels_of(choice), gold, names, baseline=baseline)
    _print(f"{model}: {len(texts)} texts of {data.name}", found, baseline)
    if json_path is not None:
        rows = [{"engine": label, **one.to_json()} for label, one in found.items()]
        result = {"model": model.name, "data": data.name, "texts": len(texts), "results": rows}
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _labels(setup: Any) -> list[str]:
    """Names of the classes in the order of the logits."""
    found: dict[str, str] = setup.config["id2label"]
    return [found[str(index)] for index in range(len(found))]


def _print(title: str, found: Mapping[str, EncoderEvalResult], baseline: list[str]) -> None:
    from rich.table import Table

    from .report import console

    table: Any = Table("engine", title=title, title_justify="left")
    for column in ("accuracy", "to FP32", "95 %", "p", "same label as FP32"):
        table.add_column(column, justify="right")
    for label, one in found.items():
        same = float(np.mean([a == b for a, b in zip(one.outputs, baseline, strict=True)]))
        paired = ["", "", ""]
        if one.comparison is not None:
            low, high = one.comparison.interval
            paired = [
                f"{one.comparison.difference:+.2f}",
                f"{low:+.2f} .. {high:+.2f}",
                f"{one.mcnemar_p:.3f}",
            ]
        table.add_row(label, f"{one.value:.2f}", *paired, f"{100 * same:.1f} %")
    console().print(table)


if __name__ == "__main__":
    typer.run(main)
