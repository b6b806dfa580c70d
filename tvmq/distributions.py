# SPDX-License-Identifier: Apache-2.0
"""What a model says as a distribution: how far two are apart, and draws whose gradients give the Hessian.

Losses of different matrices add up because all are measured in one unit, the KL of these distributions. Where
outputs are no choice among labels they are the mean of a Gaussian of unit variance, whose KL is half the
squared distance: for embeddings of unit length 1 - cosine.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Distribution(Protocol):
    """One distribution for each row of a model's outputs [rows, width]."""

    def of(self, outputs: Tensor) -> Tensor:
        """The form of outputs that the other functions take, and that is kept of the unchanged model."""
        ...

    def divergence(self, p: Tensor, q: Tensor) -> float:
        """KL(p || q), summed over rows."""
        ...

    def log_likelihood(self, p: Tensor, generator: torch.Generator) -> Tensor:
        """Of one value drawn from each row of p itself, summed; the draw does not depend on the weights.

        The second moment of its gradient by p is the Hessian of KL(p || p') at p' = p.
        """
        ...


class Categorical:
    """One of the labels; outputs are logits, kept as log-probabilities."""

    def of(self, outputs: Tensor) -> Tensor:
        return torch.log_softmax(outputs, -1)

    def divergence(self, p: Tensor, q: Tensor) -> float:
        return float(torch.exp(p).mul_(p - q).sum(dtype=torch.float64))

    def log_likelihood(self, p: Tensor, generator: torch.Generator) -> Tensor:
        return p.gather(1, torch.multinomial(p.detach().exp(), 1, generator=generator)).sum()


class Bernoulli:
    """Each label on its own; outputs are logits, kept as they are."""

    def of(self, outputs: Tensor) -> Tensor:
        return outputs

    def divergence(self, p: Tensor, q: Tensor) -> float:
        yes = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q))
        no = (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
        return float((yes + no).sum(dtype=torch.float64))

    def log_likelihood(self, p: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.bernoulli(p.detach().sigmoid(), generator=generator).bool()
        return F.logsigmoid(torch.where(drawn, p, -p)).sum()


class Gaussian:
    """Means of unit variance; outputs are kept as they are."""

    def of(self, outputs: Tensor) -> Tensor:
        return outputs

    def divergence(self, p: Tensor, q: Tensor) -> float:
        return float((p - q).square().sum(dtype=torch.float64)) / 2

    def log_likelihood(self, p: Tensor, generator: torch.Generator) -> Tensor:
        drawn = p.detach() + torch.randn(p.shape, generator=generator)
        return -(drawn - p).square().sum() / 2
