# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals and paired tests of corpus scores: bootstrap resampling (Koehn 2004), McNemar's test.

A corpus score is a function of sums over sentences (n-gram matches and lengths for BLEU and chrF, right
answers for an accuracy), so a resample costs one weighted sum, whatever the score. Only NumPy here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 12345
LEVEL = 0.95

Statistics: TypeAlias = NDArray[np.float64]
"""[n, s]: what each of n sentences adds to the s sums that a score is made of."""
Scores: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Sums [r, s] -> scores [r]."""
Interval: TypeAlias = tuple[float, float]
"""Ends of the interval that holds ``LEVEL`` of the resamples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A system against a baseline on the same sentences.

    Attributes:
        baseline_value: score of the baseline.
        difference: score of the system minus that of the baseline.
        interval: of the difference.
        p_value: two-sided, of the hypothesis that both are equally good.
    """

    baseline_value: float
    difference: float
    interval: Interval
    p_value: float


def draws(n: int, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.int64]:
    """The sentences of every resample, with replacement: int64[resamples, n]."""
    return np.random.default_rng(seed).integers(0, n, (resamples, n))


def resampled_scores(
    statistics: Statistics, scores: Scores, resamples: int = RESAMPLES, seed: int = SEED
) -> NDArray[np.float64]:
    """The score of every resample, float64[resamples].

    Systems with the same number of sentences, resamples and seed are scored on the same draws.
    """
    n = len(statistics)
    random = np.random.default_rng(seed)
    sums = np.empty((resamples, statistics.shape[1]))
    for row in sums:  # the rows of ``draws``, one at a time: memory does not grow with the corpus
        row[:] = np.bincount(random.integers(0, n, n), minlength=n) @ statistics
    return scores(sums)


def percentile_interval(values: NDArray[np.float64]) -> Interval:
    """The middle ``LEVEL`` of resampled values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def two_sided_p_value(differences: NDArray[np.float64], difference: float) -> float:
    """How often chance alone gives a difference as large, from resampled ``differences``.

    Under the hypothesis of equal systems the differences have the same spread around zero, so they are
    shifted by their mean; 1 is added on both sides, so that p is never 0 (Davison and Hinkley 1997, 4.2).
    """
    extreme = np.abs(differences - differences.mean()) >= abs(difference)
    return float((extreme.sum() + 1) / (len(differences) + 1))


def score_interval(statistics: Statistics, scores: Scores) -> Interval:
    """Bootstrap interval of one system's score."""
    return percentile_interval(resampled_scores(statistics, scores))


def compare(system: Statistics, baseline: Statistics, scores: Scores) -> Comparison:
    """Paired bootstrap of two systems; both [n, s], the same sentences in the same order."""
    value, other = (float(scores(s.sum(0, keepdims=True))[0]) for s in (system, baseline))
    resampled = resampled_scores(system, scores), resampled_scores(baseline, scores)
    return compare_samples((value, resampled[0]), (other, resampled[1]))


def compare_samples(
    system: tuple[float, NDArray[np.float64]], baseline: tuple[float, NDArray[np.float64]]
) -> Comparison:
    """Paired bootstrap of two systems, given score and resampled scores of each on the same draws."""
    difference, differences = system[0] - baseline[0], system[1] - baseline[1]
    return Comparison(
        baseline_value=baseline[0],
        difference=difference,
        interval=percentile_interval(differences),
        p_value=two_sided_p_value(differences, difference),
    )


def mcnemar(system: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value of McNemar's test (1947): where just one of two is right, each is as often.

    Args:
        system, baseline: bool[n], which answers were right.
    """
    only = [int((system & ~baseline).sum()), int((baseline & ~system).sum())]
    n = sum(only)
    tail = sum(math.comb(n, i) for i in range(min(only) + 1))
    return min(1.0, 2 * tail / 2**n)
