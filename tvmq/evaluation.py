# SPDX-License-Identifier: Apache-2.0
"""Quality of translations against references and against another system's: BLEU and chrF by sacrebleu."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compressed import SUFFIX, decompress
from .corpus_metrics import Bleu, Chrf, CorpusMetric
from .errors import InputError, UsageError
from .installation import require
from .options import Progress, SearchOptions, no_progress
from .significance import Comparison, Interval, compare, score_interval
from .store import atomic_write

if TYPE_CHECKING:
    from .runtime import Translator

MAX_DATA_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Scores of one data set.

    Attributes:
        metric: always ``BLEU``.
        value: corpus BLEU, 0 to 100.
        value_interval: 95 % bootstrap interval of ``value``.
        chrf: corpus chrF2, 0 to 100.
        chrf_value_interval: 95 % bootstrap interval of ``chrf``.
        signature: sacrebleu's signature of the BLEU score.
        n: number of sentences.
        seconds: wall time of the translation alone.
        outputs: the translations that were scored.
        comparison: of BLEU with the baseline's, if one was given.
        chrf_comparison: of chrF with the baseline's, if one was given.
    """

    metric: str
    value: float
    value_interval: Interval
    chrf: float
    chrf_value_interval: Interval
    signature: str
    n: int
    seconds: float
    outputs: tuple[str, ...]
    comparison: Comparison | None = None
    chrf_comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """What ``tvmq eval --json`` prints: scores with two digits, p-values with four."""
        result: dict[str, Any] = {
            "metric": self.metric,
            "value": self.value,
            "chrf": self.chrf,
            "signature": self.signature,
            "n": self.n,
            "value_interval": _rounded(self.value_interval),
            "chrf_value_interval": _rounded(self.chrf_value_interval),
        }
        for prefix, found in (("", self.comparison), ("chrf_", self.chrf_comparison)):
            if found is not None:
                result |= {prefix + key: value for key, value in comparison_json(found).items()}
        return result


def comparison_json(found: Comparison, digits: int = 2) -> dict[str, Any]:
    """A comparison as ``--json`` prints it: scores with ``digits``, the p-value with four."""
    return {
        "baseline_value": round(found.baseline_value, digits),
        "difference": round(found.difference, digits),
        "interval": _rounded(found.interval, digits),
        "p_value": round(found.p_value, 4),
    }


def _rounded(interval: Interval, digits: int = 2) -> list[float]:
    return [round(end, digits) for end in interval]


def read_pairs(path: Path, *, limit: int | None = None) -> tuple[list[str], list[str]]:
    """Sources and references of a file with ``source TAB reference`` lines; see ``read_columns``."""
    rows = read_columns(path, "source TAB reference", (2,), limit=limit)
    return [row[0] for row in rows], [row[1] for row in rows]


def read_columns(
    path: Path, content: str, counts: Sequence[int], *, limit: int | None = None
) -> list[list[str]]:
    """The tab-separated columns of every line of a UTF-8 file, plain or as ``.xz``; empty lines are left out.

    Args:
        path: the file.
        content: what a line holds, in words.
        counts: numbers of columns that a line may have; all lines have the same.
        limit: only the first lines.

    Raises:
        InputError: the file is missing, too large, empty or not UTF-8, or a line has another number of tabs.
    """
    rows: list[list[str]] = []
    for number, line in enumerate(_data(path, f"lines of {content}").split(b"\n"), 1):
        if limit is not None and len(rows) == limit:
            break
        if not line.strip():
            continue
        try:
            row = line.decode("utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: line {number}: not UTF-8 ({error.reason}); convert the file") from None
        if len(row) not in counts or (rows and len(row) != len(rows[0])):
            raise InputError(f"{path}: line {number}: {len(row) - 1} tabs; expected {content}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no sentences; expected lines of {content}")
    return rows


def _data(path: Path, content: str) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {content}")
    if path.stat().st_size > MAX_DATA_BYTES:
        raise InputError(f"{path}: larger than {MAX_DATA_BYTES >> 20} MiB; take a sample")
    data = path.read_bytes()
    return decompress(data, str(path), MAX_DATA_BYTES, error=InputError) if path.suffix == SUFFIX else data


def read_hypotheses(path: Path, count: int) -> list[str]:
    """Outputs written by ``write_hypotheses`` or anything else, one a line.

    Args:
        path: UTF-8 text, plain or as ``.xz``; empty lines count.
        count: how many there must be.

    Raises:
        InputError: the file is missing, too large or not UTF-8, or has another number of lines.
    """
    try:
        lines = _data(path, "one output a line").decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); convert the file") from None
    if not lines[-1]:
        lines.pop()
    if len(lines) != count:
        raise InputError(
            f"{path}: {len(lines)} lines, expected {count}, one for each line of the data; "
            "write it with tvmq eval --output, with the same --data and --limit"
        )
    return [line.rstrip("\r") for line in lines]


