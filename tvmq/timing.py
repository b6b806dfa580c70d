# SPDX-License-Identifier: Apache-2.0
"""How many milliseconds per token a stored matrix takes: by memory bandwidth, or from measured times.

Measured times come from a file of milliseconds by block, or from a tuning log, product by product.

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
from .families.family import TABLES, TensorInfo, decodes
from .product_times import LOG_SUFFIX, log_times, once_per_sentence
from .sensitivity_table import Coding
from .store import read_json_object
from .word_bits import Clusters

MAX_BYTES = 1 << 20
BANDWIDTH = 10e9
"""Bytes per second that one core streams; the unit of the default model, not a promise."""
SENTENCE_TOKENS = 24.0
"""Output tokens of a sentence, unless the samples say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A model of time that is linear in bytes, or in rows at each width.

    Attributes:
        bandwidth: bytes per second, for tensors without measured times.
        sentence_tokens: output tokens per sentence, or tokens per text of an encoder.
        measured: tensor -> bits -> milliseconds per token and weight; other widths lie on the line between
            their neighbours.
        decodes: the model has a decoder.
    """

    bandwidth: float = BANDWIDTH
    sentence_tokens: float = SENTENCE_TOKENS
    measured: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    decodes: bool = True

    def ms(self, info: TensorInfo, clusters: Clusters, size: int) -> float:
        """Milliseconds per token of ``info`` stored as ``clusters`` in ``size`` bytes."""
        if info.name not in self.measured:
            return size / self.bandwidth * 1e3 * self._reads(info)
        times = sorted(self.measured[info.name].items())
        bits, values = [bits for bits, _ in times], [value for _, value in times]
        return sum(rows * info.shape[1] * float(np.interp(width, bits, values)) for rows, width in clusters)

    def _reads(self, info: TensorInfo) -> float:
        """How often a matrix is read for each token."""
        if self.decodes:
            return 1 / self.sentence_tokens if once_per_sentence(info) else 1.0
        return 1 / (info.shape[0] if info.block == TABLES else self.sentence_tokens)


def timing_of(
    tensors: Sequence[TensorInfo], sentence_tokens: float, coding: Coding, times: Path | None = None
) -> Timing:
    """The timing of a model with these matrices.

    Args:
        tensors: all of them.
        sentence_tokens: see ``Timing``.
        coding: how they are stored.
        times: a tuning log (``.jsonl``), or a file for ``read_times``; None goes by memory bandwidth.

    Raises:
        InputError: the file cannot be used.
    """
    plain = Timing(sentence_tokens=sentence_tokens, decodes=decodes(tensors))
    if times is None:
        return plain
    if times.suffix == LOG_SUFFIX:
        return replace(plain, measured=log_times(times, tensors, sentence_tokens, coding))
    return replace(plain, measured=read_times(times, tensors))


def read_times(path: Path, tensors: Sequence[TensorInfo]) -> dict[str, dict[int, float]]:
    """Measured times: a JSON object ``{"Dec_ffn": {"2": 0.41, "3": 0.6}, ...}``.

    Each number is milliseconds per token of the whole block at that width. Blocks that are missing
    go by bandwidth.

    Args:
        path: the file.
        tensors: all matrices of the model.

    Returns:
        tensor -> bits -> milliseconds per token and weight.

    Raises:
        InputError: not such a file, or a block that the model does not have.
    """
    weights: dict[str, int] = {}
    for info in tensors:
        weights[info.block] = weights.get(info.block, 0) + math.prod(info.shape)
    measured: dict[str, dict[int, float]] = {}
    for block, times in read_json_object(path, MAX_BYTES).items():
        if block not in weights:
            known = ", ".join(weights)
            raise InputError(f"{path}: the model has no block {json.dumps(block)}, only {known}")
        per_weight = {
            bits: value / weights[block] for bits, value in _times(f"{path}: {block}", times).items()
        }
        measured |= {info.name: per_weight for info in tensors if info.block == block}
    return measured


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
