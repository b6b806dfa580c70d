# SPDX-License-Identifier: Apache-2.0
"""``tvmq compile``: a model folder in, an artifact out; with --dry-run only the plan and its size."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from targets import detect_host, system_of
from tvmq.errors import UsageError
from tvmq.options import CompileOptions, PlanOptions, PoolingOptions, Tables

from .options import (
    MB,
    ActivationBlock,
    CalibrationFile,
    DryRun,
    Mode,
    Model,
    plan_tables,
    schedule_table,
    with_plan_options,
)
from .ui import Force, Json, Quiet, Ui, Verbose, facts_table

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write, by custom NAME.tvmq.")]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="host, linux-x86-64, linux-arm64 or android-arm64 (all levels), or a name of tvmq targets.",
    ),
]
IsaLevels = Annotated[
    str | None, typer.Option("--isa", metavar="LEVELS", help="Exactly these ISA levels, comma-separated.")
]
TablesOption = Annotated[Tables, typer.Option("--tables", help="int8 is fast, exact computes in FP32.")]
PoolingKind = Annotated[
    Literal["mean", "cls"] | None,
    typer.Option("--pooling", help="Of embeddings: mean of the tokens, or the first [default: the model's]"),
]
Normalize = Annotated[
    bool | None,
    typer.Option("--normalize/--no-normalize", help="Embeddings of unit length [default: the model's]"),
]
TuningLogFile = Annotated[
    Path | None, typer.Option("--tuning-log", help="Measured schedules besides the shipped ones (tvmq tune).")
]
DumpIr = Annotated[Path | None, typer.Option("--dump-ir", help="Folder for the IR after each phase.")]


@with_plan_options
def compile_model(
    model: Model,
    *,
    output: Output = None,
    target: Target = "host",
    isa: IsaLevels = None,
    tables: TablesOption = "int8",
    plan: PlanOptions,
    mode: Mode = "float",
    activation_block: ActivationBlock = None,
    calibration: CalibrationFile = None,
    pooling: PoolingKind = None,
    normalize: Normalize = None,
    tuning_log: TuningLogFile = None,
    dump_ir: DumpIr = None,
    dry_run: DryRun = False,
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Compile a model into a folder that runs by itself."""
    import msgspec

    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    plan = replace(plan, mode=mode, activation_block=activation_block)
    options = CompileOptions(
        plan=plan,
        calibration=calibration,
        target=target,
        isa_levels=tuple(isa.split(",")) if isa else None,
        tables=tables,
        dump_ir=dump_ir,
        pooling=PoolingOptions(kind=pooling, normalize=normalize),
        tuning_log=tuning_log,
        force=force,
    )
    if dry_run:
        report = api.describe_plan(model, plan)
        chosen = api.describe_schedules(model, options)
        value = {**report.to_json(), "schedules": [msgspec.to_builtins(part) for part in chosen]}
        ui.result(value, *plan_tables(report), "", schedule_table(chosen))
        return
    if output is None:
        raise UsageError("where to? name the folder to write: -o NAME.tvmq (or --dry-run)")
    start = time.perf_counter()
    with ui.progress() as progress:
        api.compile(model, output, options, progress=progress)
    _summary(ui, output, time.perf_counter() - start, api.inspect(output))


def _summary(ui: Ui, output: Path, seconds: float, facts: dict[str, Any]) -> None:
    runs = detect_host() if system_of(facts["target"]) == "linux" else []
    tested = next((name for name in runs if name in facts["isa_levels"]), None)
    value = {
        "output": str(output),
        "self_test": tested,
        "seconds": round(seconds, 2),
        **{key: facts[key] for key in ("bits_per_weight", "size_bytes", "fp32_bytes", "ratio", "isa_levels")},
    }
    rows = {
        "written": f"{output} in {seconds:.1f} s",
        "size": f"{facts['size_bytes'] / MB:.1f} MB, {facts['ratio']:.1f} times smaller than FP32",
        "bits per weight": f"{facts['bits_per_weight']:.2f}",
        "ISA levels": ", ".join(facts["isa_levels"]),
        "self-test": f"passed on {tested}" if tested else "not run: this machine runs none of the levels",
    }
    ui.result(value, facts_table(rows))
