# SPDX-License-Identifier: Apache-2.0
"""Line streaming over a translator that upper-cases: order, batching, empty lines, errors by line number."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.errors import InputError
from tvmq.options import SearchOptions
from tvmq.streaming import MAX_LINE_BYTES, read_batches, translate_lines


@dataclass(frozen=True)
class Said:
    text: str
    tokens: tuple[int, ...] = (1, 0)
    score: float = -1.0


@dataclass
class Upper:
    """Upper-cases; refuses texts of more than ten words, as a model with a length limit does."""

    calls: list[list[str]] = field(default_factory=list)

    def translate(self, texts: list[str], *, n_best: int = 1, **_: Any) -> list[list[Said]]:
        self.calls.append(texts)
        for text in texts:
            if len(text.split()) > 10:
                raise InputError(f"{len(text.split())} words are over this model's limit of 10")
        return [[Said(f"{text.upper()}{'!' * i}") for i in range(n_best)] for text in texts]


def run(data: bytes, *, batch: int = 2, **options: Any) -> list[tuple[int, str]]:
    lines = translate_lines(Upper(), io.BytesIO(data), SearchOptions(batch_size=batch), **options)
    return [(line.number, line.hypotheses[0].text if line.hypotheses else "") for line in lines]


def test_order_empty_lines_and_a_missing_last_newline() -> None:
    assert run(b"one\n\ntwo\r\n   \nthree") == [(1, "ONE"), (2, ""), (3, "TWO"), (4, ""), (5, "THREE")]


def test_empty_input_gives_nothing() -> None:
    assert run(b"") == []


def test_the_translator_never_sees_an_empty_line() -> None:
    translator = Upper()
    list(translate_lines(translator, io.BytesIO(b"\n \na\n\n"), SearchOptions(batch_size=2)))
    assert translator.calls == [["a"]]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"))


@given(st.lists(TEXTS, max_size=20), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_lines_and_batches_are_kept(lines: list[str], size: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    batches = list(read_batches(io.BytesIO(data), size))
    assert [line.decode() for batch in batches for line in batch] == lines
    assert all(1 <= len(batch) <= size for batch in batches)


def test_n_best_gives_that_many() -> None:
    (line,) = translate_lines(Upper(), io.BytesIO(b"a\n"), SearchOptions(), n_best=3)
    assert [hypothesis.text for hypothesis in line.hypotheses] == ["A", "A!", "A!!"]


def test_bad_bytes_name_their_line_after_the_lines_before() -> None:
    results = translate_lines(Upper(), io.BytesIO(b"a\nb\xff\nc\n"), SearchOptions(batch_size=8))
    assert next(results).hypotheses[0].text == "A"
    message = "line 2: byte 2 is not UTF-8; convert the text or use --errors replace"
    with pytest.raises(InputError, match=message):
        next(results)


def test_bad_bytes_can_be_replaced() -> None:
    assert run(b"a\xff\n", undecodable="replace") == [(1, "A\ufffd")]


def test_a_refused_line_is_named_after_the_lines_before() -> None:
    results = translate_lines(
        Upper(), io.BytesIO(b"a\n\n" + b"w " * 10_000 + b"\nb\n"), SearchOptions(batch_size=8)
    )
    assert [next(results).number, next(results).number] == [1, 2]
    with pytest.raises(InputError, match="line 3: 10000 words are over this model's limit of 10"):
        next(results)


def test_an_endless_line_is_refused_before_it_fills_memory() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read1(self, size: int) -> bytes:
            self.given += size
            return b"x" * size

    stream = Endless()
    with pytest.raises(InputError, match="line 1: longer than 1 MiB"):
        list(read_batches(stream, 4))
    assert stream.given < 3 * MAX_LINE_BYTES


def test_a_waiting_writer_gets_an_answer_to_every_line() -> None:
    """A short batch is handed over when the pipe has no more, not when a full batch is there."""
    reader, writer = os.pipe()
    answers: list[str] = []
    arrived = threading.Event()

    def consume() -> None:
        with os.fdopen(reader, "rb") as stream:
            for line in translate_lines(Upper(), stream, SearchOptions(batch_size=16)):
                answers.append(line.hypotheses[0].text)
                arrived.set()

    thread = threading.Thread(target=consume)
    thread.start()
    os.write(writer, b"one\n")
    assert arrived.wait(30)
    assert answers == ["ONE"]
    os.write(writer, b"two\n")
    os.close(writer)
    thread.join(30)
    assert answers == ["ONE", "TWO"]
