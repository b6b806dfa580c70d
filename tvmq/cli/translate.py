# SPDX-License-Identifier: Apache-2.0
"""``tvmq translate``: lines in, lines out, in order, as soon as they are done."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from tvmq.errors import InputError, UsageError
from tvmq.options import SearchOptions
from tvmq.streaming import LineResult, Undecodable, translate_lines

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

Input = Annotated[Path | None, typer.Option("--input", "-i", help="Text to read instead of stdin.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of stdout.")]
NBest = Annotated[int, typer.Option("--n-best", min=1, help="Hypotheses per line, with scores.")]
Errors = Annotated[Undecodable, typer.Option("--errors", help="What to do with bytes that are not UTF-8.")]


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
        _check_output(output, force)
    translator = api.load_translator(artifact, threads=threads, isa=isa)
    with open_input(input_file) as stream, closing(translator) as model:
        results = translate_lines(model, stream, search, n_best=n_best, undecodable=errors)
        counted = _counted(results, ui, shown=not sys.stdout.isatty() or output is not None)
        if json_output:
            text = json.dumps({"lines": [_as_json(line) for line in counted]}, ensure_ascii=False) + "\n"
            _deliver([text], output)
        else:
            _deliver((_as_text(line, n_best) for line in counted), output)


def _check_output(path: Path, force: bool) -> None:
    """Find out before the work, not after it, that the result cannot be written."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists already (use --force to replace it, or choose another output)")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: its folder does not exist or cannot be written to")


@contextmanager
def open_input(path: Path | None) -> Iterator[BinaryIO]:
    """The file, or stdin; InputError where it cannot be read."""
    if path is None:
        yield sys.stdin.buffer
        return
    if not path.is_file():
        found = "not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {found}; expected a text with one sentence per line")
    with path.open("rb") as stream:
        yield stream


def _deliver(texts: Iterable[str], output: Path | None) -> None:
    """To stdout as they come, or to a file that appears only when it is complete."""
    if output is not None:
        from tvmq.store import atomic_write

        atomic_write(output, "".join(texts))
        return
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends us silently, like any filter
    for text in texts:
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()


def _counted(results: Iterator[LineResult], ui: Ui, *, shown: bool) -> Iterator[LineResult]:
    """The same results with a counter on stderr, where a person watches and the text is not there too."""
    console = ui.err()
    if ui.quiet or not shown or not console.is_terminal:
        yield from results
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} lines translated"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        for line in results:
            yield line
            bar.advance(task)


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
