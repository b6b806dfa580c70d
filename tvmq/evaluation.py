# SPDX-License-Identifier: Apache-2.0
"""Quality of translations against references: BLEU and chrF by sacrebleu."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .compressed import SUFFIX, decompress
from .errors import InputError
from .installation import require
from .options import Progress, SearchOptions, no_progress

if TYPE_CHECKING:
    from .runtime import Translator

MAX_DATA_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Scores of one data set.

    Attributes:
        metric: always ``BLEU``.
        value: corpus BLEU, 0 to 100.
        chrf: corpus chrF2, 0 to 100.
        signature: sacrebleu's signature of the BLEU score.
        n: number of sentences.
        seconds: wall time of the translation alone.
    """

    metric: str
    value: float
    chrf: float
    signature: str
    n: int
    seconds: float


def read_pairs(path: Path, *, limit: int | None = None) -> tuple[list[str], list[str]]:
    """Sources and references of a UTF-8 file with ``source TAB reference`` lines, plain or as ``.xz``.

    Args:
        path: the file.
        limit: only the first pairs.

    Raises:
        InputError: the file is missing, too large, empty or not UTF-8, or a line has not exactly one tab.
    """
    sources: list[str] = []
    references: list[str] = []
    for number, line in enumerate(_data(path).split(b"\n"), 1):
        if limit is not None and len(sources) == limit:
            break
        if not line.strip():
            continue
        try:
            fields = line.decode("utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: line {number}: not UTF-8 ({error.reason}); convert the file") from None
        if len(fields) != 2:
            raise InputError(f"{path}: line {number}: {len(fields) - 1} tabs; expected source TAB reference")
        sources.append(fields[0])
        references.append(fields[1])
    if not sources:
        raise InputError(f"{path}: no sentences; expected lines of source TAB reference")
    return sources, references


def _data(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected lines of source TAB reference")
    if path.stat().st_size > MAX_DATA_BYTES:
        raise InputError(f"{path}: larger than {MAX_DATA_BYTES >> 20} MiB; take a sample")
    data = path.read_bytes()
    return decompress(data, str(path), MAX_DATA_BYTES, error=InputError) if path.suffix == SUFFIX else data


def score(hypotheses: Sequence[str], references: Sequence[str], *, seconds: float = 0.0) -> EvalResult:
    """BLEU and chrF of translations, one reference each."""
    require("sacrebleu", "eval")
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu = BLEU()
    value = bleu.corpus_score(list(hypotheses), [list(references)]).score
    chrf = CHRF().corpus_score(list(hypotheses), [list(references)]).score
    return EvalResult(
        metric="BLEU",
        value=round(value, 2),
        chrf=round(chrf, 2),
        signature=str(bleu.get_signature()),
        n=len(references),
        seconds=seconds,
    )


def translate_all(
    translator: Translator,
    sources: Sequence[str],
    search: SearchOptions,
    progress: Progress = no_progress,
) -> list[str]:
    """The best translation of every source, in order; similar lengths share a batch."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    outputs = [""] * len(sources)
    for start in range(0, len(order), search.batch_size):
        progress("translating", start, len(order))
        batch = order[start : start + search.batch_size]
        results = translator.translate([sources[i] for i in batch], **search.generation())
        for i, hypotheses in zip(batch, results, strict=True):
            outputs[i] = hypotheses[0].text
    progress("translating", len(order), len(order))
    return outputs


def evaluate(
    translator: Translator,
    data: Path,
    search: SearchOptions,
    *,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> EvalResult:
    """Translate the sources of ``data`` and score them against its references.

    Args:
        translator: an opened artifact.
        data: UTF-8 file of ``source TAB reference`` lines.
        search: generation options.
        limit: only the first sentences.
        progress: called per batch.

    Raises:
        InputError: unusable data.
        MissingToolError: sacrebleu is not installed.
    """
    require("sacrebleu", "eval")
    sources, references = (column[:limit] for column in read_pairs(data))
    start = time.perf_counter()
    outputs = translate_all(translator, sources, search, progress)
    return score(outputs, references, seconds=time.perf_counter() - start)
