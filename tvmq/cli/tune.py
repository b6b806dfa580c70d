# SPDX-License-Identifier: Apache-2.0
"""``tvmq tune``: search schedules for the products of a model, into a log that serves the next model too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmq.errors import UsageError
from tvmq.options import PlanOptions, Tables, TuneOptions

from .options import with_plan_options
from .ui import INTERRUPTED, Json, Quiet, Target, Ui, Verbose, facts_table

if TYPE_CHECKING:
    from tvmq.kernels.tuner import TuneReport

Source = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, or a JSON list of workloads.")]
Log = Annotated[Path, typer.Option("--output", "-o", help="Tuning log to write (.jsonl).")]
Runner = Annotated[
    str,
    typer.Option("--runner", metavar="WHERE", help="local, rpc, command:TEMPLATE, model[:CPU] (llvm-mca)."),
]
Tracker = Annotated[
    str | None, typer.Option("--tracker", metavar="HOST:PORT", help="TVM's RPC tracker, for --runner rpc.")
]
Key = Annotated[str | None, typer.Option("--key", help="Key of its servers that may be used.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, metavar="S", help="Seconds of one candidate.")]
Threads = Annotated[
    int,
    typer.Option("--threads", "-t", min=1, help="Threads; compile uses records of 1, and 2 for spreading."),
]


@with_plan_options
def tune(
    source: Source,
    *,
    output: Log,
    plan: PlanOptions,
    tables: Annotated[Tables, typer.Option("--tables", help="Table kernels to tune.")] = "int8",
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="COUNTS", help="Tokens to tune for, comma-separated.")
    ] = "1,64",
    widths: Annotated[
        str | None,
        typer.Option("--widths", metavar="BITS", help="Tune every matrix at these bits, such as 1,2,3,4."),
    ] = None,
    target: Target = "host",
    trials: Annotated[
        int, typer.Option("--trials", min=0, help="Candidates of each product; 0: times only.")
    ] = 24,
    time_budget: Annotated[
        float, typer.Option("--time-budget", min=0, metavar="S", help="Seconds in all; 0 is no limit.")
    ] = 0.0,
    timeout: Timeout = 30.0,
    threads: Threads = 1,
    runner: Runner = "local",
    tracker: Tracker = None,
    key: Key = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an existing log.")] = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Search schedules for the products of a model and keep every measurement in a log."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    options = TuneOptions(
        plan=plan,
        tables=tables,
        tokens=_counts("--tokens", tokens),
        widths=() if widths is None else _counts("--widths", widths),
        target=target,
        trials=trials,
        time_budget=time_budget,
        timeout=timeout,
        threads=threads,
        resume=resume,
        runner=runner,
        tracker=tracker,
        key=key,
    )
    err = ui.err()
    with ui.progress() as progress:
        say = (lambda text: None) if quiet else err.print
        report = api.tune(source, output, options, say=say, progress=progress)
    _show(ui, report)
    if report.stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _counts(option: str, text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and 0 < len(word) < 8 and int(word) for word in words):
        raise UsageError(f"{option} {text}: expected numbers, such as 1,4")
    return tuple(int(word) for word in words)


def _show(ui: Ui, report: TuneReport) -> None:
    gains = sorted(found.gain for found in report.tuned)
    lost = {status: count for status, count in report.trials.items() if status != "ok"}
    rows = {
        "log": str(report.log),
        "products": f"{len(report.tuned)} tuned, {report.untouched} not reached ({report.stopped})",
        "trials": f"{sum(report.trials.values())} in {report.seconds:.0f} s, lost: {lost or 'none'}",
        "against the rule": f"{gains[0]:.2f} to {gains[-1]:.2f} times as fast" if gains else "nothing tuned",
    }
    value: dict[str, Any] = report.to_json()
    ui.result(value, facts_table(rows))
