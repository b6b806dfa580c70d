# SPDX-License-Identifier: Apache-2.0
"""Quality of an encoder: accuracy of its labels, or Spearman correlation of its cosines with human scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, UsageError
from .evaluation import comparison_json, read_columns, read_hypotheses
from .options import Progress, SearchOptions, no_progress
from .significance import (
    Comparison,
    Interval,
    compare,
    compare_samples,
    draws,
    mcnemar,
    percentile_interval,
    score_interval,
)
from .store import show

if TYPE_CHECKING:
    from .encoder import Encoder, Text

Metric = Literal["accuracy", "spearman"]
LABELLED, SCORED = "text TAB label (or text TAB text TAB label)", "text TAB text TAB score"
_STEP = 256
"""Texts between two reports of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderEvalResult:
    """Score of one data set.

    Attributes:
        metric: ``accuracy`` (per cent of the texts) or ``spearman`` (-1 to 1).
        value, value_interval: the score and its 95 % bootstrap interval.
        signature: what exactly was computed.
        n: number of lines.
        seconds: wall time of the encoding alone.
        outputs: what was scored, one a line: labels, or cosines.
        comparison: with the baseline's, by paired bootstrap, if one was given.
        mcnemar_p: accuracy only: exact p-value of McNemar's test against the baseline.
    """

    metric: Metric
    value: float
    value_interval: Interval
    signature: str
    n: int
    seconds: float
    outputs: tuple[str, ...]
    comparison: Comparison | None = None
    mcnemar_p: float | None = None

    @property
    def digits(self) -> int:
        """Decimals that mean something."""
        return 2 if self.metric == "accuracy" else 4

    def to_json(self) -> dict[str, Any]:
        """What ``tvmq eval --json`` prints."""
        result: dict[str, Any] = {
            "metric": self.metric,
            "value": round(self.value, self.digits),
            "signature": self.signature,
            "n": self.n,
            "value_interval": [round(end, self.digits) for end in self.value_interval],
        }
        if self.comparison is not None:
            result |= comparison_json(self.comparison, self.digits)
        if self.mcnemar_p is not None:
            result["mcnemar_p"] = round(self.mcnemar_p, 4)
        return result


def evaluate_encoder(
    artifact: Path,
    data: Path,
    search: SearchOptions,
    *,
    metric: str | None = None,
    limit: int | None = None,
    baseline: Path | None = None,
    truncate: bool = False,
    progress: Progress = no_progress,
) -> EncoderEvalResult:
    """Encode the texts of ``data`` and score what comes out.

    Args:
        artifact: an encoder's folder.
        data: UTF-8 lines, see ``LABELLED`` and ``SCORED``; a label is a name or a number.
        search: batch size, threads and ISA level, of the baseline too.
        metric: None is accuracy for models that label texts, else spearman.
        limit: only the first lines.
        baseline: another artifact, or a file with one output a line.
        truncate: cut texts that are too long.
        progress: called every few texts.

    Raises:
        InputError: unusable data, baseline or artifact, or a label that the model does not have.
        UsageError: a metric that does not fit the model.
    """
    from .encoder import load

    def outputs_of(encoder: Encoder, phase: str) -> list[str]:
        encode = _labels if chosen == "accuracy" else _cosines
        return encode(
            encoder, rows, search.batch_size, truncate, lambda done: progress(phase, done, len(rows))
        )

    with closing(load(artifact, threads=search.threads, isa=search.isa)) as encoder:
        chosen = pick_metric(encoder.head, metric)
        rows = read_columns(data, *_COLUMNS[chosen], limit=limit)
        labels, start = encoder.labels, time.perf_counter()
        outputs = outputs_of(encoder, "encoding")
        seconds = time.perf_counter() - start
    other = None
    if baseline is not None and baseline.is_dir():
        with closing(load(baseline, threads=search.threads, isa=search.isa)) as encoder:
            pick_metric(encoder.head, chosen)
            other = outputs_of(encoder, "encoding with the baseline")
    elif baseline is not None:
        other = read_hypotheses(baseline, len(rows))
    if chosen == "accuracy":
        return score_labels(outputs, [row[-1] for row in rows], labels, baseline=other, seconds=seconds)
    return score_cosines(outputs, [row[-1] for row in rows], baseline=other, seconds=seconds)


def pick_metric(head: str, wanted: str | None) -> Metric:
    """The metric for a model with ``head``; UsageError where the wanted one does not fit it."""
    if wanted is None:
        return "accuracy" if head == "classify" else "spearman"
    if wanted == "spearman":
        return "spearman"
    if wanted == "accuracy" and head == "classify":
        return "accuracy"
    fits = "accuracy or spearman" if head == "classify" else "spearman"
    raise UsageError(f"--metric {wanted} does not fit this model, which is an encoder; take {fits}")


