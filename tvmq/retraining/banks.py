# SPDX-License-Identifier: Apache-2.0
"""Trainable binary codes in PyTorch: all groups of one width and size, of many matrices, in one bank.

A bank holds ``latent`` weights w and the ``scales`` alpha (and offsets z) of N groups of m columns. The model
computes with the quantized value of every weight, which is the nearest level of its group
(``NearestBank``, straight-through), the weight itself between two projections (``ProjectedBank``, the period
of pNR steps of Chung et al. 2020), or fixed codes with trained scales (``FixedBank``). Banks do not know
which matrices they hold; ``weights`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relay_passes.bit_plan import ScaleDtype
from tvmq.quantizers.quantizer import stored

RIDGE = 1e-6
"""Added to the normal equations, relative to the group size."""
REFITS = 4
"""Alternations of a projection: scales by least squares, then codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """N groups of m weights with q planes, as training starts.

    Attributes:
        latent: float32[N, m], the weights.
        scales: float32[q, N], not negative.
        offsets: float32[N], or None.
        codes: bool[q, N, m], the planes that the scales belong to.
    """

    latent: Tensor
    scales: Tensor
    offsets: Tensor | None
    codes: Tensor


class Bank(nn.Module):
    """Trainable groups: attributes as in ``Groups``; codes follow from weights and scales."""

    offsets: Tensor | None

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.latent = nn.Parameter(groups.latent)
        self.scales = nn.Parameter(groups.scales)
        offsets = None if groups.offsets is None else nn.Parameter(groups.offsets)
        self.register_parameter("offsets", offsets)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The weights to compute with, [N, m]."""
        raise NotImplementedError

    def scale_parameters(self) -> list[nn.Parameter]:
        """Scales and offsets."""
        return [p for name, p in self.named_parameters() if name != "latent"]

    @torch.no_grad()
    def project(self) -> None:
        """Called every period: solve the scales again for the weights as they are now."""
        signs = _signs(self.latent, self.scales, self.offsets)
        for _ in range(REFITS):
            solved = _least_squares(signs, self.latent, self.offsets is not None)
            self._set_scales(solved)
            signs = _signs(self.latent, self.scales, self.offsets)

    @torch.no_grad()
    def stored(self, scale_dtype: ScaleDtype) -> tuple[Tensor, Tensor]:
        """Codes bool[q, N, m] and scales, then offsets, as they are shipped: float32[q (+ 1), N]."""
        order = self.scales.abs().argsort(0, descending=True)
        params = self._rounded(self.scales.abs().gather(0, order), scale_dtype)
        planes = len(self.scales)
        offsets = None if self.offsets is None else params[planes]
        return _signs(self.latent, params[:planes], offsets) > 0, params

    def _rounded(self, scales: Tensor, scale_dtype: ScaleDtype) -> Tensor:
        params = scales if self.offsets is None else torch.cat([scales, self.offsets[None]])
        rounded = stored(params.cpu().numpy(), scale_dtype).astype(np.float32)
        return torch.from_numpy(rounded).to(params.device)

    @torch.no_grad()
    def _set_scales(self, solved: Tensor) -> None:
        planes = len(self.scales)
        self.scales.copy_(solved[:planes].abs())
        if self.offsets is not None:
            self.offsets.copy_(solved[planes])


class NearestBank(Bank):
    """Every weight is its nearest level; gradients reach it straight through, and the scales exactly."""

    def forward(self, dtype: torch.dtype) -> Tensor:
        return _Nearest.apply(self.latent, self.scales, self.offsets, dtype)


class ProjectedBank(Bank):
    """Weights are free between projections; the scales only follow them."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        for parameter in self.scale_parameters():
            parameter.requires_grad_(False)

    def forward(self, dtype: torch.dtype) -> Tensor:
        return self.latent.to(dtype)

    @torch.no_grad()
    def project(self) -> None:
        super().project()
        self.latent.copy_(_levels_of(self.latent, self.scales, self.offsets))


