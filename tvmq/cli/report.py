# SPDX-License-Identifier: Apache-2.0
"""``tvmq report``: one HTML page about a model's bits, for people who did not choose them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmq.options import ReportOptions

from .options import MB, Frequencies
from .ui import Force, Json, Ui, Verbose, facts_table

Target = Annotated[
    Path,
    typer.Argument(metavar="TARGET", help="An artifact, a coded checkpoint, or a model folder with --plan."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="The plan.json that the report is about.")]
SensitivityFile = Annotated[
    Path | None, typer.Option("--sensitivities", help="Measurement of tvmq plan: adds expected losses.")
]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", help="A calibration.safetensors, for its word counts.")
]
Times = Annotated[
    Path | None,
    typer.Option("--times", help="Tuning log (.jsonl), or JSON: ms per token by block and width."),
]
MeasuredFile = Annotated[
    Path | None, typer.Option("--measured", help="JSON: rows of name, size_mb and loss or bleu.")
]
BleuFile = Annotated[
    Path | None, typer.Option("--bleu", help="Scores of tvmq plan --save-bleu: BLEU by block.")
]
Figures = Annotated[
    Path | None, typer.Option("--svg", metavar="FOLDER", help="Also keep every figure as SVG and PNG here.")
]


def report(
    target: Target,
    output: Output,
    plan: PlanFile = None,
    sensitivities: SensitivityFile = None,
    calibration: Calibration = None,
    frequencies: Frequencies = None,
    times: Times = None,
    measured: MeasuredFile = None,
    bleu: BleuFile = None,
    figures: Figures = None,
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Write an HTML page: where the bits went, what they weigh, and what they are expected to cost."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose)
    options = ReportOptions(
        plan=plan,
        sensitivities=sensitivities,
        calibration=calibration,
        frequencies=frequencies,
        times=times,
        measured=measured,
        bleu=bleu,
        figures=figures,
        force=force,
    )
    result = api.report(target, output, options)
    rows = {
        "size": f"{result.bytes / MB:.2f} MB, {result.ratio:.1f} times smaller than FP32",
        "bits per weight": f"{result.bits_per_weight:.2f}",
    }
    if result.loss is not None:
        rows["expected loss"] = f"{result.loss:.4f} {result.measure}"
    ui.result(result.to_json(), facts_table({"written": str(result.output), **rows}))
