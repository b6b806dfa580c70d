# SPDX-License-Identifier: Apache-2.0
"""``tvmq quantize``: a model folder in, a coded checkpoint out; with --dry-run only the plan and its size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmq.errors import UsageError
from tvmq.heap import keep_freed_memory
from tvmq.options import PlanOptions, QuantizeOptions

from .options import MB, CalibrationFile, DryRun, Model, plan_tables, with_plan_options
from .ui import Force, Json, Quiet, Ui, Verbose, facts_table

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")]


@with_plan_options
def quantize_model(
    model: Model,
    *,
    output: Output = None,
    plan: PlanOptions,
    calibration: CalibrationFile = None,
    dry_run: DryRun = False,
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Quantize a model into a small model folder, to compile or to retrain."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    if dry_run:
        planned = api.describe_plan(model, plan)
        ui.result(planned.to_json(), *plan_tables(planned))
        return
    if output is None:
        raise UsageError("where to? name the folder to write: -o FOLDER (or --dry-run)")
    keep_freed_memory()
    options = QuantizeOptions(plan=plan, calibration=calibration, force=force)
    with ui.progress() as progress:
        report = api.quantize(model, output, options, progress=progress)
    rows = {
        "written": f"{output} in {report.seconds:.1f} s",
        "size": f"{report.size_bytes / MB:.1f} MB, {report.ratio:.1f} times smaller than FP32",
        "bits per weight": f"{report.bits_per_weight:.2f}",
    }
    ui.result(report.to_json(), facts_table(rows))
