# SPDX-License-Identifier: Apache-2.0
"""The PyTorch reference executor: runs a family's graphs eagerly under the search protocol.

Tests and ``eval`` compare compiled models with it; weights can be replaced by dequantized ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tvmq.errors import InputError, UsageError
from tvmq.search import SearchOptions, greedy_search

from .marian import DecoderStep, Encoder, MarianModel

BATCH = 64
"""Sentences of similar length that are decoded together."""


class TorchExecutor:
    """A model ready to decode in PyTorch.

    ``weights`` replaces tensors by checkpoint name (float32, shape of the original); the model given is not
    changed. InputError for an unknown name or another shape.
    """

    def __init__(
        self, model: MarianModel, *, weights: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        self.model = _replaced(model, weights) if weights else model
        self.encoder = Encoder(self.model)
        self.decoder = DecoderStep(self.model)

    @torch.inference_mode()
    def begin(self, sources: Sequence[Sequence[int]], *, beams: int = 1, max_new_tokens: int) -> TorchSession:
        """Encode ``sources`` (token ids with the end token) and return the session that decodes them."""
        config = self.model.config
        if max_new_tokens > config.max_positions:
            raise UsageError(
                f"max_new_tokens {max_new_tokens} is more than the model's {config.max_positions} positions"
            )
        lengths = [len(source) for source in sources]
        for i, length in enumerate(lengths):
            if not 1 <= length <= config.max_positions:
                raise InputError(
                    f"sentence {i} has {length} tokens, the model takes 1 to {config.max_positions}; split it"
                )
        ids = np.concatenate([np.asarray(source, np.int64) for source in sources])
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            raise InputError(
                f"token ids must be from 0 to {config.vocab_size - 1}; use the model's tokenizer"
            )
        positions = torch.from_numpy(
            np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        )
        offsets = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
        memory = self.encoder(torch.from_numpy(ids.astype(np.int32)), positions, offsets)
        return TorchSession(self.decoder, list(memory), offsets, len(sources) * beams, max_new_tokens)


def greedy_translations(
    executor: TorchExecutor, sources: Sequence[Sequence[int]], longest: Callable[[int], int]
) -> list[Sequence[int]]:
    """Greedy search, as the runtime does it: the tokens of every source, end token included.

    Args:
        executor: the model.
        sources: token ids with the end token.
        longest: tokens of the longest source of a batch -> most tokens of an output.
    """
    config = executor.model.config
    outputs: list[Sequence[int]] = [()] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        steps = longest(len(sources[chosen[-1]]))
        options = SearchOptions(
            max_new_tokens=steps,
            eos_id=config.eos_id,
            start_id=config.start_id,
            forced_eos_id=config.forced_eos_id,
        )
        session = executor.begin([sources[i] for i in chosen], max_new_tokens=steps)
        found = greedy_search(None, len(chosen), options, greedy_step=session.greedy_step)
        for i, (best,) in zip(chosen, found, strict=True):
            outputs[i] = best.tokens
    return outputs


class TorchSession:
    """Decoding of one batch: caches, ancestry and the step functions that ``tvmq.search`` calls."""

    def __init__(
        self, decoder: DecoderStep, memory: list[Tensor], offsets: Tensor, slots: int, max_new_tokens: int
    ) -> None:
        config = decoder.config
        self._decoder, self._memory, self._offsets = decoder, memory, offsets
        self._caches = [torch.zeros(slots, max_new_tokens, config.d_model) for _ in memory]
        self._ancestry = torch.zeros((slots, max_new_tokens), dtype=torch.int32)
        self._position = 0

    @torch.inference_mode()
    def logits(
        self, tokens: NDArray[np.int32], parents: NDArray[np.int32], sentences: NDArray[np.int32]
    ) -> Tensor:
        """Take one step for each row; float32[m, V], unmasked."""
        rows = torch.from_numpy(parents)
        ancestry = self._ancestry[rows]
        if self._position:
            ancestry[:, self._position - 1] = rows
        self._ancestry = ancestry
        position = torch.full((len(tokens),), self._position, dtype=torch.int32)
        self._position += 1
        return self._decoder(
            torch.from_numpy(tokens),
            position,
            torch.from_numpy(sentences),
            ancestry,
            self._offsets,
            self._caches,
            self._memory,
        )

    @torch.inference_mode()
    def step(
        self, tokens: NDArray[np.int32], parents: NDArray[np.int32], sentences: NDArray[np.int32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The k best next tokens but padding: log probabilities float32[m, k] descending, ids int32[m, k]."""
        scores = self.logits(tokens, parents, sentences).log_softmax(-1)
        scores[:, self._decoder.config.pad_id] = float("-inf")
        best = scores.topk(k)
        return best.values.numpy(), best.indices.to(torch.int32).numpy()

    @torch.inference_mode()
    def greedy_step(
        self, tokens: NDArray[np.int32], parents: NDArray[np.int32], sentences: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """The best next token but padding of each row, int32[m]."""
        logits = self.logits(tokens, parents, sentences)
        logits[:, self._decoder.config.pad_id] = float("-inf")
        return logits.argmax(-1).to(torch.int32).numpy()


def _replaced(model: MarianModel, weights: Mapping[str, NDArray[np.float32]]) -> MarianModel:
    state = dict(model.state_dict())
    for name, value in weights.items():
        if name not in state:
            raise InputError(f"the model has no tensor {name} to replace")
        if tuple(state[name].shape) != value.shape:
            raise InputError(f"{name} is {tuple(state[name].shape)}, its replacement {value.shape}")
        state[name] = torch.from_numpy(np.ascontiguousarray(value, np.float32))
    with torch.device("meta"):
        copy = MarianModel(model.config)
    copy.load_state_dict(state, assign=True)
    return copy.requires_grad_(False).eval()
