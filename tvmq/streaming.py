# SPDX-License-Identifier: Apache-2.0
"""Line by line through a model: order kept, results as soon as they exist, errors with line numbers.

Sits between the command line (or any binary stream) and ``tvmq.runtime`` or ``tvmq.encoder``.
"""

from __future__ import annotations

import io
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar, cast

from .errors import InputError
from .options import SearchOptions

if TYPE_CHECKING:
    from .runtime import Hypothesis, Translator

CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 20
"""A line beyond this is no sentence; refused before it is all in memory."""

Result = TypeVar("Result")
Undecodable = Literal["strict", "replace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """Hypotheses of one input line, best first; empty for an empty line. Lines count from 1."""

    number: int
    source: str
    hypotheses: tuple[Hypothesis, ...]


def read_batches(stream: BinaryIO, size: int) -> Iterator[list[bytes]]:
    """Lines without their ends, at most ``size`` at a time.

    A batch is cut short when the stream has nothing more to give right now, so that a person at a
    terminal, or a program at the other end of a pipe, gets an answer to every line.

    Raises:
        InputError: a line is longer than ``MAX_LINE_BYTES``.
    """
    pending: list[bytes] = []
    tail = b""
    seen = 0
    while chunk := _read_available(stream):
        *lines, tail = (tail + chunk).split(b"\n")
        for number, line in enumerate((*lines, tail), seen + 1):
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; give one sentence per line"
                )
        seen += len(lines)
        pending += lines
        while len(pending) >= size:
            yield pending[:size]
            del pending[:size]
        if pending and not _more_waiting(stream):
            yield pending
            pending = []
    if tail:
        pending.append(tail)
    if pending:
        yield pending


def _read_available(stream: BinaryIO) -> bytes:
    """What one read gives, without waiting for a full chunk."""
    return cast(io.BufferedIOBase, stream).read1(CHUNK_BYTES)


def _more_waiting(stream: BinaryIO) -> bool:
    try:
        return bool(select.select([stream], [], [], 0)[0])
    except (OSError, ValueError):  # not a descriptor: in memory, or closed
        return True


def decode(line: bytes, number: int, undecodable: Undecodable) -> str:
    """The text of a line; InputError with its number when it is not UTF-8 and that is not to be replaced."""
    try:
        return line.decode("utf-8", undecodable).strip()
    except UnicodeDecodeError as error:
        raise InputError(
            f"line {number}: byte {error.start + 1} is not UTF-8; convert the text or use --errors replace"
        ) from None


def map_lines(
    stream: BinaryIO,
    size: int,
    run: Callable[[list[str]], Sequence[Result]],
    *,
    undecodable: Undecodable = "strict",
    empty: Result | None = None,
) -> Iterator[tuple[int, str, Result]]:
    """(number, text, result) of every line in order; results before a bad line come before its error.

    Args:
        stream: lines of text.
        size: lines given to ``run`` at a time, at most.
        run: texts without empty ones -> their results.
        undecodable: what to do with bytes that are not UTF-8.
        empty: the result of an empty line; None refuses it.

    Raises:
        InputError: a line that is not UTF-8, or that ``run`` refuses, with its number.
    """
    number = 0
    for batch in read_batches(stream, size):
        texts: list[tuple[int, str]] = []
        for line in batch:
            number += 1
            try:
                text = decode(line, number, undecodable)
                if not text and empty is None:
                    raise InputError(f"line {number}: empty; every line must hold a text")
            except InputError:
                yield from _run_batch(texts, run, empty)
                raise
            texts.append((number, text))
        yield from _run_batch(texts, run, empty)


def _run_batch(
    lines: list[tuple[int, str]], run: Callable[[list[str]], Sequence[Result]], empty: Result | None
) -> Iterator[tuple[int, str, Result]]:
    filled = [text for _, text in lines if text]
    try:
        results = iter(run(filled) if filled else [])
    except InputError:
        yield from _one_by_one(lines, run, empty)
        return
    for number, text in lines:
        yield number, text, next(results) if text else cast(Result, empty)


def _one_by_one(
    lines: list[tuple[int, str]], run: Callable[[list[str]], Sequence[Result]], empty: Result | None
) -> Iterator[tuple[int, str, Result]]:
    """After a batch was refused: the lines before the culprit, then its error with the line number."""
    for number, text in lines:
        try:
            result = run([text])[0] if text else cast(Result, empty)
        except InputError as error:
            raise InputError(f"line {number}: {error}") from None
        yield number, text, result


def translate_lines(
    translator: Translator,
    stream: BinaryIO,
    search: SearchOptions,
    *,
    n_best: int = 1,
    undecodable: Undecodable = "strict",
) -> Iterator[LineResult]:
    """Translate a stream of lines, as ``map_lines``; an empty line has no hypotheses."""

    def run(texts: list[str]) -> list[tuple[Hypothesis, ...]]:
        return [tuple(best) for best in translator.translate(texts, n_best=n_best, **search.generation())]

    lines = map_lines(stream, search.batch_size, run, undecodable=undecodable, empty=())
    for number, text, hypotheses in lines:
        yield LineResult(number=number, source=text, hypotheses=hypotheses)