class FixedBank(Bank):
    """Codes stay as they are; only scales and offsets are trained."""

    codes: Tensor

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self.latent.requires_grad_(False)
        self.register_buffer("codes", groups.codes)

    def forward(self, dtype: torch.dtype) -> Tensor:
        planes = [
            (plane.to(dtype) * 2 - 1) * scale[:, None].to(dtype)
            for plane, scale in zip(self.codes, self.scales, strict=True)
        ]
        if self.offsets is not None:
            planes.append(self.offsets[:, None].to(dtype))
        return sum(planes[1:], planes[0])

    @torch.no_grad()
    def project(self) -> None:
        """Nothing: codes and scales are as trained."""

    @torch.no_grad()
    def stored(self, scale_dtype: ScaleDtype) -> tuple[Tensor, Tensor]:
        negative = self.scales < 0
        order = self.scales.abs().argsort(0, descending=True)
        codes = self.codes ^ negative[:, :, None]
        places = order[:, :, None].expand_as(codes)
        return codes.gather(0, places), self._rounded(self.scales.abs().gather(0, order), scale_dtype)


class _Nearest(torch.autograd.Function):
    """Nearest level of each weight.

    With levels l_0 < .. < l_L of a group and midpoints m_j, the value is l_0 + sum_j (l_j+1 - l_j) [w > m_j].
    Backward: dL/dw passes straight through, except outwards beyond the last level, where no code could
    follow; dL/d alpha_i = sum over the weights of dL/dvalue * b_i, exactly.
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, scales: Tensor, offsets: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(latent, scales, offsets)
        return _values(latent, *_levels(scales, offsets)[:2], dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        latent, scales, offsets = ctx.saved_tensors
        levels, middles, signs = _levels(scales, offsets)
        into, per_level = _gradients(gradients[0], latent, levels, middles)
        into_scales = torch.einsum("lqn,ln->qn", signs, per_level)
        into_offsets = None if offsets is None else per_level.sum(0)
        return into, into_scales, into_offsets, None


def _values(latent: Tensor, levels: Tensor, middles: Tensor, dtype: torch.dtype) -> Tensor:
    value = levels[0][:, None].expand_as(latent)
    for j in range(len(middles)):
        step = (levels[j + 1] - levels[j])[:, None]
        value = value + torch.where(latent > middles[j][:, None], step, 0.0)
    return value.to(dtype)


def _gradients(gradient: Tensor, latent: Tensor, levels: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dw [N, m] and dL/dlevel [L, N]."""
    wide = gradient.float()
    above = [wide.sum(1)]
    above += [torch.where(latent > middle[:, None], wide, 0.0).sum(1) for middle in middles]
    above.append(torch.zeros_like(above[0]))
    per_level = torch.stack([above[j] - above[j + 1] for j in range(len(levels))])
    outwards = (latent > levels[-1][:, None]) & (wide < 0) | (latent < levels[0][:, None]) & (wide > 0)
    return torch.where(outwards, 0.0, wide), per_level


@lru_cache(maxsize=64)
def _patterns(planes: int, device: torch.device) -> Tensor:
    """All codes: float32[2^q, q] of -1 and +1."""
    numbers = torch.arange(1 << planes, device=device)
    return ((numbers[:, None] >> torch.arange(planes, device=device)) & 1).float() * 2 - 1


def _levels(scales: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Ascending levels [L, N], midpoints [L - 1, N] and the code of each level [L, q, N]."""
    patterns = _patterns(len(scales), scales.device)
    levels, order = (patterns @ scales).sort(0)
    if offsets is not None:
        levels = levels + offsets
    signs = patterns[order].movedim(-1, 1)
    return levels, (levels[1:] + levels[:-1]) / 2, signs


def _levels_of(latent: Tensor, scales: Tensor, offsets: Tensor | None) -> Tensor:
    levels, middles, _ = _levels(scales, offsets)
    return _values(latent, levels, middles, latent.dtype)


def _signs(latent: Tensor, scales: Tensor, offsets: Tensor | None) -> Tensor:
    """The planes of the nearest levels: int8[q, N, m] of -1 and +1."""
    _, middles, signs = _levels(scales, offsets)
    planes = signs[0][:, :, None].expand(-1, -1, latent.shape[1]).to(torch.int8)
    for j, middle in enumerate(middles):
        planes = torch.where(latent > middle[:, None], signs[j + 1][:, :, None].to(torch.int8), planes)
    return planes


def _least_squares(signs: Tensor, latent: Tensor, offset: bool) -> Tensor:
    """Scales (and offsets, last) [u, N] that bring the planes closest to the weights."""
    rows = signs.float()
    if offset:
        rows = torch.cat([rows, torch.ones_like(rows[:1])])
    normal = torch.einsum("ing,jng->nij", rows, rows)
    normal += RIDGE * latent.shape[1] * torch.eye(len(rows), device=latent.device)
    right = torch.einsum("ing,ng->ni", rows, latent)
    return torch.linalg.solve(normal, right).T.contiguous()
