# SPDX-License-Identifier: Apache-2.0
"""What is translated: random ids with a forced length, or the sentences of a TSV with natural ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmq.evaluation import read_pairs
from tvmq.tokenizer import MarianTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sources as token ids (end token included) and the number of tokens to produce, if forced."""

    sources: tuple[tuple[int, ...], ...]
    forced: int | None
    label: str


def random_workload(
    *, vocabulary: int, eos: int, sentences: int, length: int, forced: int, seed: int
) -> Workload:
    """``sentences`` sources of ``length`` random ids each, the last of them the end token."""
    rng = np.random.default_rng(seed)
    # Ids 0, 1 and the last one are special in every Marian vocabulary.
    rows = rng.integers(2, vocabulary - 1, size=(sentences, length - 1)).tolist()
    sources = tuple((*row, eos) for row in rows)
    return Workload(
        sources=sources, forced=forced, label=f"{sentences} random sources, {length} in, {forced} out"
    )


def sentence_workload(*, model: Path, data: Path, sentences: int, forced: int | None) -> Workload:
    """Every k-th source of ``data``, so that a few sentences stand for the whole file."""
    texts, _ = read_pairs(data)
    step = max(1, len(texts) // sentences)
    chosen = texts[::step][:sentences]
    tokenizer = MarianTokenizer.open(model)
    sources = tuple(tuple(tokenizer.encode(text)) for text in chosen)
    end = f"{forced} out" if forced else "natural ends"
    return Workload(sources=sources, forced=forced, label=f"{len(sources)} sentences of {data.name}, {end}")
