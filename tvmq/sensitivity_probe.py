# SPDX-License-Identifier: Apache-2.0
"""The FP32 model over sample sentences, and how far its output moves when matrices are replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .samples import Samples, batches
from .whole_model import WholeModel, open_whole

BATCH_TOKENS = 1024
"""Padded tokens of a batch on a side: the logits of one stay below 100 MB for 16,000 words."""


class Probe:
    """A model that can be asked for the divergence of changed weights from its own output.

    What the unchanged model says is kept: 4 bytes per target token and word, or per text and label.
    """

    def __init__(self, model: WholeModel, samples: Samples) -> None:
        model.module.eval()
        self._model = model
        self._parameters: dict[str, Tensor] = dict(model.module.named_parameters())
        self._batches = list(batches(samples, BATCH_TOKENS, model.pad_id))
        self._reference = list(self._said())

    @classmethod
    def open(cls, model: Path, samples: Samples) -> Probe:
        """The model in a folder, on one thread."""
        torch.set_num_threads(1)
        return cls(open_whole(model), samples)

    def weight(self, name: str) -> NDArray[np.float32]:
        """float32[n, k]: a matrix of the model, to be left as it is."""
        return self._parameters[name].detach().numpy()

    def divergence(self, changed: Mapping[str, NDArray[np.float32]]) -> float:
        """Mean KL(p || p') per output (see ``distributions``), p' with the ``changed`` matrices."""
        total, outputs = 0.0, 0
        with self._replaced(changed):
            for reference, other in zip(self._reference, self._said(), strict=True):
                total += self._model.distribution.divergence(reference, other)
                outputs += len(reference)
        return max(total / outputs, 0.0)

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

    def _said(self) -> Iterator[Tensor]:
        """What the model says about each batch, padding left out."""
        for batch in self._batches:
            with torch.inference_mode():
                yield self._model.distribution.of(self._model.outputs(batch))
