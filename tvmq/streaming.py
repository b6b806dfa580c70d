# SPDX-License-Identifier: Apache-2.0
"""Line by line through a translator: order kept, results as soon as they exist, errors with line numbers.

Sits between the command line (or any binary stream) and ``tvmq.runtime``.
"""

from __future__ import annotations

import io
import select
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from .errors import InputError
from .options import SearchOptions

if TYPE_CHECKING:
    from .runtime import Hypothesis, Translator

CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 20
"""A line beyond this is no sentence; refused before it is all in memory."""

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


def translate_lines(
    translator: Translator,
    stream: BinaryIO,
    search: SearchOptions,
    *,
    n_best: int = 1,
    undecodable: Undecodable = "strict",
) -> Iterator[LineResult]:
    """Translate a stream of lines in order; every result before a bad line is given before the error.

    Raises:
        InputError: a line that is not UTF-8 or that the model cannot take, with its number.
    """
    number = 0
    for batch in read_batches(stream, search.batch_size):
        texts: list[tuple[int, str]] = []
        for line in batch:
            number += 1
            try:
                texts.append((number, decode(line, number, undecodable)))
            except InputError:
                yield from _translate_batch(translator, texts, search, n_best)
                raise
        yield from _translate_batch(translator, texts, search, n_best)


def _translate_batch(
    translator: Translator, lines: list[tuple[int, str]], search: SearchOptions, n_best: int
) -> Iterator[LineResult]:
    filled = [text for _, text in lines if text]
    try:
        results = iter(_translate(translator, filled, search, n_best) if filled else [])
    except InputError:
        yield from _one_by_one(translator, lines, search, n_best)
        return
    for number, text in lines:
        hypotheses = tuple(next(results)) if text else ()
        yield LineResult(number=number, source=text, hypotheses=hypotheses)


def _one_by_one(
    translator: Translator, lines: list[tuple[int, str]], search: SearchOptions, n_best: int
) -> Iterator[LineResult]:
    """After a batch was refused: the lines before the culprit, then its error with the line number."""
    for number, text in lines:
        try:
            hypotheses = tuple(_translate(translator, [text], search, n_best)[0]) if text else ()
        except InputError as error:
            raise InputError(f"line {number}: {error}") from None
        yield LineResult(number=number, source=text, hypotheses=hypotheses)


def _translate(
    translator: Translator, texts: list[str], search: SearchOptions, n_best: int
) -> list[list[Hypothesis]]:
    return translator.translate(texts, n_best=n_best, **search.generation())
