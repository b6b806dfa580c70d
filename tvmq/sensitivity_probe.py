# SPDX-License-Identifier: Apache-2.0
"""The FP32 model over sample sentences, and how far its output moves when matrices are replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checkpoint import Checkpoint
from .families import get_family
from .samples import Samples, batches

BATCH_TOKENS = 1024
"""Padded tokens of a batch on a side: the logits of one stay below 100 MB for 16,000 words."""


class Probe:
    """A model that can be asked for the divergence of changed weights from its own output.

    The log-probabilities of the unchanged model are kept: 4 bytes per target token and word.
    """

    def __init__(self, module: Any, samples: Samples, pad_id: int) -> None:
        self._module = module
        self._parameters: dict[str, Tensor] = dict(module.named_parameters())
        self._inputs = [
            [torch.from_numpy(side) for side in (b.source, b.source_lengths, b.target, b.target_lengths)]
            for b in batches(samples, BATCH_TOKENS, pad_id)
        ]
        self._reference = list(self._log_probabilities())

    @classmethod
    def open(cls, model: Path, samples: Samples) -> Probe:
        """The model in a folder, on one thread."""
        torch.set_num_threads(1)
        checkpoint = Checkpoint.open(model)
        family = get_family(checkpoint.config)
        module = family.whole(family.load(checkpoint)).eval()
        return cls(module, samples, module.config.pad_id)

    def weight(self, name: str) -> NDArray[np.float32]:
        """float32[n, k]: a matrix of the model, to be left as it is."""
        return self._parameters[name].detach().numpy()

    def divergence(self, changed: Mapping[str, NDArray[np.float32]]) -> float:
        """Mean KL(p || p') per target token in nats, p' with the ``changed`` matrices."""
        total, tokens = 0.0, 0
        with self._replaced(changed):
            for reference, other in zip(self._reference, self._log_probabilities(), strict=True):
                terms = torch.exp(reference).mul_(reference - other)
                total += float(terms.sum(dtype=torch.float64))
                tokens += len(reference)
        return max(total / tokens, 0.0)

    @contextmanager
    def _replaced(self, changed: Mapping[str, NDArray[np.float32]]) -> Iterator[None]:
        kept = {name: self._parameters[name].data for name in changed}
        try:
            for name, value in changed.items():
                self._parameters[name].data = torch.from_numpy(np.ascontiguousarray(value))
            yield
        finally:
            for name, value in kept.items():
                self._parameters[name].data = value

    def _log_probabilities(self) -> Iterator[Tensor]:
        """[tokens, words] of each batch, padding left out."""
        for source, source_lengths, target, target_lengths in self._inputs:
            with torch.inference_mode():
                logits = self._module(source, source_lengths, target)
                real = torch.arange(target.shape[1]) < target_lengths[:, None]
                yield torch.log_softmax(logits[real], -1)
