# SPDX-License-Identifier: Apache-2.0
"""Scores on a development set while a model is trained: loss with known targets, BLEU of greedy search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tvmq.evaluation import read_pairs, score
from tvmq.samples import Batch, Samples, batch_rows, batches, read_samples
from tvmq.tokenizer import MarianTokenizer

from .objective import TensorBatch, losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Development:
    """A development set.

    Attributes:
        samples: token ids.
        references: target texts.
        tokenizer: decodes the model's output.
    """

    samples: Samples
    references: list[str]
    tokenizer: MarianTokenizer

    @classmethod
    def read(cls, model: Path, data: Path, limit: int | None = None) -> Development:
        """From a file of ``source TAB reference`` lines; InputError where it cannot be used."""
        _, references = read_pairs(data, limit=limit)
        return cls(
            samples=read_samples(model, data, limit=limit),
            references=references,
            tokenizer=MarianTokenizer.open(model),
        )

    @torch.inference_mode()
    def loss(
        self, student: nn.Module, teacher: nn.Module, tokens: int, pad_id: int, device: torch.device
    ) -> tuple[float, float]:
        """KL to the teacher and cross-entropy with the references, nats per token."""
        total, sums = 0, [0.0, 0.0]
        for batch in batches(self.samples, tokens, pad_id):
            on_device = TensorBatch.of(batch, device)
            found = losses(student(*on_device.inputs), teacher(*on_device.inputs), on_device)
            count = int(batch.target_lengths.sum())
            total += count
            sums = [before + float(value) * count for before, value in zip(sums, found, strict=True)]
        return sums[0] / total, sums[1] / total

    def bleu(self, student: Any, tokens: int, device: torch.device) -> float:
        """BLEU of greedy search, every prefix computed anew (no cache: training code stays one forward)."""
        texts = [""] * len(self.samples)
        # outputs may be twice as long as sources, and logits of all their positions are held at once
        for places in batch_rows(self.samples.lengths(), tokens // 4):
            batch = self.samples.batch(places, student.config.pad_id)
            for place, ids in zip(places, _greedy(student, batch, device), strict=True):
                texts[place] = self.tokenizer.decode(ids)
        return score(texts, self.references).value


@torch.inference_mode()
def _greedy(student: Any, batch: Batch, device: torch.device) -> Sequence[list[int]]:
    """The best continuation of each row until its end token or twice the source's length + 10."""
    config = student.config
    memory, mask = student.encode(
        torch.from_numpy(batch.source).to(device), torch.from_numpy(batch.source_lengths).to(device)
    )
    limit = min(2 * batch.source.shape[1] + 10, config.max_positions)
    words = torch.full((len(memory), 1), config.start_id, dtype=torch.int64, device=device)
    rows = torch.arange(len(memory), device=device)  # those that go on
    for _ in range(limit - 1):
        logits: Tensor = student.decode(words[rows], memory[rows], mask[rows], last=True)[:, -1]
        logits[:, config.pad_id] = -torch.inf
        best = torch.full((len(words),), config.eos_id, device=device)
        best[rows] = logits.argmax(-1)
        words = torch.cat([words, best[:, None]], 1)
        rows = rows[best[rows] != config.eos_id]
        if not len(rows):
            break
    return [row[: row.index(config.eos_id)] if config.eos_id in row else row for row in words[:, 1:].tolist()]
