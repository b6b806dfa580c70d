# SPDX-License-Identifier: Apache-2.0
"""A loaded artifact: the same bits for any threads, batches and neighbours, the same words at every level.

All of it on the native runtime and on TVM's virtual machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmq
from targets import detect_host
from tvmq.errors import InputError, UsageError
from tvmq.loading import EXECUTOR

PRESETS = ("3-bit", "chung2020-2.5-1.8-3.7", "fp32")
LENGTHS = (5, 1, 30, 12, 12, 2, 7, 18, 3, 25)


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    """Random sentences of many lengths, one of them empty."""
    rng = np.random.default_rng(5)
    made = [[*rng.integers(2, 319, length).tolist(), 0] for length in LENGTHS]
    return [*made[:4], [], *made[4:]]


@pytest.fixture(scope="module", params=["native", "vm"])
def executor(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EXECUTOR, request.param)
        yield request.param


@pytest.fixture(scope="module", params=PRESETS)
def artifact(request: pytest.FixtureRequest, compiled: Callable[..., Path], executor: str) -> Path:
    return compiled(request.param, target="linux-x86-64")


@pytest.fixture(scope="module")
def translator(artifact: Path) -> Iterator[Any]:
    with closing(tvmq.load(artifact)) as opened:
        yield opened


def test_what_runs(translator: Any, executor: str) -> None:
    model = {"native": "NativeTranslation", "vm": "TranslationModel"}[executor]
    assert type(translator._model).__name__ == model


def answers(translator: Any, sources: list[list[int]], **options: Any) -> list[list[tuple[Any, ...]]]:
    """Tokens and scores of every hypothesis; greedy search has no scores."""
    found = translator.translate_ids(sources, **options)
    return [[(h.tokens, None if math.isnan(h.score) else h.score) for h in best] for best in found]


@pytest.mark.parametrize("beams", [1, 4])
def test_batches_and_neighbours_do_not_matter(translator: Any, sources: list[list[int]], beams: int) -> None:
    options: dict[str, Any] = {"beams": beams, "n_best": beams}
    expected = answers(translator, sources, **options)
    for size in (1, 3, 100):
        assert answers(translator, sources, batch_size=size, **options) == expected
    assert answers(translator, sources[::-1], **options) == expected[::-1]
    assert [answers(translator, [source], **options)[0] for source in sources] == expected
    assert expected[4] == [((), 0.0)]


@pytest.mark.parametrize("beams", [1, 4])
def test_threads_do_not_matter(artifact: Path, sources: list[list[int]], beams: int) -> None:
    with closing(tvmq.load(artifact)) as one:
        expected = answers(one, sources, beams=beams)
    with closing(tvmq.load(artifact, threads=2)) as two:
        assert answers(two, sources, beams=beams) == expected


def test_every_isa_level_gives_the_same_words_and_scores(artifact: Path, sources: list[list[int]]) -> None:
    levels = tvmq.inspect(artifact)["isa_levels"]
    outputs = []
    for level in set(levels) & set(detect_host()):
        with closing(tvmq.load(artifact, isa=level)) as opened:
            assert opened.isa == level
            outputs.append(answers(opened, sources, beams=4, n_best=4))
    assert len(outputs) > 1
    assert all(found == outputs[0] for found in outputs)


def test_hypotheses_are_sorted_and_distinct(translator: Any, sources: list[list[int]]) -> None:
    for best in answers(translator, [source for source in sources if source], beams=4, n_best=4):
        scores = [score for _, score in best]
        assert scores == sorted(scores, reverse=True)
        assert len({tokens for tokens, _ in best}) == 4


def test_lengths(translator: Any, sources: list[list[int]]) -> None:
    limit = int(translator.manifest.generation["max_new_tokens"])
    for beams in (1, 4):
        assert max(len(b[0][0]) for b in answers(translator, sources, beams=beams)) <= limit
        forced = answers(translator, sources[:4], beams=beams, forced_length=7)
        assert [len(best[0][0]) for best in forced] == [7] * 4
        short = answers(translator, sources[:4], beams=beams, max_new_tokens=2)
        assert max(len(best[0][0]) for best in short) == 2


def test_text_in_and_out(translator: Any) -> None:
    (first,), (empty,), (last,) = translator.translate(["aaaa aaab", " ", "abc"], beams=4)
    assert empty.text == ""
    assert first.text == translator.tokenizer.decode(first.tokens)
    assert last.tokens
    assert translator.translate([]) == []


def test_what_it_refuses(translator: Any, artifact: Path) -> None:
    with pytest.raises(InputError, match="sentence 2 has 513 tokens, the model takes at most 512"):
        translator.translate_ids([[5, 0], [5] * 513])
    with pytest.raises(InputError, match=r"sentence 1 holds a token id outside 0\.\.319"):
        translator.translate_ids([[320, 0]])
    with pytest.raises(InputError, match="outside"):
        translator.translate_ids([[-1, 0]])
    for options in ({"beams": 0}, {"beams": 160}, {"n_best": 5}, {"max_new_tokens": 512}, {"batch_size": 0}):
        with pytest.raises(UsageError):
            translator.translate_ids([[5, 0]], **options)
    with pytest.raises(UsageError, match="threads is 0"):
        tvmq.load(artifact, threads=0)


def test_a_closed_translator_says_so(artifact: Path) -> None:
    with tvmq.load(artifact) as opened:
        pass
    with pytest.raises(UsageError, match="was closed"):
        opened.translate(["aaaa"])


def test_the_longest_source_fits(translator: Any) -> None:
    rng = np.random.default_rng(1)
    (best,) = answers(translator, [rng.integers(2, 319, 512).tolist()], beams=1)
    assert best[0][0]
