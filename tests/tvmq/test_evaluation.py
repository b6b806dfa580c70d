# SPDX-License-Identifier: Apache-2.0
"""Reading pairs, scores with sacrebleu's signature, order after sorting by length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tvmq.errors import InputError
from tvmq.evaluation import (
    evaluate,
    read_hypotheses,
    read_pairs,
    score,
    translate_all,
    write_hypotheses,
)
from tvmq.options import SearchOptions


@dataclass(frozen=True)
class Said:
    text: str


class Echo:
    """Says the source again, or what it was told to say."""

    def __init__(self, **instead: str) -> None:
        self.instead = instead

    def translate(self, texts: list[str], **_: Any) -> list[list[Said]]:
        return [[Said(self.instead.get(text, text))] for text in texts]


def write(folder: Path, data: bytes) -> Path:
    path = folder / "data.tsv"
    path.write_bytes(data)
    return path


def test_pairs(tmp_path: Path) -> None:
    path = write(tmp_path, "Tür auf\tdoor open\r\n\nzu\tclosed\n".encode())
    assert read_pairs(path) == (["Tür auf", "zu"], ["door open", "closed"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no sentences; expected lines of source TAB reference"),
        (b"a\tb\nonly one\n", "line 2: 0 tabs; expected source TAB reference"),
        (b"a\tb\tc\n", "line 1: 2 tabs"),
        (b"a\tb\n\xff\tb\n", "line 2: not UTF-8"),
    ],
)
def test_bad_data_is_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(write(tmp_path, data))


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_pairs(tmp_path / "none.tsv")


def test_perfect_and_wrong_scores() -> None:
    text = ["the cat sat on the mat", "a dog ran far away today"]
    perfect = score(text, text)
    assert (perfect.metric, perfect.value, perfect.chrf, perfect.n) == ("BLEU", 100.0, 100.0, 2)
    assert perfect.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert score(["nothing at all like it", "zzz"], text).value < 5


def test_order_survives_sorting_by_length() -> None:
    sources = ["ccc", "a", "bb", "dddd", ""]
    assert translate_all(Echo(), sources, SearchOptions(batch_size=2)) == sources


def test_limit_takes_the_first_sentences(tmp_path: Path) -> None:
    path = write(tmp_path, b"one two three four five\tone two three four five\nx\ty\n")
    result = evaluate(Echo(), path, SearchOptions(), limit=1)
    assert (result.n, result.value) == (1, 100.0)


SENTENCES = ["the cat sat on the mat", "a dog ran far away today", "we saw it all from here"]


def write_data(folder: Path) -> Path:
    return write(folder, "".join(f"{text}\t{text}\n" for text in SENTENCES).encode())


def test_the_same_system_as_baseline_differs_by_nothing(tmp_path: Path) -> None:
    result = evaluate(Echo(), write_data(tmp_path), SearchOptions(), baseline=Echo())
    for found in (result.comparison, result.chrf_comparison):
        assert found is not None
        assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert "p_value" in result.to_json()
    assert "p_value" not in evaluate(Echo(), write_data(tmp_path), SearchOptions()).to_json()


def test_hypotheses_of_one_run_are_the_baseline_of_another(tmp_path: Path) -> None:
    data, lines = write_data(tmp_path), tmp_path / "worse.txt"
    worse = Echo(**{text: "the cat sat on nothing at all" for text in SENTENCES[:2]})
    first = evaluate(worse, data, SearchOptions())
    write_hypotheses(lines, first.outputs)
    result = evaluate(Echo(), data, SearchOptions(), baseline=lines)
    assert result.comparison == evaluate(Echo(), data, SearchOptions(), baseline=worse).comparison
    assert result.comparison is not None
    assert round(result.comparison.baseline_value, 2) == first.value < result.value
    assert result.comparison.difference == pytest.approx(100 - result.comparison.baseline_value)


def test_hypotheses_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    texts = ["Tür", "", "two\nlines\r", "para\u2029graph", ""]
    write_hypotheses(path, texts)
    assert read_hypotheses(path, 5) == ["Tür", "", "two lines ", "para\u2029graph", ""]
    assert read_hypotheses(write(tmp_path, b"a\r\nb"), 2) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb\n", "2 lines, expected 3, one for each line of the data"),
        (b"", "0 lines, expected 3"),
        (b"a\n\xff\nb\n", "not UTF-8"),
    ],
)
def test_bad_hypotheses(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_hypotheses(write(tmp_path, data), 3)
