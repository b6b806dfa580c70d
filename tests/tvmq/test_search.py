# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam search against transformers' generate, and on their own with made-up steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import MarianConfig, MarianMTModel

from tvmq.errors import UsageError
from tvmq.search import Candidate, SearchOptions, beam_search, greedy_search

EOS, PAD, VOCAB = 0, 49, 50
SOURCES = [[5, 9, 11, 3, EOS], [7, EOS], [20, 21, 22, 23, 24, 25, 26, EOS]]
Int = NDArray[np.int32]
Step = Callable[[Int, Int, Int, int], tuple[NDArray[np.float32], Int]]


def make_model(seed: int, eos_bias: float) -> MarianMTModel:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = MarianConfig(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        eos_token_id=EOS,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
        init_std=0.25,
    )
    model = MarianMTModel(config).eval().requires_grad_(False)
    model.final_logits_bias[0, EOS] = eos_bias
    return model


def padded(sources: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, sources))
    ids = torch.tensor([s + [PAD] * (width - len(s)) for s in sources])
    return ids, (ids != PAD).long()


class Rerun:
    """A step function that runs the whole decoder on the whole prefix: no cache to get wrong."""

    def __init__(self, model: MarianMTModel, sources: list[list[int]]) -> None:
        self.model = model
        ids, self.mask = padded(sources)
        self.memory = model.get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
        self.prefixes: list[list[int]] = [[] for _ in sources]
        self.rows = 0

    def logits(self, tokens: Int, parents: Int, sentences: Int) -> torch.Tensor:
        self.prefixes = [
            [*self.prefixes[p], t] for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)
        ]
        self.rows += len(tokens)
        which = torch.from_numpy(sentences.astype(np.int64))
        logits = self.model(
            encoder_outputs=(self.memory[which],),
            attention_mask=self.mask[which],
            decoder_input_ids=torch.tensor(self.prefixes),
        ).logits[:, -1]
        return logits

    def step(self, tokens: Int, parents: Int, sentences: Int, k: int) -> tuple[NDArray[np.float32], Int]:
        logp = self.logits(tokens, parents, sentences).log_softmax(-1)
        logp[:, PAD] = -math.inf
        best = logp.topk(k)
        return best.values.numpy(), best.indices.int().numpy()

    def greedy(self, tokens: Int, parents: Int, sentences: Int) -> Int:
        logits = self.logits(tokens, parents, sentences)
        logits[:, PAD] = -math.inf
        return logits.argmax(-1).int().numpy()


def generate(
    model: MarianMTModel, sources: list[list[int]], **options: Any
) -> tuple[list[list[int]], list[float]]:
    """transformers' outputs without start token and padding, and their scores."""
    ids, mask = padded(sources)
    out = model.generate(
        ids,
        attention_mask=mask,
        bad_words_ids=[[PAD]],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = [[t for t in row[1:] if t != PAD] for row in out.sequences.tolist()]
    scores = getattr(out, "sequences_scores", None)
    return rows, [] if scores is None else scores.tolist()


@pytest.mark.parametrize("forced", [EOS, None])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0, -1.0])
@pytest.mark.parametrize(("beams", "n_best"), [(2, 1), (4, 4), (5, 3)])
def test_beam_equals_generate(
    beams: int, n_best: int, penalty: float, early: bool, forced: int | None
) -> None:
    # end token: rare, common, nearly always
    for seed, eos_bias in enumerate((-1.0, 1.5, 3.5)):
        model = make_model(10 * beams + seed, eos_bias)
        rows, scores = generate(
            model,
            SOURCES,
            num_beams=beams,
            num_return_sequences=n_best,
            length_penalty=penalty,
            early_stopping=early,
            forced_eos_token_id=forced,
            max_new_tokens=9,
        )
        options = SearchOptions(
            beams=beams,
            n_best=n_best,
            length_penalty=penalty,
            early_stopping=early,
            max_new_tokens=9,
            eos_id=EOS,
            start_id=PAD,
            forced_eos_id=forced,
        )
        found = [c for best in beam_search(Rerun(model, SOURCES).step, len(SOURCES), options) for c in best]
        assert [list(c.tokens) for c in found] == rows
        np.testing.assert_allclose([c.score for c in found], scores, rtol=1e-5)


