# SPDX-License-Identifier: Apache-2.0
"""The options for bits that every verb over a model folder shares, and how a plan looks to people."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_passes.bit_plan import Mode as Modes
from relay_passes.bit_plan import ScaleDtype as ScaleDtypes
from tvmq.errors import UsageError
from tvmq.options import PlanOptions

from .ui import facts_table

if TYPE_CHECKING:
    from rich.table import Table

    from tvmq.manifest import KernelSchedule
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
Quantizer = Annotated[
    str | None, typer.Option("--quantizer", help="alternating, hessian, weighted, greedy or rtn.")
]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", min=0, help="Columns that share a scale; 0 is a whole row.")
]
Offset = Annotated[bool | None, typer.Option("--offset/--no-offset", help="An offset beside the scales.")]
ScaleDtype = Annotated[
    ScaleDtypes | None,
    typer.Option("--scale-dtype", help="Scales and offsets: pow2 is int8 over a shared power of two."),
]
Outliers = Annotated[
    float | None,
    typer.Option("--outliers", metavar="PERCENT", help="Percent of the weights to keep beside the planes."),
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
    preset: Preset = None,
    bits: Bits = None,
    plan_file: PlanFile = None,
    overrides: Set = None,
    quantizer: Quantizer = None,
    group_size: GroupSize = None,
    offset: Offset = None,
    scale_dtype: ScaleDtype = None,
    outliers: Outliers = None,
    frequencies: Frequencies = None,
    text: Text = None,
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
        outliers=outliers,
        frequencies=frequencies,
        text=text,
    )


def with_plan_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with all options of ``plan_options`` in place of its parameter ``plan``, which they make."""
    shared = inspect.signature(plan_options, eval_str=True).parameters
    own = inspect.signature(verb, eval_str=True).parameters

    @wraps(verb)
    def run(**given: Any) -> None:
        plan = plan_options(**{name: given.pop(name) for name in shared})
        verb(plan=plan, **given)

    merged = [
        part
        for name, parameter in own.items()
        for part in (shared.values() if name == "plan" else [parameter])
    ]
    signature = inspect.Signature(
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in merged]
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
    setattr(run, "__signature__", signature)  # noqa: B010
    return run


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
        "mode": report.plan.mode,
        "predicted size": f"{report.size.bytes / MB:.2f} MB of {report.fp32_bytes / MB:.1f} MB in FP32",
        "ratio": f"{report.ratio:.1f} times smaller",
        "bits per weight": f"{report.size.bits_per_weight:.2f} (scales, offsets and word order included)",
    }
    return facts_table(rows), "", table


def schedule_table(schedules: Sequence[KernelSchedule]) -> Table:
    """The schedules that a log has; a product without a record has the rule's and no row."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("kernel", "rows x columns", "bits", "ISA level", "measured", "schedule"):
        table.add_column(name, overflow="fold")
    for part in schedules:
        if part.source != "rule":
            shape = f"{part.n} x {part.k}"
            table.add_row(part.kernel, shape, str(part.bits), part.target, part.source, part.schedule)
    return table
