# SPDX-License-Identifier: Apache-2.0
"""The options for bits that every verb over a model folder shares, and how a plan looks to people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay_passes.bit_plan import Mode as Modes
from relay_passes.bit_plan import ScaleDtype as ScaleDtypes
from tvmq.errors import UsageError
from tvmq.options import PlanOptions

from .ui import facts_table

if TYPE_CHECKING:
    from rich.table import Table

    from tvmq.model_plan import PlanReport

MB = 1e6

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder: config.json and safetensors.")]
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
Quantizer = Annotated[str | None, typer.Option("--quantizer", help="alternating, hessian, greedy or rtn.")]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", min=0, help="Columns that share a scale; 0 is a whole row.")
]
Offset = Annotated[bool | None, typer.Option("--offset/--no-offset", help="An offset beside the scales.")]
ScaleDtype = Annotated[
    ScaleDtypes | None,
    typer.Option("--scale-dtype", help="Scales and offsets: pow2 is int8 over a shared power of two."),
]
Frequencies = Annotated[Path | None, typer.Option("--frequencies", help="token_freq.tsv for bits by word.")]
Text = Annotated[Path | None, typer.Option("--text", help="Text to count token frequencies in instead.")]
Mode = Annotated[
    Modes, typer.Option("--mode", help="Values between matrices: float, or blocks of integers (encoders).")
]
ActivationBlock = Annotated[
    int | None,
    typer.Option(
        "--activation-block", min=0, help="Columns that share an exponent in mode block-int; 0 is a row."
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="Measurements on sample text, for quantizers that go by them."),
]


def plan_options(
    *,
    preset: str | None,
    bits: float | None,
    plan_file: Path | None,
    overrides: list[str] | None,
    quantizer: str | None,
    group_size: int | None,
    offset: bool | None,
    scale_dtype: ScaleDtypes | None,
    frequencies: Path | None,
    text: Path | None,
    mode: Modes = "float",
    activation_block: int | None = None,
) -> PlanOptions:
    """The options for bits as the API takes them; UsageError for a ``--set`` that is none."""
    return PlanOptions(
        preset=preset,
        bits=bits,
        plan=plan_file,
        overrides=tuple(parse_override(override) for override in overrides or ()),
        quantizer=quantizer,
        group_size=group_size,
        offset=offset,
        scale_dtype=scale_dtype,
        frequencies=frequencies,
        text=text,
        mode=mode,
        activation_block=activation_block,
    )


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
