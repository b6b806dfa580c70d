# SPDX-License-Identifier: Apache-2.0
"""``tvmq plan``: measures how much every matrix matters and writes the best plan.json within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from relay_passes.bit_plan import encode_plan
from tvmq.errors import UsageError
from tvmq.options import AllocationOptions
from tvmq.store import atomic_write

from .options import (
    Frequencies,
    GroupSize,
    Model,
    Offset,
    Outliers,
    Quantizer,
    ScaleDtype,
    Set,
    parse_override,
    plan_tables,
)
from .ui import Force, Json, Quiet, Ui, Verbose, facts_table

if TYPE_CHECKING:
    from rich.table import Table

    from tvmq.allocation_report import AllocationReport
    from tvmq.block_scores import BlockScores

Output = Annotated[Path | None, typer.Option("--output", "-o", help="The plan.json to write.")]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="Text to calibrate on, or an earlier calibration.safetensors."),
]
PairText = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Text to measure on: source TAB target lines; for encoders a text, or text TAB label "
        "[default: --calibration]",
    ),
]
By = Annotated[
    Literal["kl", "fisher"],
    typer.Option("--by", help="Measure what every width does, or estimate it by gradients: quick, rough."),
]
Sentences = Annotated[
    int, typer.Option("--sentences", min=1, help="Lines of the text, and of --bleu, to measure on.")
]
BleuText = Annotated[
    Path | None,
    typer.Option("--bleu", help="source TAB target lines: BLEU with each block alone at each width."),
]
SaveBleu = Annotated[Path | None, typer.Option("--save-bleu", help="Keep these scores in this file.")]
Rounds = Annotated[
    int, typer.Option("--rounds", min=1, help="Measure again, around the plan found, so many times in all.")
]
SensitivityFile = Annotated[
    Path | None, typer.Option("--sensitivities", help="Measurement of an earlier run, instead of measuring.")
]
SaveSensitivities = Annotated[
    Path | None, typer.Option("--save-sensitivities", help="Keep the measurement in this file.")
]
SaveCalibration = Annotated[
    Path | None, typer.Option("--save-calibration", help="Keep the calibration in this file.")
]
Bits = Annotated[float | None, typer.Option("--bits", help="Mean bits per weight, scales and all.")]
SizeMb = Annotated[float | None, typer.Option("--size-mb", help="Megabytes of all parameters.")]
Ms = Annotated[float | None, typer.Option("--ms", help="Milliseconds per token in the matrices.")]
Times = Annotated[
    Path | None,
    typer.Option("--times", help="Tuning log (.jsonl), or JSON: ms per token by block and width."),
]
Words = Annotated[
    Literal["optimum", "algorithm1"], typer.Option("--words", help="How the words of an embedding are cut.")
]
MaxBits = Annotated[int, typer.Option("--max-bits", min=1, max=8, help="Widest width to choose from.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes [default: all cores]")]


def plan(
    model: Model,
    output: Output = None,
    bits: Bits = None,
    size_mb: SizeMb = None,
    ms: Ms = None,
    times: Times = None,
    by: By = "kl",
    text: PairText = None,
    sentences: Sentences = 100,
    bleu: BleuText = None,
    rounds: Rounds = 1,
    calibration: Calibration = None,
    sensitivities: SensitivityFile = None,
    save_calibration: SaveCalibration = None,
    save_sensitivities: SaveSensitivities = None,
    save_bleu: SaveBleu = None,
    words: Words = "optimum",
    overrides: Set = None,
    max_bits: MaxBits = 4,
    quantizer: Quantizer = None,
    group_size: GroupSize = None,
    offset: Offset = None,
    scale_dtype: ScaleDtype = None,
    outliers: Outliers = None,
    frequencies: Frequencies = None,
    jobs: Jobs = None,
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Find the bits of every matrix that cost the least quality within a budget."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    if output is not None and not any(limit is not None for limit in (bits, size_mb, ms)):
        raise UsageError("how large may the plan be? give --bits, --size-mb or --ms")
    if output is not None and output.exists() and not force:
        raise UsageError(f"{output} exists; add --force to replace it")
    options = AllocationOptions(
        bits=bits,
        size_mb=size_mb,
        ms=ms,
        times=times,
        by=by,
        text=text,
        sentences=sentences,
        bleu=bleu,
        rounds=rounds,
        calibration=calibration,
        sensitivities=sensitivities,
        save_calibration=save_calibration,
        save_sensitivities=save_sensitivities,
        save_bleu=save_bleu,
        widths=tuple(range(1, max_bits + 1)),
        words=words,
        overrides=tuple(parse_override(override) for override in overrides or ()),
        quantizer=quantizer,
        group_size=group_size,
        offset=offset,
        scale_dtype=scale_dtype,
        outliers=outliers,
        frequencies=frequencies,
        jobs=jobs,
    )
    with ui.progress() as progress:
        report = api.allocate(model, options, progress=progress)
    if output is not None and report.planned is not None:
        atomic_write(output, encode_plan(report.planned.plan))
    ui.result(report.to_json(), *_tables(report))


def _tables(report: AllocationReport) -> list[Table | str]:
    tables: list[Table | str] = []
    if report.sensitivities is not None:
        tables += [f"{report.measure} with one block quantized, by bits", _sensitivity_table(report)]
    if report.scores is not None:
        title = f"BLEU with one block quantized, by bits ({report.scores.bleu:.2f} in FP32)"
        tables += [title, _bleu_table(report.scores)]
    if report.planned is not None and report.allocation is not None:
        solution = report.allocation.solution
        facts = {
            "expected damage": f"{solution.damage:.4f} {report.measure}, summed over the matrices",
            "from the optimum": f"at most {solution.gap:.2%} (Lagrangian bound {solution.bound:.4f})",
            "matrices": f"{solution.ms:.2f} ms per token",
        }
        tables += ["", *plan_tables(report.planned), "", facts_table(facts), "", _damage_table(report)]
        tables += ["", "best plans at other sizes", _curve_table(report)]
    return tables


def _sensitivity_table(report: AllocationReport) -> Table:
    from rich.table import Table

    rows = report.measured_by_block()
    widths = sorted({bits for row in rows.values() for bits in row})
    table = Table("block", *(str(bits) for bits in widths), box=None, pad_edge=False)
    for block, row in rows.items():
        table.add_row(block, *(f"{row[bits]:.5f}" if bits in row else "" for bits in widths))
    return table


def _bleu_table(scores: BlockScores) -> Table:
    from rich.table import Table

    widths = scores.widths
    table = Table("block", *(str(bits) for bits in widths), box=None, pad_edge=False)
    for row in scores.rows:
        found = dict(zip(row.bits, row.bleu, strict=True))
        table.add_row(row.block, *(f"{found[bits]:.2f}" if bits in found else "" for bits in widths))
    return table


def _damage_table(report: AllocationReport) -> Table:
    from rich.table import Table

    table = Table("block", "expected damage", "ms per token", box=None, pad_edge=False)
    ms = report.ms_by_block()
    for block, damage in report.damage_by_block().items():
        table.add_row(block, f"{damage:.5f}", f"{ms[block]:.3f}")
    return table


def _curve_table(report: AllocationReport) -> Table:
    from rich.table import Table

    table = Table("bits per weight", "ms per token", "expected damage", box=None, pad_edge=False)
    for point in report.curve():
        bits, ms = f"{point['bits_per_weight']:.2f}", f"{point['ms_per_token']:.3f}"
        table.add_row(bits, ms, f"{point['damage']:.5f}")
    return table