@pytest.mark.parametrize("forced", [EOS, None])
@pytest.mark.parametrize(("seed", "eos_bias"), [(0, -1.0), (1, 1.0), (2, 2.5), (3, 4.0)])
def test_greedy_equals_generate(seed: int, eos_bias: float, forced: int | None) -> None:
    model = make_model(seed, eos_bias)
    rows, _ = generate(model, SOURCES, num_beams=1, forced_eos_token_id=forced, max_new_tokens=12)
    options = SearchOptions(
        length_penalty=0.0, max_new_tokens=12, eos_id=EOS, start_id=PAD, forced_eos_id=forced
    )
    steps = Rerun(model, SOURCES)
    found = greedy_search(steps.step, len(SOURCES), options)
    assert [list(best[0].tokens) for best in found] == rows
    steps = Rerun(model, SOURCES)
    fast = greedy_search(None, len(SOURCES), options, greedy_step=steps.greedy)
    assert [best[0].tokens for best in fast] == [best[0].tokens for best in found]
    assert all(math.isnan(best[0].score) for best in fast)
    # the last token costs no step when it is forced
    free = forced is not None
    assert steps.rows == sum(len(row) - (free and len(row) == 12) for row in rows)
    log_probabilities = Rerun(model, SOURCES[:1])
    total = 0.0
    for i, token in enumerate([PAD, *rows[0]][:-1]):
        logits = log_probabilities.logits(np.array([token], np.int32), *np.zeros((2, 1), np.int32))
        if not (free and i == 11):
            total += float(logits.log_softmax(-1)[0, rows[0][i]])
    assert found[0][0].score == pytest.approx(total, rel=1e-5)


