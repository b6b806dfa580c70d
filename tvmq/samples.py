# SPDX-License-Identifier: Apache-2.0
"""Token ids of parallel text and their padded batches: what calibration, sensitivities and retraining read.

No torch here: batches are NumPy arrays that a family's whole-sentence module takes as tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .evaluation import read_pairs
from .tokenizer import MarianTokenizer

PAD_TO = 8
"""Padded lengths are multiples of this: fewer shapes for the kernels of a training step."""
_CHUNK = 20_000
"""Lines that one process encodes at a time; shorter files are encoded here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sentence pair as token ids, each side with its end token; encoders leave ``target`` empty.

    ``types`` are the token types of ``source`` where they are not all 0.
    """

    source: tuple[int, ...]
    target: tuple[int, ...] = ()
    types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Padded samples.

    Attributes:
        source: int64[B, S], padded at the end.
        source_lengths: int64[B].
        target: int64[B, T], what the model should say, with the end token, padded at the end.
        target_lengths: int64[B]; positions at or after it are padding.
        types: int64[B, S], token types of the source; None where all are 0.
    """

    source: NDArray[np.int64]
    source_lengths: NDArray[np.int64]
    target: NDArray[np.int64]
    target_lengths: NDArray[np.int64]
    types: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        """Real tokens on the larger side."""
        return int(max(self.source_lengths.sum(), self.target_lengths.sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """Rows of token ids, one after the other: int32[total], row i is ids[starts[i]:starts[i + 1]]."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> _Column:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(
            ids=np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())),
            starts=np.concatenate([[0], np.cumsum(lengths)]),
        )

    def row(self, index: int) -> tuple[int, ...]:
        return tuple(self.ids[self.starts[index] : self.starts[index + 1]].tolist())

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def take(self, rows: NDArray[np.intp]) -> _Column:
        lengths = self.lengths()[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return _Column(ids=self.ids[places], starts=starts)

    def padded(self, rows: NDArray[np.intp], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[B, width] and the lengths int64[B]."""
        taken = self.take(rows)
        lengths = taken.lengths()
        width = -(-int(lengths.max(initial=0)) // PAD_TO) * PAD_TO
        padded = np.full((len(rows), width), pad_id, np.int64)
        padded[np.arange(width) < lengths[:, None]] = taken.ids
        return padded, lengths


class Samples(Sequence[Sample]):
    """Many samples in flat arrays: millions of pairs fit in memory."""

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        self._source = _Column.of([sample.source for sample in samples])
        self._target = _Column.of([sample.target for sample in samples])
        self._types = _Column.of([sample.types for sample in samples])

    @classmethod
    def join(cls, parts: Iterable[Samples]) -> Samples:
        """The samples of all parts, in order."""
        parts = list(parts)
        joined = cls()
        joined._source = _joined([part._source for part in parts])
        joined._target = _joined([part._target for part in parts])
        joined._types = _joined([part._types for part in parts])
        return joined

    def __len__(self) -> int:
        return len(self._source.starts) - 1

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        return Sample(
            source=self._source.row(place), target=self._target.row(place), types=self._types.row(place)
        )

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of the longer side of each sample."""
        return np.maximum(self._source.lengths(), self._target.lengths())

    def counts(self, vocabulary: int) -> NDArray[np.int64]:
        """How often each of ``vocabulary`` token ids occurs on both sides."""
        ids = np.concatenate([self._source.ids, self._target.ids])
        return np.bincount(ids, minlength=vocabulary).astype(np.int64)

    def take(self, rows: NDArray[np.intp]) -> Samples:
        """The samples numbered ``rows``."""
        taken = Samples()
        taken._source, taken._target = self._source.take(rows), self._target.take(rows)
        taken._types = self._types.take(rows)
        return taken

    def batch(self, rows: NDArray[np.intp], pad_id: int) -> Batch:
        """The samples numbered ``rows``, padded to common lengths."""
        source, source_lengths = self._source.padded(rows, pad_id)
        target, target_lengths = self._target.padded(rows, pad_id)
        types = None
        if self._types.take(rows).ids.any():
            types = np.zeros_like(source)
            found, _ = self._types.padded(rows, 0)
            types[:, : found.shape[1]] = found
        return Batch(
            source=source,
            source_lengths=source_lengths,
            target=target,
            target_lengths=target_lengths,
            types=types,
        )


def read_samples(
    model: Path, data: Path, *, limit: int | None = None, max_length: int | None = None
) -> Samples:
    """Token ids of a file of ``source TAB target`` lines (plain or .xz), with the tokenizer of ``model``.

    Args:
        model: folder with the tokenizer's files.
        data: see ``evaluation.read_pairs``.
        limit: only the first pairs.
        max_length: leave out pairs with more tokens than this on a side.

    Raises:
        InputError: the data or the tokenizer cannot be used, or no pair is short enough.
    """
    encode = _PairEncoder(model)
    sources, targets = read_pairs(data, limit=limit)
    chunks = [(sources[i : i + _CHUNK], targets[i : i + _CHUNK]) for i in range(0, len(sources), _CHUNK)]
    samples = Samples.join(_map(encode, chunks))
    if max_length is None:
        return samples
    short = np.flatnonzero(samples.lengths() <= max_length)
    if not len(short):
        raise InputError(f"{data}: every pair is longer than {max_length} tokens; allow longer ones")
    return samples.take(short)


def make_batch(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Pad ``samples`` to common lengths."""
    return Samples(samples).batch(np.arange(len(samples)), pad_id)


def batches(
    samples: Sequence[Sample], tokens: int, pad_id: int, *, seed: int | None = None
) -> Iterator[Batch]:
    """Every sample once, in batches of at most ``tokens`` padded tokens a side (at least one sample each).

    Samples of similar length share a batch. With a ``seed`` the order of equal lengths and of the batches is
    shuffled; without one the order is by length.
    """
    table = samples if isinstance(samples, Samples) else Samples(samples)
    for rows in batch_rows(table.lengths(), tokens, seed=seed):
        yield table.batch(rows, pad_id)


def batch_rows(lengths: NDArray[np.int64], tokens: int, *, seed: int | None = None) -> list[NDArray[np.intp]]:
    """Which samples, of these lengths, share a batch; see ``batches``."""
    generator = np.random.default_rng(seed) if seed is not None else None
    order = generator.permutation(len(lengths)) if generator else np.arange(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    widths = -(-lengths[order] // PAD_TO) * PAD_TO
    groups, first = [], 0
    for place, width in enumerate(widths.tolist()):
        if place > first and width * (place - first + 1) > tokens:
            groups.append(order[first:place])
            first = place
    if len(order):
        groups.append(order[first:])
    if generator:
        generator.shuffle(groups)
    return groups


@dataclass(frozen=True, slots=True)
class _PairEncoder:
    """Encodes lines with a model folder's tokenizers; opens them anew in every process."""

    model: Path

    def __call__(self, lines: tuple[Sequence[str], Sequence[str]]) -> Samples:
        source, target = (MarianTokenizer.open(self.model, target=side) for side in (False, True))
        return Samples(
            [
                Sample(source=tuple(source.encode(a)), target=tuple(target.encode(b)))
                for a, b in zip(*lines, strict=True)
            ]
        )


Lines = tuple[Sequence[str], Sequence[str]]


def _map(encode: Callable[[Lines], Samples], chunks: Sequence[Lines]) -> list[Samples]:
    """``encode`` over the chunks, in processes where there are several; the same result either way."""
    workers = min(len(chunks), os.cpu_count() or 1)
    if workers < 2:
        return [encode(chunk) for chunk in chunks]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(encode, chunks))


def _joined(columns: Sequence[_Column]) -> _Column:
    lengths = [column.lengths() for column in columns]
    return _Column(
        ids=np.concatenate([column.ids for column in columns] or [np.empty(0, np.int32)]),
        starts=np.concatenate([[0], np.cumsum(np.concatenate(lengths or [np.empty(0, np.int64)]))]),
    )