def score_labels(
    outputs: Sequence[str],
    gold: Sequence[str],
    labels: Sequence[str],
    *,
    baseline: Sequence[str] | None = None,
    seconds: float = 0.0,
) -> EncoderEvalResult:
    """Accuracy in per cent, with bootstrap interval, paired bootstrap and McNemar's test.

    Args:
        outputs: labels by name.
        gold: what they should be, by name or by number.
        labels: names of the classes by their numbers.
        baseline: another system's labels, for the tests.
        seconds: stored in the result.
    """
    wanted = [_label(text, labels, f"line {number} of the data") for number, text in enumerate(gold, 1)]
    right = np.array([a == b for a, b in zip(outputs, wanted, strict=True)])
    others = None
    if baseline is not None:
        found = [_label(text, labels, f"line {n} of the baseline") for n, text in enumerate(baseline, 1)]
        others = np.array([a == b for a, b in zip(found, wanted, strict=True)])

    def accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return 100 * sums[:, 0] / len(right)

    statistics = right[:, None].astype(np.float64)
    return EncoderEvalResult(
        metric="accuracy",
        value=100 * float(right.mean()),
        value_interval=score_interval(statistics, accuracy),
        signature=f"accuracy|labels:{','.join(labels)}",
        n=len(right),
        seconds=seconds,
        outputs=tuple(outputs),
        comparison=None if others is None else compare(statistics, others[:, None].astype(float), accuracy),
        mcnemar_p=None if others is None else mcnemar(right, others),
    )


def score_cosines(
    outputs: Sequence[str],
    gold: Sequence[str],
    *,
    baseline: Sequence[str] | None = None,
    seconds: float = 0.0,
) -> EncoderEvalResult:
    """Spearman's rank correlation of cosines with human scores, with interval and paired bootstrap."""
    wanted = _numbers(gold, "the data")
    found = _numbers(outputs, "the outputs")
    others = None if baseline is None else _numbers(baseline, "the baseline")
    value, values = _resampled(found, wanted)
    comparison = None
    if others is not None:
        comparison = compare_samples((value, values), _resampled(others, wanted))
    return EncoderEvalResult(
        metric="spearman",
        value=value,
        value_interval=percentile_interval(values),
        signature="spearman|cosine|ties:mean",
        n=len(wanted),
        seconds=seconds,
        outputs=tuple(outputs),
        comparison=comparison,
    )


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation of the ranks of [n] and [n]; equal values share their mean rank, all equal give 0."""
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[group]


def _resampled(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The correlation, and that of every resample."""
    values = [spearman(found[rows], wanted[rows]) for rows in draws(len(found))]
    return spearman(found, wanted), np.array(values)


def _labels(
    encoder: Encoder, rows: Sequence[Sequence[str]], size: int, truncate: bool, report: Callable[[int], None]
) -> list[str]:
    texts: list[Text] = [(row[0], row[1]) if len(row) == 3 else row[0] for row in rows]
    found: list[str] = []
    for start in range(0, len(texts), _STEP):
        report(start)
        part = texts[start : start + _STEP]
        found += [best.label for best in encoder.classify(part, batch_size=size, truncate=truncate)]
    report(len(texts))
    return found


def _cosines(
    encoder: Encoder, rows: Sequence[Sequence[str]], size: int, truncate: bool, report: Callable[[int], None]
) -> list[str]:
    found: list[str] = []
    for start in range(0, len(rows), _STEP):
        report(start)
        part = rows[start : start + _STEP]
        sides = [[row[side] for row in part] for side in (0, 1)]
        a, b = (
            encoder.embed(texts, batch_size=size, truncate=truncate).astype(np.float64) for texts in sides
        )
        sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found += [f"{value:.6f}" for value in (a * b).sum(1) / np.maximum(sizes, 1e-30)]
    report(len(rows))
    return found


def _label(text: str, labels: Sequence[str], where: str) -> str:
    """The name of a label that is given by name or by number."""
    if text in labels:
        return text
    if text.isascii() and text.isdigit() and int(text) < len(labels):
        return labels[int(text)]
    raise InputError(f"{where}: unknown label {show(text)}; the model's labels: {', '.join(labels)}")


def _numbers(texts: Sequence[str], where: str) -> NDArray[np.float64]:
    values = []
    for number, text in enumerate(texts, 1):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"line {number} of {where}: {show(text)} is no number")
        values.append(value)
    return np.array(values)


_COLUMNS = {"accuracy": (LABELLED, (2, 3)), "spearman": (SCORED, (3,))}