def hashed_step(keys: list[int], *, eos_rate: float = 0.1) -> Step:
    """A step over 12 words whose log probabilities depend on the sentence's key and the whole prefix only."""
    prefixes: list[tuple[int, ...]] = [()] * len(keys)

    def step(tokens: Int, parents: Int, sentences: Int, k: int) -> tuple[NDArray[np.float32], Int]:
        nonlocal prefixes
        assert tokens.dtype == parents.dtype == sentences.dtype == np.int32
        assert tokens.shape == parents.shape == sentences.shape
        assert all(a.flags.c_contiguous for a in (tokens, parents, sentences))
        assert (np.diff(sentences) >= 0).all()
        prefixes = [(*prefixes[p], t) for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
        logp = np.empty((len(tokens), k), np.float32)
        ids = np.empty((len(tokens), k), np.int32)
        for row, (sentence, prefix) in enumerate(zip(sentences.tolist(), prefixes, strict=True)):
            weights = np.random.default_rng([keys[sentence], *prefix]).random(12) ** 3 + 1e-3
            weights[EOS] = eos_rate * weights.sum()
            scores = np.log(weights / weights.sum()).astype(np.float32)
            ids[row] = np.argsort(-scores, kind="stable")[:k]
            logp[row] = scores[ids[row]]
        return logp, ids

    return step


@settings(deadline=None, max_examples=40)
@given(
    keys=st.lists(st.integers(0, 1000), min_size=2, max_size=5),
    beams=st.integers(1, 5),
    penalty=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    early=st.booleans(),
    eos_rate=st.sampled_from([0.02, 0.1, 0.4]),
    forced=st.sampled_from([None, EOS]),
)
def test_a_sentence_does_not_depend_on_its_batch(
    keys: list[int], beams: int, penalty: float, early: bool, eos_rate: float, forced: int | None
) -> None:
    options = SearchOptions(
        beams=beams,
        n_best=beams,
        length_penalty=penalty,
        early_stopping=early,
        max_new_tokens=7,
        eos_id=EOS,
        start_id=11,
        forced_eos_id=forced,
    )
    found = beam_search(hashed_step(keys, eos_rate=eos_rate), len(keys), options)
    alone = [beam_search(hashed_step([key], eos_rate=eos_rate), 1, options)[0] for key in keys]
    assert found == alone
    for best in found:
        assert len(best) == beams
        assert len({c.tokens for c in best}) == beams
        assert [c.score for c in best] == sorted((c.score for c in best), reverse=True)
        for c in best:
            assert EOS not in c.tokens[:-1]
            assert c.tokens[-1] == EOS or (len(c.tokens) == 7 and forced is None)


@settings(deadline=None, max_examples=15)
@given(key=st.integers(0, 1000), penalty=st.sampled_from([0.5, 1.0]))
def test_wide_beam_finds_the_best_of_all(key: int, penalty: float) -> None:
    """Three steps over 12 words: 200 beams hold everything, so the result is the true optimum."""
    step = hashed_step([key])
    words = 12

    def wide(tokens: Int, parents: Int, sentences: Int, k: int) -> tuple[NDArray[np.float32], Int]:
        logp, ids = step(tokens, parents, sentences, words)
        filler = np.full((len(tokens), k - words), -1e6, np.float32)
        return np.hstack([logp, filler]), np.hstack([ids, np.full(filler.shape, 7, np.int32)])

    options = SearchOptions(
        beams=200, length_penalty=penalty, max_new_tokens=3, eos_id=EOS, start_id=11, forced_eos_id=EOS
    )
    best = beam_search(wide, 1, options)[0][0]

    def outputs() -> list[Candidate]:
        found = []
        scores: dict[tuple[int, ...], dict[int, float]] = {}

        def look(prefix: tuple[int, ...]) -> dict[int, float]:
            if prefix not in scores:
                fresh = hashed_step([key])
                for token in (11, *prefix):
                    one = np.array([token], np.int32)
                    logp, ids = fresh(one, np.zeros(1, np.int32), np.zeros(1, np.int32), words)
                scores[prefix] = dict(zip(ids[0].tolist(), logp[0].tolist(), strict=True))
            return scores[prefix]

        found.append(Candidate((EOS,), look(())[EOS]))
        for a in range(1, words):
            found.append(Candidate((a, EOS), (look(())[a] + look((a,))[EOS]) / 2**penalty))
            found += [
                Candidate((a, b, EOS), (look(())[a] + look((a,))[b]) / 3**penalty) for b in range(1, words)
            ]
        return found

    optimum = max(outputs(), key=lambda c: c.score)
    assert best.tokens == optimum.tokens
    assert best.score == pytest.approx(optimum.score, rel=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_forced_length_ignores_the_end_token(beams: int) -> None:
    options = SearchOptions(
        beams=beams,
        n_best=beams,
        max_new_tokens=30,
        forced_length=13,
        eos_id=EOS,
        start_id=11,
        forced_eos_id=EOS,
        early_stopping=True,
    )
    found = beam_search(hashed_step([1, 2], eos_rate=0.9), 2, options)
    assert all(len(c.tokens) == 13 for best in found for c in best)
    assert found[0][0].tokens.count(EOS) > 1


def test_finished_sentences_cost_nothing() -> None:
    """Sentence 0 ends at once, sentence 1 goes on: only its rows are stepped."""
    sizes = []

    def step(tokens: Int, parents: Int, sentences: Int, k: int) -> tuple[NDArray[np.float32], Int]:
        sizes.append(sentences.tolist())
        logp = np.log(np.linspace(1.0, 0.1, k) / 20).astype(np.float32)
        rows = [np.r_[EOS, 1:k] if s == 0 else np.r_[1 : k + 1] for s in sentences.tolist()]
        return np.tile(logp, (len(tokens), 1)), np.array(rows, np.int32)

    options = SearchOptions(beams=2, early_stopping=True, max_new_tokens=4, eos_id=EOS, start_id=9)
    beam_search(step, 2, options)
    assert sizes == [[0, 1], [0, 0, 1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": 0}, "beams is 0"),
        ({"n_best": 5}, "n-best is 5, expected 1 to 4"),
        ({"n_best": 0}, "n-best is 0"),
        ({"length_penalty": math.nan}, "length penalty is nan"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"forced_length": 11}, "forced length is 11"),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchOptions(**({"beams": 4, "max_new_tokens": 10, "eos_id": 0, "start_id": 1} | changes))
