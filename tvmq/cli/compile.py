# SPDX-License-Identifier: Apache-2.0
"""``tvmq compile``: a model folder in, an artifact out; with --dry-run only the plan and its size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tvmq.errors import UsageError
from tvmq.options import CompileOptions, PlanOptions, Tables

from .ui import Force, Json, Quiet, Ui, Verbose, facts_table

if TYPE_CHECKING:
    from rich.table import Table

    from tvmq.model_plan import PlanReport

MB = 1e6

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder: config.json and safetensors.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write, by custom NAME.tvmq.")]
Target = Annotated[str, typer.Option("--target", help="host, x86-64 (all levels) or a name of tvmq targets.")]
IsaLevels = Annotated[
    str | None, typer.Option("--isa", metavar="LEVELS", help="Exactly these ISA levels, comma-separated.")
]
TablesOption = Annotated[Tables, typer.Option("--tables", help="int8 is fast, exact computes in FP32.")]
DumpIr = Annotated[Path | None, typer.Option("--dump-ir", help="Folder for the IR after each phase.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and predicted size; write nothing.")]

Preset = Annotated[str | None, typer.Option("--preset", help="A shipped plan, such as fp32.")]
Bits = Annotated[float | None, typer.Option("--bits", help="Mean bits per weight; a sensible mix is picked.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan.json.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATTERN=BITS", help="Bits of a block or of matching tensors; the last one wins."
    ),
]
Quantizer = Annotated[str | None, typer.Option("--quantizer", help="alternating, greedy or rtn.")]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", min=0, help="Columns that share a scale; 0 is a whole row.")
]
Offset = Annotated[bool | None, typer.Option("--offset/--no-offset", help="An offset beside the scales.")]
ScaleDtype = Annotated[
    Literal["float16", "float32"] | None,
    typer.Option("--scale-dtype", help="Stored type of scales and offsets."),
]
Frequencies = Annotated[Path | None, typer.Option("--frequencies", help="token_freq.tsv for bits by word.")]
Text = Annotated[Path | None, typer.Option("--text", help="Text to count token frequencies in instead.")]


def compile_model(
    model: Model,
    output: Output = None,
    target: Target = "host",
    isa: IsaLevels = None,
    tables: TablesOption = "int8",
    preset: Preset = None,
    bits: Bits = None,
    plan_file: PlanFile = None,
    overrides: Set = None,
    quantizer: Quantizer = None,
    group_size: GroupSize = None,
    offset: Offset = None,
    scale_dtype: ScaleDtype = None,
    frequencies: Frequencies = None,
    text: Text = None,
    dump_ir: DumpIr = None,
    dry_run: DryRun = False,
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Compile a model into a folder that translates by itself."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    plan = PlanOptions(
        preset=preset,
        bits=bits,
        plan=plan_file,
        overrides=tuple(parse_override(text) for text in overrides or ()),
        quantizer=quantizer,
        group_size=group_size,
        offset=offset,
        scale_dtype=scale_dtype,
        frequencies=frequencies,
        text=text,
    )
    if dry_run:
        report = api.describe_plan(model, plan)
        ui.result(report.to_json(), *plan_tables(report))
        return
    if output is None:
        raise UsageError("where to? name the folder to write: -o NAME.tvmq (or --dry-run)")
    options = CompileOptions(
        plan=plan,
        target=target,
        isa_levels=tuple(isa.split(",")) if isa else None,
        tables=tables,
        dump_ir=dump_ir,
        force=force,
    )
    start = time.perf_counter()
    with ui.progress() as progress:
        api.compile(model, output, options, progress=progress)
    _summary(ui, output, time.perf_counter() - start, api.inspect(output))


def parse_override(text: str) -> tuple[str, int]:
    """``PATTERN=BITS`` as a pair; UsageError where it is not one."""
    pattern, found, bits = text.rpartition("=")
    if not found or not pattern or not bits.isascii() or not bits.isdigit():
        raise UsageError(f"--set {text}: expected PATTERN=BITS, such as --set Dec_ffn=2")
    return pattern, int(bits)


def plan_tables(report: PlanReport) -> tuple[Table, str, Table]:
    """The plan for people: sizes above, one row per block below."""
    from rich.table import Table

    table = Table("block", "bits", "stored bits per weight", "weights", "MB", box=None, pad_edge=False)
    for block in report.size.blocks:
        stored = f"{block.bits_per_weight:.2f}"
        size = f"{block.bytes / MB:.2f}"
        table.add_row(block.name, report.widths[block.name], stored, f"{block.weights:,}", size)
    rows = {
        "plan": report.plan.source,
        "predicted size": f"{report.size.bytes / MB:.2f} MB of {report.fp32_bytes / MB:.1f} MB in FP32",
        "ratio": f"{report.ratio:.1f} times smaller",
        "bits per weight": f"{report.size.bits_per_weight:.2f} (scales, offsets and word order included)",
    }
    return facts_table(rows), "", table


def _summary(ui: Ui, output: Path, seconds: float, facts: dict[str, Any]) -> None:
    value = {
        "output": str(output),
        "seconds": round(seconds, 2),
        **{key: facts[key] for key in ("bits_per_weight", "size_bytes", "fp32_bytes", "ratio", "isa_levels")},
    }
    rows = {
        "written": f"{output} in {seconds:.1f} s",
        "size": f"{facts['size_bytes'] / MB:.1f} MB, {facts['ratio']:.1f} times smaller than FP32",
        "bits per weight": f"{facts['bits_per_weight']:.2f}",
        "ISA levels": ", ".join(facts["isa_levels"]),
    }
    ui.result(value, facts_table(rows))
