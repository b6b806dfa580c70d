# SPDX-License-Identifier: Apache-2.0
"""Scores from summed statistics are sacrebleu's, on whole corpora and on degenerate ones."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tvmq.corpus_metrics import Bleu, Chrf

CORPORA = {
    "good": (["the cat sat on a mat.", "Dogs run away, today"], ["the cat sat on the mat.", "Dogs run!"]),
    "no 4-gram matches": (["the cat on my mat now", "x"], ["the cat sat on the mat", "y"]),
    "no 2-gram matches": (["the one cat mat here", "dog it"], ["the cat sat on the mat", "it dog"]),
    "nothing matches": (["zzz qqq vvv www xxx", "jjj"], ["the cat sat on the mat", "y"]),
    "too short for 4-grams": (["the cat", "a dog"], ["the cat", "a dog"]),
    "empty": (["", ""], ["the cat sat on the mat", "y"]),
    "empty references": (["the cat sat on it", "a"], ["", ""]),
    "too long": (["the cat sat on the mat and on and on", "y"], ["the cat sat on the mat", "y"]),
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize(("metric", "theirs"), [(Bleu, BLEU), (Chrf, CHRF)], ids=["BLEU", "chrF"])
def test_scores_are_sacrebleus(name: str, metric: type[Bleu | Chrf], theirs: type[BLEU | CHRF]) -> None:
    hypotheses, references = CORPORA[name]
    ours = metric()
    statistics = ours.statistics(hypotheses, references)
    expected = theirs().corpus_score(hypotheses, [references]).score
    assert ours.scores(statistics.sum(0, keepdims=True)) == pytest.approx([expected], abs=1e-9)
    assert ours.signature().startswith("nrefs:1|case:mixed|eff:")


def test_many_corpora_at_once() -> None:
    hypotheses, references = CORPORA["good"]
    bleu = Bleu()
    statistics = bleu.statistics(hypotheses, references)
    both = bleu.scores(np.stack([statistics[0], statistics.sum(0)]))
    first = BLEU().corpus_score(hypotheses[:1], [references[:1]]).score
    assert both == pytest.approx([first, BLEU().corpus_score(hypotheses, [references]).score], abs=1e-9)
