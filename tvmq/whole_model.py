# SPDX-License-Identifier: Apache-2.0
"""The FP32 model over whole padded batches, for calibration and sensitivities: one class for each task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoint import Checkpoint
from .distributions import Bernoulli, Categorical, Distribution, Gaussian
from .families import Family, TensorInfo, get_family
from .pooling import Pooling, read_pooling
from .samples import Batch

Side = Literal["source", "target"]


class WholeModel(Protocol):
    """A model that reads batches of samples.

    Attributes:
        module: the family's module, with parameters under their names in the checkpoint.
        tensors: its quantizable matrices.
        pad_id: token id of padding.
        distribution: what its outputs mean.
    """

    module: Any
    tensors: list[TensorInfo]
    pad_id: int
    distribution: Distribution

    def trial(self) -> tuple[Batch, Mapping[int, Side]]:
        """A small batch without padding, and the side that a sequence of each of its lengths belongs to."""
        ...

    def real(self, batch: Batch) -> dict[Side, Tensor]:
        """bool[B, T] of each side: no padding."""
        ...

    def outputs(self, batch: Batch) -> Tensor:
        """float32[rows, width], padding left out."""
        ...


def open_whole(model: Path) -> WholeModel:
    """The model in a folder; InputError where it cannot be used."""
    checkpoint = Checkpoint.open(model)
    family = get_family(checkpoint.config)
    match family.task:
        case "translate":
            return WholeTranslation(checkpoint, family)
        case "encode":
            return WholeEncoder(checkpoint, family)


class WholeTranslation:
    """Logits of every target token, given the true ones before it."""

    distribution: Distribution = Categorical()

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        self.module = family.whole(family.load(checkpoint)).eval()
        self.tensors = family.tensors(self.module.config)
        self.pad_id: int = self.module.config.pad_id

    def trial(self) -> tuple[Batch, Mapping[int, Side]]:
        return _trial(2, 3), {2: "source", 3: "target"}

    def real(self, batch: Batch) -> dict[Side, Tensor]:
        return {
            "source": _real(batch.source, batch.source_lengths),
            "target": _real(batch.target, batch.target_lengths),
        }

    def outputs(self, batch: Batch) -> Tensor:
        source, lengths, target = map(torch.from_numpy, (batch.source, batch.source_lengths, batch.target))
        return self.module(source, lengths, target)[_real(batch.target, batch.target_lengths)]


class WholeEncoder:
    """Logits of the head for every text, or for every token; without a head embeddings of unit length.

    Embeddings are pooled as the model folder says, and normalised whether or not it says so: a plan should
    keep directions.
    """

    distribution: Distribution

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        self.module = family.whole(family.load(checkpoint)).eval()
        self.tensors = family.tensors(self.module.config)
        self.pad_id: int = self.module.config.pad_id
        head = self.module.config.head
        self._kind: str = head.kind if head else "embed"
        self._pooling = Pooling() if head else read_pooling(checkpoint.path)
        match head.scores if head else None:
            case "softmax":
                self.distribution = Categorical()
            case "sigmoid":
                self.distribution = Bernoulli()
            case _:
                self.distribution = Gaussian()

    def trial(self) -> tuple[Batch, Mapping[int, Side]]:
        return _trial(2, 0), {2: "source"}

    def real(self, batch: Batch) -> dict[Side, Tensor]:
        return {"source": _real(batch.source, batch.source_lengths)}

    def outputs(self, batch: Batch) -> Tensor:
        types = None if batch.types is None else torch.from_numpy(batch.types)
        found = self.module(torch.from_numpy(batch.source), torch.from_numpy(batch.source_lengths), types)
        real = _real(batch.source, batch.source_lengths)
        if self._kind == "tag":
            return found[real]
        return found if self._kind == "classify" else self._embeddings(found, real)

    def _embeddings(self, x: Tensor, real: Tensor) -> Tensor:
        if self._pooling.kind == "cls":
            return torch.nn.functional.normalize(x[:, 0], dim=-1)
        mean = x.masked_fill(~real[..., None], 0.0).sum(1) / real.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=-1)


def _trial(source: int, target: int) -> Batch:
    def side(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.zeros((1, length), np.int64), np.array([length])

    (ids, lengths), (said, said_lengths) = side(source), side(target)
    return Batch(source=ids, source_lengths=lengths, target=said, target_lengths=said_lengths)


def _real(ids: NDArray[Any], lengths: NDArray[Any]) -> Tensor:
    """bool[B, T]: which of padded ids are no padding."""
    return torch.arange(ids.shape[1]) < torch.from_numpy(lengths)[:, None]
