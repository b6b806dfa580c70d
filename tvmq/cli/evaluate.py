# SPDX-License-Identifier: Apache-2.0
"""``tvmq eval``: scores of an artifact on data, with intervals, and tests against a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tvmq.options import SearchOptions

from .ui import (
    Artifact,
    BatchSize,
    Beam,
    Isa,
    Json,
    LengthPenalty,
    MaxLength,
    Quiet,
    Threads,
    Truncate,
    Ui,
    Verbose,
    facts_table,
)

if TYPE_CHECKING:
    from tvmq.encoder_evaluation import EncoderEvalResult
    from tvmq.evaluation import EvalResult
    from tvmq.significance import Comparison

Metric = Annotated[
    Literal["bleu", "accuracy", "spearman"] | None,
    typer.Option("--metric", help="What to score [default: what the model is for]"),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data", help="UTF-8 lines: source TAB reference, text TAB label, or text TAB text TAB score."
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option("--baseline", help="Another artifact, or a file with an output a line, to compare."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File for the outputs; a later --baseline.")
]


def evaluate(
    artifact: Artifact,
    data: Data,
    metric: Metric = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first lines.")] = None,
    baseline: Baseline = None,
    output: Output = None,
    beam: Beam = 4,
    length_penalty: LengthPenalty = 1.0,
    max_length: MaxLength = None,
    truncate: Truncate = False,
    batch_size: BatchSize = 16,
    threads: Threads = 1,
    isa: Isa = None,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Score an artifact and test it against a baseline.

    Translations: BLEU and chrF (sacrebleu). Labels: accuracy. Embeddings: Spearman correlation of cosines.
    """
    from tvmq import api
    from tvmq.evaluation import EvalResult

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    search = SearchOptions(
        beam=beam,
        length_penalty=length_penalty,
        max_length=max_length,
        batch_size=batch_size,
        threads=threads,
        isa=isa,
    )
    with ui.progress() as progress:
        result = api.evaluate(
            artifact,
            data,
            search,
            metric=metric,
            limit=limit,
            baseline=baseline,
            output=output,
            truncate=truncate,
            progress=progress,
        )
    rows = _translation_rows(result) if isinstance(result, EvalResult) else _encoder_rows(result)
    ui.result(result.to_json(), facts_table(rows))


def _translation_rows(result: EvalResult) -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, value, interval, comparison in (
        ("BLEU", result.value, result.value_interval, result.comparison),
        ("chrF", result.chrf, result.chrf_value_interval, result.chrf_comparison),
    ):
        rows[name] = f"{value:.2f} (95 %: {_interval(interval)})"
        if comparison is not None:
            rows[f"{name} - baseline"] = _against(comparison)
    rows["sentences"] = f"{result.n} in {result.seconds:.1f} s"
    rows["signature"] = result.signature
    return rows


def _encoder_rows(result: EncoderEvalResult) -> dict[str, str]:
    digits, name = result.digits, result.metric
    interval = _interval(result.value_interval, digits=digits)
    rows = {name: f"{result.value:.{digits}f} (95 %: {interval})"}
    if result.comparison is not None:
        rows[f"{name} - baseline"] = _against(result.comparison, digits)
    if result.mcnemar_p is not None:
        rows["McNemar's test"] = f"p = {result.mcnemar_p:.4f}"
    rows["lines"] = f"{result.n} in {result.seconds:.1f} s"
    rows["signature"] = result.signature
    return rows


def _interval(interval: tuple[float, float], sign: str = "", digits: int = 2) -> str:
    low, high = interval
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def _against(comparison: Comparison, digits: int = 2) -> str:
    return (
        f"{comparison.difference:+.{digits}f} (95 %: {_interval(comparison.interval, '+', digits)}), "
        f"p = {comparison.p_value:.4f}, baseline {comparison.baseline_value:.{digits}f}"
    )
