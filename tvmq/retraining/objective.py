# SPDX-License-Identifier: Apache-2.0
"""The loss of distillation: how far the student's distribution of the next token is from the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tvmq.samples import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBatch:
    """``samples.Batch`` on a device; ``real`` bool[B, T] marks target positions that are no padding."""

    source: Tensor
    source_lengths: Tensor
    target: Tensor
    real: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> TensorBatch:
        """Copy a batch to ``device``."""
        real = torch.arange(batch.target.shape[1]) < torch.from_numpy(batch.target_lengths)[:, None]
        arrays = (
            torch.from_numpy(batch.source),
            torch.from_numpy(batch.source_lengths),
            torch.from_numpy(batch.target),
            real,
        )
        source, lengths, target, real = (array.to(device, non_blocking=True) for array in arrays)
        return cls(source=source, source_lengths=lengths, target=target, real=real)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments of a family's whole-sentence module."""
        return self.source, self.source_lengths, self.target


def losses(student: Tensor, teacher: Tensor, batch: TensorBatch) -> tuple[Tensor, Tensor]:
    """Mean KL(teacher || student) and mean cross-entropy with the reference, in nats per real token.

    Args:
        student, teacher: logits [B, T, V].
        batch: the targets.
    """
    real = batch.real.reshape(-1)
    log_q = F.log_softmax(student.flatten(0, 1)[real].float(), -1)
    log_p = F.log_softmax(teacher.flatten(0, 1)[real].float(), -1)
    divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True) / len(log_q)
    return divergence, F.nll_loss(log_q, batch.target.reshape(-1)[real])
