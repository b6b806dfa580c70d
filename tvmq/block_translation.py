# SPDX-License-Identifier: Apache-2.0
"""Greedy translation in PyTorch with some weights replaced, for ``block_bleu``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .families import translation_family
from .families.executor import TorchExecutor, greedy_translations
from .generation import read_defaults
from .tokenizer import MarianTokenizer


class BlockTranslator:
    """A float model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: MarianTokenizer, longest: int) -> None:
        self._model, self._tokenizer, self._longest = model, tokenizer, longest
        self._state: dict[str, Any] = model.state_dict()

    @classmethod
    def open(cls, folder: Path) -> BlockTranslator:
        """The model in a folder, on one thread."""
        torch.set_num_threads(1)
        checkpoint = Checkpoint.open(folder)
        model = translation_family(checkpoint.config, "BLEU by block").load(checkpoint)
        limit = read_defaults(checkpoint.generation).max_length or model.config.max_positions
        return cls(model, MarianTokenizer.open(folder), min(limit, model.config.max_positions) - 1)

    def weight(self, name: str) -> NDArray[np.float32]:
        """float32[n, k]: a matrix of the model, to be left as it is."""
        return self._state[name].numpy()

    def translate(
        self, sources: Sequence[str], weights: Mapping[str, NDArray[np.float32]]
    ) -> list[str]:
        """One translation a line, with these ``weights`` in place of the model's."""
        executor = TorchExecutor(self._model, weights=weights)
        ids = [self._tokenizer.encode(line) for line in sources]
        # broken weights ramble until they are stopped
        found = greedy_translations(executor, ids, lambda tokens: min(self._longest, 2 * tokens + 10))
        return [self._tokenizer.decode(tokens) for tokens in found]