def check_output(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse a bad place for the translations before hours are spent on them.

    Raises:
        UsageError: a folder, or one of ``inputs``.
        InputError: its folder does not exist.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected a file name")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist (create it first)")
    if any(other.exists() and path.resolve() == other.resolve() for other in inputs):
        raise UsageError(f"the output {path} is one of the inputs (choose another output)")


def write_hypotheses(path: Path, hypotheses: Sequence[str]) -> None:
    """One output a line, whole or not at all; InputError where it cannot be written."""
    lines = (re.sub(r"[\r\n]+", " ", text) + "\n" for text in hypotheses)
    atomic_write(path, "".join(lines))


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    baseline: Sequence[str] | None = None,
    seconds: float = 0.0,
) -> EvalResult:
    """BLEU and chrF of translations, one reference each, with bootstrap intervals.

    Args:
        hypotheses: translations.
        references: what they should be.
        baseline: another system's translations of the same sentences, for a paired test.
        seconds: stored in the result.

    Raises:
        MissingToolError: sacrebleu is not installed.
    """
    bleu, chrf = Bleu(), Chrf()
    found = [_measure(metric, hypotheses, references, baseline) for metric in (bleu, chrf)]
    return EvalResult(
        metric=bleu.name,
        value=round(found[0].value, 2),
        value_interval=found[0].interval,
        chrf=round(found[1].value, 2),
        chrf_value_interval=found[1].interval,
        signature=bleu.signature(),
        n=len(references),
        seconds=seconds,
        outputs=tuple(hypotheses),
        comparison=found[0].comparison,
        chrf_comparison=found[1].comparison,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """One metric of one system."""

    value: float
    interval: Interval
    comparison: Comparison | None


def _measure(
    metric: CorpusMetric, hypotheses: Sequence[str], references: Sequence[str], baseline: Sequence[str] | None
) -> _Measured:
    statistics = metric.statistics(hypotheses, references)
    other = None if baseline is None else metric.statistics(baseline, references)
    return _Measured(
        value=float(metric.scores(statistics.sum(0, keepdims=True))[0]),
        interval=score_interval(statistics, metric.scores),
        comparison=None if other is None else compare(statistics, other, metric.scores),
    )


def translate_all(
    translator: Translator,
    sources: Sequence[str],
    search: SearchOptions,
    progress: Progress = no_progress,
    *,
    phase: str = "translating",
) -> list[str]:
    """The best translation of every source, in order; similar lengths share a batch."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    outputs = [""] * len(sources)
    for start in range(0, len(order), search.batch_size):
        progress(phase, start, len(order))
        batch = order[start : start + search.batch_size]
        results = translator.translate([sources[i] for i in batch], **search.generation())
        for i, hypotheses in zip(batch, results, strict=True):
            outputs[i] = hypotheses[0].text
    progress(phase, len(order), len(order))
    return outputs


def evaluate_translator(
    artifact: Path,
    data: Path,
    search: SearchOptions,
    *,
    metric: str | None = None,
    limit: int | None = None,
    baseline: Path | None = None,
    progress: Progress = no_progress,
) -> EvalResult:
    """``evaluate`` of an artifact, against another one or a file; UsageError for a metric of encoders."""
    from .runtime import load

    if metric not in (None, "bleu"):
        raise UsageError(f"--metric {metric} does not fit this model, which translates; take bleu")
    require("sacrebleu", "eval")
    with ExitStack() as opened:

        def open_here(path: Path) -> Translator:
            return opened.enter_context(closing(load(path, threads=search.threads, isa=search.isa)))

        other = open_here(baseline) if baseline is not None and baseline.is_dir() else baseline
        return evaluate(open_here(artifact), data, search, limit=limit, baseline=other, progress=progress)


def evaluate(
    translator: Translator,
    data: Path,
    search: SearchOptions,
    *,
    limit: int | None = None,
    baseline: Path | Translator | None = None,
    progress: Progress = no_progress,
) -> EvalResult:
    """Translate the sources of ``data`` and score them against its references.

    Args:
        translator: an opened artifact.
        data: UTF-8 file of ``source TAB reference`` lines.
        search: generation options.
        limit: only the first sentences.
        baseline: what to compare with: a file with one translation a line, or another opened artifact.
        progress: called per batch.

    Raises:
        InputError: unusable data or baseline.
        MissingToolError: sacrebleu is not installed.
    """
    require("sacrebleu", "eval")
    sources, references = (column[:limit] for column in read_pairs(data))
    other = None
    if isinstance(baseline, Path):
        other = read_hypotheses(baseline, len(sources))
    elif baseline is not None:
        other = translate_all(baseline, sources, search, progress, phase="translating with the baseline")
    start = time.perf_counter()
    outputs = translate_all(translator, sources, search, progress)
    return score(outputs, references, baseline=other, seconds=time.perf_counter() - start)
