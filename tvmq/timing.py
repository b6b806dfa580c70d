# SPDX-License-Identifier: Apache-2.0
"""How many milliseconds per token a stored matrix takes: by memory bandwidth, or from measured times.

A decoder's matrix and the output table are read once per token; an encoder's once per sentence, so that its
share of a token falls with the length of the output. Where nothing is decoded tokens are those of the texts,
matrices are read once per text and tables a row per token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .errors import InputError
from .families.family import TensorInfo, decodes
from .store import read_json_object
from .word_bits import Clusters

MAX_BYTES = 1 << 20
BANDWIDTH = 10e9
"""Bytes per second that one core streams; the unit of the default model, not a promise."""
SENTENCE_TOKENS = 24.0
"""Output tokens of a sentence, unless the samples say."""
ENCODER = "Enc"
"""Blocks whose names begin so run once per sentence."""
TABLES = "Emb"
"""The block that encoders only look up rows of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A model of time that is linear in bytes, or in rows at each width.

    Attributes:
        bandwidth: bytes per second, for blocks without measured times.
        sentence_tokens: output tokens per sentence, or tokens per text of an encoder.
        measured: block -> bits -> milliseconds per token and weight; other widths lie on the line between
            their neighbours.
        decodes: the model has a decoder.
    """

    bandwidth: float = BANDWIDTH
    sentence_tokens: float = SENTENCE_TOKENS
    measured: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    decodes: bool = True

    def ms(self, info: TensorInfo, clusters: Clusters, size: int) -> float:
        """Milliseconds per token of ``info`` stored as ``clusters`` in ``size`` bytes."""
        if info.block not in self.measured:
            return size / self.bandwidth * 1e3 * self._reads(info)
        times = sorted(self.measured[info.block].items())
        bits, values = [bits for bits, _ in times], [value for _, value in times]
        return sum(rows * info.shape[1] * float(np.interp(width, bits, values)) for rows, width in clusters)

    def _reads(self, info: TensorInfo) -> float:
        """How often a matrix is read for each token."""
        if self.decodes:
            return 1 / self.sentence_tokens if info.block.startswith(ENCODER) else 1.0
        return 1 / (info.shape[0] if info.block == TABLES else self.sentence_tokens)


def timing_of(tensors: Sequence[TensorInfo], sentence_tokens: float, times: Path | None = None) -> Timing:
    """The timing of a model with these matrices.

    Args:
        tensors: all of them.
        sentence_tokens: see ``Timing``.
        times: a file for ``read_times``; None goes by memory bandwidth.

    Raises:
        InputError: the file cannot be used.
    """
    if times is None:
        return Timing(sentence_tokens=sentence_tokens, decodes=decodes(tensors))
    weights: dict[str, int] = {}
    for info in tensors:
        weights[info.block] = weights.get(info.block, 0) + math.prod(info.shape)
    return replace(read_times(times, weights, sentence_tokens), decodes=decodes(tensors))


def read_times(path: Path, weights: Mapping[str, int], sentence_tokens: float) -> Timing:
    """Measured times: a JSON object ``{"Dec_ffn": {"2": 0.41, "3": 0.6}, ...}``.

    Each number is milliseconds per token of the whole block at that width. Blocks that are missing
    go by bandwidth.

    Args:
        path: the file.
        weights: number of weights of each block.
        sentence_tokens: output tokens per sentence.

    Raises:
        InputError: not such a file, or a block that the model does not have.
    """
    measured: dict[str, dict[int, float]] = {}
    for block, times in read_json_object(path, MAX_BYTES).items():
        if block not in weights:
            known = ", ".join(weights)
            raise InputError(f"{path}: the model has no block {json.dumps(block)}, only {known}")
        measured[block] = {
            bits: value / weights[block] for bits, value in _times(f"{path}: {block}", times).items()
        }
    return Timing(sentence_tokens=sentence_tokens, measured=measured)


def _times(where: str, times: object) -> dict[int, float]:
    found: dict[int, float] = {}
    for bits, value in times.items() if isinstance(times, dict) else ():
        right = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
        if not (isinstance(bits, str) and bits.isascii() and bits.isdigit() and right):
            raise InputError(f'{where}: expected milliseconds by bits, such as {{"2": 0.41, "3": 0.6}}')
        found[int(bits)] = float(value)
    if not found:
        raise InputError(f'{where}: expected milliseconds by bits, such as {{"2": 0.41, "3": 0.6}}')
    return found
