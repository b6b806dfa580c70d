# SPDX-License-Identifier: Apache-2.0
"""Token ids of parallel text and their padded batches: what calibration, sensitivities and retraining read.

No torch here: batches are NumPy arrays that a family's whole-sentence module takes as tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .evaluation import read_pairs
from .tokenizer import MarianTokenizer

PAD_TO = 8
"""Padded lengths are multiples of this: fewer shapes for a compiled training step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sentence pair as token ids, each side with its end token; encoders leave ``target`` empty."""

    source: tuple[int, ...]
    target: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Padded samples.

    Attributes:
        source: int64[B, S], padded at the end.
        source_lengths: int64[B].
        target: int64[B, T], what the model should say, with the end token, padded at the end.
        target_lengths: int64[B]; positions at or after it are padding.
    """

    source: NDArray[np.int64]
    source_lengths: NDArray[np.int64]
    target: NDArray[np.int64]
    target_lengths: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Real tokens on the larger side."""
        return int(max(self.source_lengths.sum(), self.target_lengths.sum()))


def read_samples(
    model: Path, data: Path, *, limit: int | None = None, max_length: int | None = None
) -> list[Sample]:
    """Token ids of a file of ``source TAB target`` lines (plain or .xz), with the tokenizer of ``model``.

    Args:
        model: folder with the tokenizer's files.
        data: see ``evaluation.read_pairs``.
        limit: only the first pairs.
        max_length: leave out pairs with more tokens than this on a side.

    Raises:
        InputError: the data or the tokenizer cannot be used.
    """
    sides = (MarianTokenizer.open(model), MarianTokenizer.open(model, target=True))
    columns = read_pairs(data, limit=limit)
    samples = (
        Sample(source=tuple(sides[0].encode(source)), target=tuple(sides[1].encode(target)))
        for source, target in zip(*columns, strict=True)
    )
    return [s for s in samples if max_length is None or max(len(s.source), len(s.target)) <= max_length]


def make_batch(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Pad ``samples`` to common lengths."""
    source, source_lengths = _padded([sample.source for sample in samples], pad_id)
    target, target_lengths = _padded([sample.target for sample in samples], pad_id)
    return Batch(
        source=source, source_lengths=source_lengths, target=target, target_lengths=target_lengths
    )


def batches(
    samples: Sequence[Sample], tokens: int, pad_id: int, *, seed: int | None = None
) -> Iterator[Batch]:
    """Every sample once, in batches of at most ``tokens`` padded tokens a side (at least one sample each).

    Samples of similar length share a batch. With a ``seed`` the order of equal lengths and of the batches is
    shuffled; without one the order is by length.
    """
    generator = np.random.default_rng(seed) if seed is not None else None
    lengths = np.array([max(len(sample.source), len(sample.target)) for sample in samples])
    order = generator.permutation(len(samples)) if generator else np.arange(len(samples))
    order = order[np.argsort(lengths[order], kind="stable")]
    groups: list[list[int]] = [[]]
    for index in order:
        width = -(-int(lengths[index]) // PAD_TO) * PAD_TO
        if groups[-1] and width * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(int(index))
    if generator:
        generator.shuffle(groups)
    for group in groups:
        if group:
            yield make_batch([samples[index] for index in group], pad_id)


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.array([len(row) for row in rows], np.int64)
    width = -(-int(lengths.max(initial=0)) // PAD_TO) * PAD_TO
    padded = np.full((len(rows), width), pad_id, np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded, lengths
