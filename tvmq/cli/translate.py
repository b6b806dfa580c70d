# SPDX-License-Identifier: Apache-2.0
"""``tvmq translate``: lines in, lines out, in order, as soon as they are done."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated, Any

import typer

from tvmq.options import SearchOptions
from tvmq.streaming import LineResult, translate_lines

from .lines import Errors, Input, Output, check_output, counted, deliver, open_input
from .ui import (
    Artifact,
    BatchSize,
    Beam,
    Force,
    Isa,
    Json,
    LengthPenalty,
    MaxLength,
    Quiet,
    Threads,
    Ui,
    Verbose,
)

NBest = Annotated[int, typer.Option("--n-best", min=1, help="Hypotheses per line, with scores.")]


def translate(
    artifact: Artifact,
    input_file: Input = None,
    output: Output = None,
    beam: Beam = 4,
    length_penalty: LengthPenalty = 1.0,
    max_length: MaxLength = None,
    n_best: NBest = 1,
    batch_size: BatchSize = 16,
    threads: Threads = 1,
    isa: Isa = None,
    errors: Errors = "strict",
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Translate text line by line, from stdin or a file, keeping the order.

    With --n-best N every line of output is: line number TAB score TAB translation.
    """
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    search = SearchOptions(
        beam=max(beam, n_best),
        length_penalty=length_penalty,
        max_length=max_length,
        batch_size=batch_size,
        threads=threads,
        isa=isa,
    )
    if output is not None:
        check_output(output, force)
    translator = api.load_translator(artifact, threads=threads, isa=isa)
    with open_input(input_file) as stream, closing(translator) as model:
        results = translate_lines(model, stream, search, n_best=n_best, undecodable=errors)
        lines = counted(results, ui, to_file=output is not None, done="translated")
        if json_output:
            text = json.dumps({"lines": [_as_json(line) for line in lines]}, ensure_ascii=False) + "\n"
            deliver([text], output)
        else:
            deliver((_as_text(line, n_best) for line in lines), output)


def _as_text(line: LineResult, n_best: int) -> str:
    if n_best == 1:
        return (_one_line(line.hypotheses[0].text) if line.hypotheses else "") + "\n"
    rows = (f"{line.number}\t{h.score:.4f}\t{_one_line(h.text)}\n" for h in line.hypotheses)
    return "".join(rows) or f"{line.number}\t\t\n"


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _as_json(line: LineResult) -> dict[str, Any]:
    hypotheses = [{"text": h.text, "score": h.score, "tokens": list(h.tokens)} for h in line.hypotheses]
    return {"line": line.number, "source": line.source, "hypotheses": hypotheses}
