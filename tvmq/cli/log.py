# SPDX-License-Identifier: Apache-2.0
"""``tvmq log``: check, merge, top, export tuning logs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmq.errors import VerificationError

from .ui import Force, Json, Ui, facts_table

if TYPE_CHECKING:
    from schedules.tuning_log import TuningRecord

Logs = Annotated[list[Path], typer.Argument(metavar="LOG...", help="Tuning logs (.jsonl).")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Log to write.")]

log = typer.Typer(
    name="log",
    help="Check, merge and look into tuning logs.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@log.command("check")
def check(logs: Logs, json_output: Json = False) -> None:
    """Check every line's form and checksum; exit code 5 if one is damaged."""
    from tvmq.kernels.logs import check_logs

    ui = Ui.start(json=json_output)
    found = check_logs(logs)
    rows = {
        str(file.path): f"{file.records} records, {file.usable} of this kernel version, {file.workloads} "
        f"workloads, {len(file.damaged)} damaged lines"
        for file in found
    }
    damaged = [(file.path, line) for file in found for line in file.damaged]
    if json_output or not damaged:
        ui.result({"ok": not damaged, "files": [file.to_json() for file in found]}, facts_table(rows))
    if damaged:
        path, first = damaged[0]
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise VerificationError(f"{path}: line {first.line}: {first.why}{more} (tvmq log merge drops them)")


@log.command("merge")
def merge(logs: Logs, output: Output, force: Force = False, json_output: Json = False) -> None:
    """All records of several logs in one; damaged lines are left out."""
    from tvmq.kernels.logs import merge_logs

    ui = Ui.start(json=json_output)
    count, dropped = merge_logs(logs, output, force)
    value = {"output": str(output), "records": count, "damaged": dropped}
    ui.result(value, f"{output}: {count} records, {dropped} damaged lines left out")


@log.command("export")
def export(
    logs: Logs,
    output: Output,
    target: Annotated[str | None, typer.Option("--target", help="Only of this ISA level.")] = None,
    force: Force = False,
    json_output: Json = False,
) -> None:
    """The best record of every workload alone: what a model is compiled with."""
    from tvmq.kernels.logs import export_logs

    ui = Ui.start(json=json_output)
    count = export_logs(logs, output, target, force)
    ui.result({"output": str(output), "records": count}, f"{output}: {count} workloads")


@log.command("top")
def top(
    logs: Logs,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 20,
    target: Annotated[str | None, typer.Option("--target", help="Only of this ISA level.")] = None,
    json_output: Json = False,
) -> None:
    """The workloads that gained most over the rule."""
    from rich.table import Table

    from tvmq.kernels.logs import best_records

    ui = Ui.start(json=json_output)
    best = sorted(best_records(logs, target), key=lambda record: -record.gain)[:count]
    table = Table(box=None, pad_edge=False)
    columns = ("kernel", "n x k", "tokens", "bits", "target", "threads", "us", "times the rule", "schedule")
    for name in columns:
        table.add_column(name, overflow="fold")
    for record in best:
        table.add_row(*_cells(record))
    ui.result({"records": [_plain(record) for record in best]}, table)


def _cells(record: TuningRecord) -> tuple[str, ...]:
    from schedules.describe import describe

    key = record.key
    shape, speed = f"{key.n} x {key.k}", f"{record.gain:.2f}"
    time = f"{record.us:.1f}{' kcycles' if record.basis == 'modelled' else ''}"
    numbers = (str(key.m), str(key.bits), key.target, str(key.threads), time, speed)
    return (key.op, shape, *numbers, describe(record.schedule))


def _plain(record: TuningRecord) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(record), "gain": round(record.gain, 4)}
