# SPDX-License-Identifier: Apache-2.0
"""Rows that an engine gives for many texts, for benchmarks of quality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .encoder_choice import Choice
from .encoder_engines import Batch
from .encoder_tvmq import TvmqEncoder

BATCH = 16


def rows_of(choice: Choice, texts: Sequence[str], ids: Batch) -> NDArray[np.float32]:
    """Embeddings [texts, width] or logits [texts, labels], in order.

    tvmq reads the texts themselves through its artifact's tokenizer; peers get ``ids``, similar lengths
    together so that little of a batch is padding.
    """
    engine = choice.build()
    if isinstance(engine, TvmqEncoder):
        return engine.read(texts)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    found = np.concatenate([engine.run([ids[index] for index in part]) for part in parts])
    return found[np.argsort(order)]
