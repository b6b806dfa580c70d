# SPDX-License-Identifier: Apache-2.0
"""What is encoded: random ids of fixed or mixed lengths, or the texts of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .encoder_engines import Batch

FIRST_ID = 5
"""Lower ids are special in the random model's vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderWorkload:
    """Calls that an engine is timed on.

    Attributes:
        label: what the table calls it.
        calls: batches of token ids, encoded one after the other.
        shapes: (texts, tokens) of the batches, if these are known before any text arrives.
    """

    label: str
    calls: tuple[Batch, ...]
    shapes: tuple[tuple[int, int], ...] = ()

    @property
    def texts(self) -> int:
        return sum(map(len, self.calls))

    @property
    def tokens(self) -> int:
        """Real tokens, without padding."""
        return sum(len(ids) for batch in self.calls for ids in batch)


def fixed_workload(*, vocabulary: int, tokens: int, texts: int, seed: int) -> EncoderWorkload:
    """``texts`` random texts of ``tokens`` ids each, one at a time."""
    rows = _random(vocabulary, [tokens] * texts, seed)
    return EncoderWorkload(
        label=f"{tokens} tokens", calls=tuple((ids,) for ids in rows), shapes=((1, tokens),)
    )


def mixed_workloads(
    *, vocabulary: int, lengths: tuple[int, int], texts: int, seed: int
) -> tuple[EncoderWorkload, ...]:
    """Random texts of ``lengths`` (shortest, longest; uniform), in one batch and one at a time."""
    rows = random_texts(vocabulary=vocabulary, lengths=lengths, texts=texts, seed=seed)
    return text_workloads(rows, f"of {lengths[0]} to {lengths[1]} tokens", batch=texts)


def text_workloads(rows: Batch, what: str, *, batch: int) -> tuple[EncoderWorkload, ...]:
    """The same texts in batches of ``batch`` as they come, and one at a time."""
    batches = tuple(rows[start : start + batch] for start in range(0, len(rows), batch))
    return (
        EncoderWorkload(label=f"{len(rows)} texts {what}, {batch} in a batch", calls=batches),
        EncoderWorkload(label=f"{len(rows)} texts {what}, one at a time", calls=tuple((r,) for r in rows)),
    )


def random_texts(
    *, vocabulary: int, lengths: tuple[int, int], texts: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Random ids; lengths are uniform between the shortest and the longest."""
    shortest, longest = lengths
    drawn = np.random.default_rng(seed).integers(shortest, longest + 1, size=texts).tolist()
    return _random(vocabulary, drawn, seed)


def _random(vocabulary: int, lengths: Sequence[int], seed: int) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.integers(FIRST_ID, vocabulary, size=length).tolist()) for length in lengths)
