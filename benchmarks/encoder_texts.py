# SPDX-License-Identifier: Apache-2.0
"""Real texts for encoder benchmarks: read from files, turned into token ids as the model's folder says.

The repository's own samples are the default; ``--text FILE`` replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvmq.pooling import read_text_limit
from tvmq.text_tokenizer import TextTokenizer

from .encoder_engines import Batch

TEST_SAMPLES = (
    Path("models/sentiment-minilm/sample/test.tsv"),
    Path("models/nmt-en-de/sample/test.tsv"),
    Path("models/nmt-en-de/sample/dev.tsv"),
)
CALIBRATION_SAMPLE = Path("models/sentiment-minilm/sample/dev.tsv")
CALIBRATION_TEXTS = 128


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The first column of TAB-separated files, or whole lines; empty ones are left out."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [text for line in lines if (text := line.partition("\t")[0]).strip()]


def every(texts: Sequence[str], count: int) -> list[str]:
    """``count`` texts evenly spaced, so that a few stand for all."""
    return list(texts[:: max(1, len(texts) // count)][:count])


def token_ids(model: Path, texts: Sequence[str]) -> Batch:
    """Token ids of each text, cut to the model's own limit."""
    tokenizer = TextTokenizer.open(model)
    limits = [found for found in (tokenizer.limit, read_text_limit(model)) if found is not None]
    limit = min(limits, default=None)
    return tuple(tuple(tokenizer.tokens(text, None, limit=limit).ids) for text in texts)


def calibration(model: Path, path: Path) -> tuple[tuple[int, ...], ...]:
    """``CALIBRATION_TEXTS`` of a file as token ids."""
    return tuple(map(tuple, token_ids(model, every(read_texts([path]), CALIBRATION_TEXTS))))
