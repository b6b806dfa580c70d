# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF as sums over sentences, with sacrebleu's tokenization and counting.

sacrebleu scores one corpus in milliseconds, but a bootstrap needs thousands: here the last step, from
summed counts to the score, is NumPy over all resamples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .installation import require

ORDER = 4
"""n-gram orders of BLEU."""
BETA = 2.0
"""chrF2: recall counts twice as much as precision."""


class CorpusMetric(Protocol):
    """A score of a whole corpus that depends on its sentences through sums only."""

    name: str

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """What every sentence adds to the sums: float64[n, s]."""
        ...

    def scores(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[r, s] -> float64[r], 0 to 100."""
        ...

    def signature(self) -> str:
        """How the score was made; known once ``statistics`` ran."""
        ...


class Bleu:
    """Corpus BLEU with sacrebleu's defaults (13a tokens, exponential smoothing).

    Statistics: lengths of hypothesis and reference, then matching and all n-grams for n = 1 to 4.
    """

    name = "BLEU"

    def __init__(self) -> None:
        require("sacrebleu", "eval")
        from sacrebleu.metrics.bleu import BLEU

        self._metric = BLEU()

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """float64[n, 10]."""
        return _statistics(self._metric, hypotheses, references)

    def scores(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """exp(min(0, 1 - r / c)) * (p1 p2 p3 p4)**(1/4); the k-th order without a match has p = 1 / 2**k."""
        length, reference = sums[:, 0], sums[:, 1]
        correct, total = sums[:, 2 : 2 + ORDER], sums[:, 2 + ORDER :]
        missing = correct == 0
        smoothed = np.where(missing, 0.5 ** np.cumsum(missing, 1), correct)
        defined = (total > 0).all(1) & ~missing.all(1)
        precisions = smoothed / np.where(total > 0, total, 1)
        brevity = np.minimum(0, 1 - reference / np.where(length > 0, length, 1))
        return np.where(defined, 100 * np.exp(brevity + np.log(precisions).mean(1)), 0.0)

    def signature(self) -> str:
        """sacrebleu's."""
        return str(self._metric.get_signature())


class Chrf:
    """Corpus chrF2 with sacrebleu's defaults.

    Statistics: n-grams of the hypothesis, of the reference and common ones, for character n = 1 to 6.
    """

    name = "chrF"

    def __init__(self) -> None:
        require("sacrebleu", "eval")
        from sacrebleu.metrics.chrf import CHRF

        self._metric = CHRF()

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """float64[n, 18]."""
        return _statistics(self._metric, hypotheses, references)

    def scores(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(1 + b**2) p r / (b**2 p + r) of precision p and recall r, means over the orders that both have."""
        hypothesis, reference, common = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)
        used = (hypothesis > 0) & (reference > 0)
        orders = np.maximum(used.sum(1), 1)
        precision = (common / np.where(used, hypothesis, np.inf)).sum(1) / orders
        recall = (common / np.where(used, reference, np.inf)).sum(1) / orders
        weighted = BETA**2 * precision + recall
        return 100 * (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)

    def signature(self) -> str:
        """sacrebleu's."""
        return str(self._metric.get_signature())


def _statistics(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """What sacrebleu counts for each sentence; its own significance tests start from the same lists."""
    return np.array(metric._extract_corpus_statistics(list(hypotheses), [list(references)]), np.float64)
