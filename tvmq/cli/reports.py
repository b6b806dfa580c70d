# SPDX-License-Identifier: Apache-2.0
"""The verbs that report: bench, inspect, verify, targets, doctor. Flags in, table or JSON out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmq.errors import VerificationError
from tvmq.options import BenchOptions, SearchOptions

from .options import MB
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
    Ui,
    Verbose,
    facts_table,
)


def bench(
    artifact: Artifact,
    input_file: Annotated[
        Path | None, typer.Option("--input", "-i", help="Text or TSV (first column) instead of random ids.")
    ] = None,
    sentences: Annotated[int, typer.Option("--sentences", min=1, help="How many sentences.")] = 32,
    source_tokens: Annotated[
        int, typer.Option("--source-tokens", "--length", min=1, help="Tokens a random text.")
    ] = 20,
    forced_length: Annotated[
        int, typer.Option("--forced-length", min=1, help="Tokens to generate per random source.")
    ] = 24,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed passes; the median counts.")] = 3,
    beam: Beam = 1,
    length_penalty: LengthPenalty = 1.0,
    max_length: MaxLength = None,
    batch_size: BatchSize = 1,
    threads: Threads = 1,
    isa: Isa = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random ids.")] = 0,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Measure speed and memory in a fresh process, on text or on random ids of fixed lengths."""
    from tvmq import api
    from tvmq.encoder_benchmark import EncoderBenchResult

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    options = BenchOptions(
        search=SearchOptions(
            beam=beam,
            length_penalty=length_penalty,
            max_length=max_length,
            batch_size=batch_size,
            threads=threads,
            isa=isa,
        ),
        input=input_file,
        sentences=sentences,
        source_tokens=source_tokens,
        forced_length=forced_length,
        rounds=rounds,
        seed=seed,
    )
    result = api.bench(artifact, options)
    what = result.function if isinstance(result, EncoderBenchResult) else f"beam {result.beam}"
    above = result.peak_rss_mb - result.baseline_rss_mb
    rows = {
        "speed": f"{result.tokens_per_s:,.0f} tokens per second, {result.ms_per_sentence:.1f} ms a sentence",
        "setting": f"threads {result.threads}, {what}, batch {result.batch}, median of {rounds}",
        "memory": f"{result.peak_rss_mb:.0f} MB peak, {above:.0f} MB above the bare interpreter",
        "weights": f"{result.weights_mb:.1f} MB",
        "ran on": f"{result.isa} of {result.cpu}",
    }
    ui.result(dataclasses.asdict(result), facts_table(rows))


def inspect(artifact: Artifact, json_output: Json = False, verbose: Verbose = 0) -> None:
    """Show what an artifact holds: bits, sizes, ISA levels. Loads no code."""
    from rich.table import Table

    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose)
    value = api.inspect(artifact)
    table = Table("block", "bits per weight", "weights", box=None, pad_edge=False)
    for block in value["blocks"]:
        table.add_row(block["name"], f"{block['bits']:.3g}", f"{block['params']:,}")
    words = [f"{run['rows']:,} x {run['bits']}" for run in value["word_bits"]]
    rows = {
        "size": f"{value['size_bytes'] / MB:.1f} MB, {value['ratio']:.1f} times smaller than FP32",
        "bits per weight": f"{value['bits_per_weight']:.2f} (scales, offsets and tables included)",
        "word bits": ", ".join(words) or "the same for all",
        "ISA levels": ", ".join(value["isa_levels"]),
        "mode": str(value["mode"]),
        "tables": str(value["tables"]),
        "family": str(value["family"]),
        "model": _model_line(value["model"]),
    }
    if value["labels"]:
        rows["labels"] = ", ".join(value["labels"])
    measured = sum(part["source"] != "rule" for part in value["schedules"])
    rows["schedules"] = f"{measured} of {len(value['schedules'])} products by measurement, the others by rule"
    ui.result(value, facts_table(rows), "", table)


def _model_line(model: dict[str, Any]) -> str:
    return f"{model['name']} (licence {model['licence']}, sha256 {model['sha256'][:12]})"


def verify(artifact: Artifact, json_output: Json = False, verbose: Verbose = 0) -> None:
    """Check every file of an artifact against its manifest. Loads no code; exit code 5 on a mismatch."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose)
    result = api.verify(artifact)
    bad = [file for file in result.files if not file.ok]
    if result.ok or json_output:
        ui.result(result.to_json(), f"ok: {len(result.files)} files match the manifest")
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise VerificationError(f"{artifact / bad[0].path}: {bad[0].problem}{more}; compile or copy it again")


def targets(json_output: Json = False, verbose: Verbose = 0) -> None:
    """List the ISA levels that models can be compiled for, and which run here."""
    from rich.table import Table

    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose)
    found = api.targets()
    table = Table("target", "triple", "CPU features", "runs here", box=None, pad_edge=False)
    for target in found:
        here = "yes" if target.runs_here else "no"
        table.add_row(target.name, target.triple, " ".join(target.features), here)
    ui.result({"targets": [dataclasses.asdict(target) for target in found]}, table)


def doctor(json_output: Json = False, verbose: Verbose = 0) -> None:
    """Check this machine: Python, packages, compiler, CPU, memory; exit code 4 if one is missing."""
    from rich.markup import escape
    from rich.table import Table

    from tvmq import api
    from tvmq.diagnosis import healthy

    ui = Ui.start(json=json_output, verbose=verbose)
    checks = api.doctor()
    table = Table("", "what", "found", "to do", box=None, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[red]missing[/]"}
    for check in checks:
        table.add_row(marks[check.status], *map(escape, (check.name, check.found, check.fix)))
    good = healthy(checks)
    ui.result({"ok": good, "checks": [dataclasses.asdict(check) for check in checks]}, table)
    if not good:
        raise typer.Exit(4)
