# SPDX-License-Identifier: Apache-2.0
"""``tvmq embed``, ``classify`` and ``tag``: lines in, embeddings or labels out, in order."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmq.errors import InputError, UsageError
from tvmq.streaming import Undecodable, map_lines

from .lines import Errors, Input, Output, check_output, counted, deliver, open_input
from .ui import Artifact, Force, Isa, Json, Quiet, Threads, Truncate, Ui, Verbose

if TYPE_CHECKING:
    from tvmq.encoder import Encoder, Text

BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts encoded together.")]
ARRAY = ".npy"
Line = tuple[int, str, Any]
"""Number, text and result of one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What the three verbs have in common."""

    artifact: Path
    input_file: Path | None
    output: Path | None
    batch_size: int
    threads: int
    isa: str | None
    errors: Undecodable
    force: bool
    ui: Ui

    @contextmanager
    def lines(
        self, encode: Callable[[Encoder, Sequence[Text]], Sequence[Any]], head: str = ""
    ) -> Iterator[Iterator[Line]]:
        """The result of every line, as soon as it is there; the model must have ``head``."""
        from tvmq import api

        if self.output is not None:
            check_output(self.output, self.force)
        with closing(api.load_encoder(self.artifact, threads=self.threads, isa=self.isa)) as encoder:
            if head:
                encoder.require_head(head)
            with open_input(self.input_file) as stream:
                results = map_lines(
                    stream,
                    self.batch_size,
                    lambda lines: encode(encoder, [parse_text(line) for line in lines]),
                    undecodable=self.errors,
                )
                yield counted(results, self.ui, to_file=self.output is not None, done="encoded")

    def deliver(
        self, lines: Iterator[Line], facts: Callable[[Any], dict[str, Any]], plain: Callable[[Line], str]
    ) -> None:
        """With --json one object with all lines, else ``plain`` text of every line."""
        if not self.ui.json:
            deliver((plain(line) + "\n" for line in lines), self.output)
            return
        found = [{"line": number, "text": text, **facts(result)} for number, text, result in lines]
        deliver([json.dumps({"lines": found}, ensure_ascii=False) + "\n"], self.output)


def parse_text(line: str) -> Text:
    """A line as a text, or as a pair where it has a tab; InputError for more of them."""
    parts = line.split("\t")
    if len(parts) > 2:
        raise InputError(f"{len(parts) - 1} tabs; expected one text, or two with a tab between them")
    return line if len(parts) == 1 else (parts[0], parts[1])


def embed(
    artifact: Artifact,
    input_file: Input = None,
    output: Output = None,
    batch_size: BatchSize = 32,
    truncate: Truncate = False,
    threads: Threads = 1,
    isa: Isa = None,
    errors: Errors = "strict",
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Embed every line: a JSON object a line, or with --output FILE.npy one float32 array.

    A pair of texts is a line with a tab between them. Empty lines are refused.
    """
    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    as_array = output is not None and output.suffix == ARRAY
    if json_output and as_array:
        raise UsageError(f"--json writes text; leave it out to write {output}")
    work = _Work(
        artifact=artifact,
        input_file=input_file,
        output=output,
        batch_size=batch_size,
        threads=threads,
        isa=isa,
        errors=errors,
        force=force,
        ui=ui,
    )

    def facts(row: Any) -> dict[str, Any]:
        # the shortest decimals that give back the float32
        return {"embedding": [float(str(value)) for value in row]}

    def encode(encoder: Encoder, texts: Sequence[Text]) -> Sequence[Any]:
        return list(encoder.embed(texts, batch_size=batch_size, truncate=truncate))

    with work.lines(encode) as lines:
        if as_array:
            _write_array(lines, output)
        else:
            work.deliver(lines, facts, lambda line: json.dumps({"line": line[0], **facts(line[2])}))


def classify(
    artifact: Artifact,
    input_file: Input = None,
    output: Output = None,
    batch_size: BatchSize = 32,
    truncate: Truncate = False,
    threads: Threads = 1,
    isa: Isa = None,
    errors: Errors = "strict",
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Label every line: label TAB score; with --json the scores of all labels.

    A pair of texts is a line with a tab between them. Empty lines are refused.
    """
    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    work = _Work(
        artifact=artifact,
        input_file=input_file,
        output=output,
        batch_size=batch_size,
        threads=threads,
        isa=isa,
        errors=errors,
        force=force,
        ui=ui,
    )

    def encode(encoder: Encoder, texts: Sequence[Text]) -> Sequence[Any]:
        return encoder.classify(texts, batch_size=batch_size, truncate=truncate)

    with work.lines(encode, "classify") as lines:
        work.deliver(
            lines, lambda found: found._asdict(), lambda line: f"{line[2].label}\t{line[2].score:.4f}"
        )


def tag(
    artifact: Artifact,
    input_file: Input = None,
    output: Output = None,
    batch_size: BatchSize = 32,
    truncate: Truncate = False,
    threads: Threads = 1,
    isa: Isa = None,
    errors: Errors = "strict",
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Label every token of every line: a JSON object a line, with the tokens and their labels."""
    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    work = _Work(
        artifact=artifact,
        input_file=input_file,
        output=output,
        batch_size=batch_size,
        threads=threads,
        isa=isa,
        errors=errors,
        force=force,
        ui=ui,
    )

    def encode(encoder: Encoder, texts: Sequence[Text]) -> Sequence[Any]:
        return encoder.tag(texts, batch_size=batch_size, truncate=truncate)

    def facts(tags: Any) -> dict[str, Any]:
        return {"tags": [found._asdict() for found in tags]}

    with work.lines(encode, "tag") as lines:
        work.deliver(
            lines, facts, lambda line: json.dumps({"line": line[0], **facts(line[2])}, ensure_ascii=False)
        )


def _write_array(lines: Iterator[Line], output: Path | None) -> None:
    """All embeddings as float32[lines, width] in NumPy's format, whole or not at all."""
    import numpy as np

    from tvmq.store import atomic_write

    assert output is not None
    rows = [row for _, _, row in lines]
    if not rows:
        raise InputError("no lines to embed; expected at least one text")
    data = io.BytesIO()
    np.save(data, np.stack(rows))
    atomic_write(output, data.getvalue())
