# SPDX-License-Identifier: Apache-2.0
"""Bootstrap against sacrebleu on lists resampled one by one; intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tvmq.corpus_metrics import Bleu, Chrf
from tvmq.significance import (
    compare,
    draws,
    percentile_interval,
    resampled_scores,
    score_interval,
    two_sided_p_value,
)

REFERENCES = [
    "the cat sat on the mat.",
    "a dog ran far away today, they said",
    "we saw it all from up here on the hill",
    "nothing is as it was before the rain",
    "please close the door when you leave",
]
SYSTEM = [
    "the cat sat on a mat.",
    "a dog ran away today, they said",
    "we saw all of it from here on a hill",
    "nothing is as it was before rain",
    "please close the door when you go",
]


def mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of right answers, in per cent: the second sum counts the sentences."""
    return 100 * sums[:, 0] / sums[:, 1]


def answers(right: NDArray) -> NDArray[np.float64]:
    return np.stack([right, np.ones_like(right)], 1).astype(np.float64)


@pytest.mark.parametrize(("metric", "theirs"), [(Bleu, BLEU), (Chrf, CHRF)], ids=["BLEU", "chrF"])
def test_resampled_scores_are_sacrebleus(metric: type[Bleu | Chrf], theirs: type[BLEU | CHRF]) -> None:
    """Each resample is scored by sacrebleu as a corpus of its own."""
    ours = metric()
    found = resampled_scores(ours.statistics(SYSTEM, REFERENCES), ours.scores, resamples=60, seed=7)
    expected = [
        theirs().corpus_score([SYSTEM[i] for i in row], [[REFERENCES[i] for i in row]]).score
        for row in draws(len(SYSTEM), resamples=60, seed=7)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_identical_systems() -> None:
    bleu = Bleu()
    statistics = bleu.statistics(SYSTEM, REFERENCES)
    found = compare(statistics, statistics, bleu.scores)
    assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert found.baseline_value == pytest.approx(BLEU().corpus_score(SYSTEM, [REFERENCES]).score)


def test_a_pair_shares_its_draws() -> None:
    """One more right answer everywhere: the difference does not vary, though both scores do."""
    right = np.arange(40) % 3 == 0
    wide = np.stack([right, np.ones(40)], 1).astype(np.float64)
    higher = wide + np.array([1, 0])
    low, high = compare(higher, wide, mean).interval
    assert (low, high) == pytest.approx((100, 100))
    low, high = score_interval(wide, mean)
    assert high - low > 10


def test_sign_and_p_value_of_a_clear_difference() -> None:
    right = np.arange(500) % 10
    better, worse = answers(right < 9), answers(right < 7)
    up, down = compare(better, worse, mean), compare(worse, better, mean)
    assert up.difference == pytest.approx(20)
    assert (up.difference, up.interval[0]) == pytest.approx((-down.difference, -down.interval[1]))
    assert up.interval[0] > 15
    assert up.p_value == down.p_value < 0.001


def test_p_value_by_hand() -> None:
    differences = np.array([1.0, 2.0, 3.0, 6.0])  # around their mean 3: -2, -1, 0, 3
    assert two_sided_p_value(differences, 2.0) == pytest.approx((2 + 1) / 5)
    assert two_sided_p_value(differences, -2.5) == pytest.approx((1 + 1) / 5)


def test_interval_holds_the_truth_as_often_as_promised() -> None:
    """200 samples of 100 answers that are right with probability 0.6."""
    random = np.random.default_rng(1)
    intervals = [score_interval(answers(random.random(100) < 0.6), mean) for _ in range(200)]
    assert 0.90 <= np.mean([low <= 60 <= high for low, high in intervals]) <= 0.985


def test_equal_systems_are_rarely_found_different() -> None:
    """p below 0.05 in about one of twenty pairs of systems that are equally good."""
    random = np.random.default_rng(2)
    pairs = [(answers(random.random(100) < 0.6), answers(random.random(100) < 0.6)) for _ in range(200)]
    rejected = np.mean([compare(a, b, mean).p_value < 0.05 for a, b in pairs])
    assert 0.01 <= rejected <= 0.11


def test_percentiles() -> None:
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25, 975))
