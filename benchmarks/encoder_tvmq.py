# SPDX-License-Identifier: Apache-2.0
"""tvmq as an encoder engine: a compiled artifact through the public runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .encoder_engines import Batch, EncoderSetup


class TvmqEncoder:
    """One loaded artifact."""

    def __init__(self, setup: EncoderSetup) -> None:
        from tvmq.encoder import load

        if setup.artifact is None:
            raise ValueError("engine tvmq needs a compiled artifact (--artifact PATH, or --skip tvmq)")
        self._encoder = load(setup.artifact, threads=setup.threads)
        self._function = setup.task

    def run(self, batch: Batch) -> NDArray[np.float32]:
        from tvmq.text_tokenizer import Tokens

        texts = [Tokens(ids=list(ids), types=[0] * len(ids)) for ids in batch]
        return np.concatenate(list(self._encoder.run(self._function, texts, batch_size=len(texts))))

    def read(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of ``run`` through the artifact's own tokenizer: what a user of the Python API gets."""
        if self._function == "embed":
            return self._encoder.embed(texts, truncate=True)
        found = self._encoder.classify(texts, truncate=True)
        return np.array([list(one.scores.values()) for one in found], np.float32)
