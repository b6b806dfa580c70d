# SPDX-License-Identifier: Apache-2.0
"""What every verb shares: flags, consoles, progress, JSON. Results go to stdout, all else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from tvmq.options import Progress, no_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

INTERRUPTED = 130
"""Exit code of a verb that Ctrl-C ended."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more; -vv: tracebacks.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on the terminal.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder written by tvmq compile.")]
Threads = Annotated[int, typer.Option("--threads", "-t", min=1, help="Threads; results do not depend on it.")]
Target = Annotated[str, typer.Option("--target", help="ISA level; host is the best that runs here.")]
Isa = Annotated[
    str | None, typer.Option("--isa", metavar="LEVEL", help="ISA level to run instead of the CPU's best.")
]
Beam = Annotated[int, typer.Option("--beam", min=1, help="Hypotheses per sentence; 1 is greedy search.")]
LengthPenalty = Annotated[float, typer.Option("--length-penalty", help="Scores are divided by length**this.")]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Longest output in tokens [default: the model's]")
]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut texts that are too long instead of refusing them.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Sentences translated together.")]


@dataclass(slots=True, kw_only=True)
class Ui:
    """Where the running verb writes.

    Attributes:
        json: one object on stdout, nothing else.
        verbose: 0, 1 (a line per phase) or more (tracebacks).
        quiet: no progress.
    """

    json: bool = False
    verbose: int = 0
    quiet: bool = False
    current: ClassVar[Ui | None] = None

    @classmethod
    def start(cls, *, json: bool = False, verbose: int = 0, quiet: bool = False) -> Ui:
        """The Ui of the verb that begins now; ``main`` asks it whether tracebacks are wanted."""
        cls.current = cls(json=json, verbose=verbose, quiet=quiet)
        return cls.current

    def out(self) -> Console:
        """Console for results."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def err(self) -> Console:
        """Console for progress and remarks."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    def result(self, value: dict[str, Any], *human: Table | str) -> None:
        """The JSON object with ``--json``, else the tables and lines for people."""
        if self.json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
            return
        out = self.out()
        for part in human:
            out.print(part)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Progress bars on a terminal, a line per phase with ``-v`` elsewhere, else nothing."""
        err = self.err()
        if self.quiet or not (err.is_terminal or self.verbose):
            yield no_progress
        elif not err.is_terminal:
            yield PhaseLines(err)
        else:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            counts = (MofNCompleteColumn(), TimeElapsedColumn())
            columns = (TextColumn("{task.description}"), BarColumn(), *counts)
            with Bars(*columns, console=err, transient=not self.verbose) as bars:
                yield PhaseBars(bars)


class PhaseLines:
    """A ``Progress`` that prints the name of every phase once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Print ``phase`` when it is a new one."""
        if phase != self._phase:
            self._phase = phase
            self._console.print(phase)


class PhaseBars:
    """A ``Progress`` with one bar per phase; a new phase completes the one before it."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Move the bar of ``phase``, made on its first report."""
        if phase not in self._tasks:
            for task in self._tasks.values():
                self._bars.stop_task(task)
            self._tasks[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._tasks[phase], completed=done, total=total)


def facts_table(rows: dict[str, str]) -> Table:
    """A two-column table of names and values."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
