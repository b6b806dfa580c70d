# SPDX-License-Identifier: Apache-2.0
"""What the verbs over lines of text share: input and output, in order and as soon as a line is done."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import typer

from tvmq.errors import InputError
from tvmq.streaming import Undecodable

from .ui import Ui

Item = TypeVar("Item")
Input = Annotated[Path | None, typer.Option("--input", "-i", help="Text to read instead of stdin.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of stdout.")]
Errors = Annotated[Undecodable, typer.Option("--errors", help="What to do with bytes that are not UTF-8.")]


def check_output(path: Path, force: bool) -> None:
    """Find out before the work, not after it, that the result cannot be written."""
    from tvmq.store import refuse_existing

    refuse_existing(path, force)
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


def deliver(texts: Iterable[str], output: Path | None) -> None:
    """To stdout as they come, or to a file that appears only when it is complete."""
    if output is not None:
        from tvmq.store import atomic_write

        atomic_write(output, "".join(texts))
        return
    with _as_a_filter():
        for text in texts:
            sys.stdout.buffer.write(text.encode("utf-8"))
            sys.stdout.buffer.flush()


@contextmanager
def _as_a_filter() -> Iterator[None]:
    """`| head` ends the process silently inside; callers of ``main`` keep their way with closed pipes."""
    if not hasattr(signal, "SIGPIPE"):
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, before)


def counted(results: Iterator[Item], ui: Ui, *, to_file: bool, done: str) -> Iterator[Item]:
    """The same results with a counter on stderr, where a person watches and the text is not there too."""
    console = ui.err()
    hidden = sys.stdout.isatty() and not to_file
    if ui.quiet or hidden or not console.is_terminal:
        yield from results
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} lines " + done), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        for line in results:
            yield line
            bar.advance(task)
