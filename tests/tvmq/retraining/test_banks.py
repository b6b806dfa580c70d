# SPDX-License-Identifier: Apache-2.0
"""Trainable codes against brute force over all codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from schedules.pow2 import pow2_scales, pow2_values
from tvmq.retraining.banks import Bank, FixedBank, Groups, NearestBank, ProjectedBank

CASES = [(planes, offset) for planes in (1, 2, 3, 4) for offset in (False, True)]
GROUPS, SIZE = 5, 48


def patterns(planes: int) -> Tensor:
    return torch.tensor([[1.0 if n >> i & 1 else -1.0 for i in range(planes)] for n in range(1 << planes)])


def make(kind: type[Bank], planes: int, offset: bool, seed: int = 0) -> Bank:
    torch.manual_seed(seed)
    latent = torch.randn(GROUPS, SIZE)
    scales = torch.rand(planes, GROUPS).sort(0, descending=True).values * 0.8 + 0.1
    offsets = torch.randn(GROUPS) * 0.1 if offset else None
    codes = torch.rand(planes, GROUPS, SIZE) > 0.5
    return kind(Groups(latent=latent, scales=scales, offsets=offsets, codes=codes))


def nearest(bank: Bank) -> tuple[Tensor, Tensor]:
    """Values [N, m] and codes [N, m, q] by trying every code."""
    codes = patterns(len(bank.scales))
    levels = codes @ bank.scales.detach()
    if bank.offsets is not None:
        levels = levels + bank.offsets.detach()
    chosen = (bank.latent.detach()[None] - levels[:, :, None]).abs().argmin(0)
    return levels.T.gather(1, chosen), codes[chosen]


@pytest.mark.parametrize(("planes", "offset"), CASES)
def test_every_weight_is_its_nearest_level(planes: int, offset: bool) -> None:
    bank = make(NearestBank, planes, offset)
    torch.testing.assert_close(bank(torch.float32), nearest(bank)[0])


@pytest.mark.parametrize(("planes", "offset"), CASES)
def test_gradients_of_scales_are_exact(planes: int, offset: bool) -> None:
    bank = make(NearestBank, planes, offset)
    gradient = torch.randn(GROUPS, SIZE)
    bank(torch.float32).backward(gradient)
    codes = nearest(bank)[1]
    assert bank.scales.grad is not None
    torch.testing.assert_close(bank.scales.grad, torch.einsum("nm,nmq->qn", gradient, codes))
    if bank.offsets is not None:
        torch.testing.assert_close(bank.offsets.grad, gradient.sum(1))


def test_gradients_pass_straight_through_but_not_outwards() -> None:
    weights = torch.tensor([[-3.0, 3.0, -3.0, 3.0, 0.2]])
    codes = (weights > 0)[None]
    bank = NearestBank(Groups(latent=weights, scales=torch.tensor([[1.0]]), offsets=None, codes=codes))
    gradient = torch.tensor([[1.0, -1.0, -1.0, 1.0, 0.5]])
    bank(torch.float32).backward(gradient)
    assert bank.latent.grad is not None
    assert bank.latent.grad.tolist() == [[0.0, 0.0, -1.0, 1.0, 0.5]]


@pytest.mark.parametrize(("planes", "offset"), CASES)
def test_projection_never_moves_codes_further_from_the_weights(planes: int, offset: bool) -> None:
    bank = make(NearestBank, planes, offset)
    before = (bank(torch.float32) - bank.latent).square().sum()
    bank.project()
    assert (bank(torch.float32) - bank.latent).square().sum() <= before + 1e-5


@pytest.mark.parametrize(("planes", "offset"), CASES)
def test_projected_weights_are_levels_and_projecting_again_keeps_them(planes: int, offset: bool) -> None:
    bank = make(ProjectedBank, planes, offset)
    free = bank(torch.float32)
    torch.testing.assert_close(free, bank.latent)
    bank.project()
    once = bank(torch.float32).clone()
    torch.testing.assert_close(once, nearest(bank)[0])
    bank.project()
    torch.testing.assert_close(bank(torch.float32), once, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [NearestBank, ProjectedBank, FixedBank])
@pytest.mark.parametrize(("planes", "offset"), CASES)
def test_what_is_stored_is_what_was_trained(kind: type[Bank], planes: int, offset: bool) -> None:
    bank = make(kind, planes, offset)
    if kind is FixedBank:  # trained scales may change their sign and order
        with torch.no_grad():
            bank.scales[0] *= -0.3
    bank.project()
    codes, params = bank.stored("float32")
    scales = params[:planes]
    assert (scales >= 0).all()
    assert (scales[:-1] >= scales[1:]).all()
    value = ((codes.float() * 2 - 1) * scales[:, :, None]).sum(0)
    value = value + params[planes][:, None] if offset else value
    torch.testing.assert_close(value, bank(torch.float32))


@pytest.mark.parametrize("kind", [NearestBank, FixedBank])
def test_stored_scales_have_the_plans_form(kind: type[Bank]) -> None:
    bank = make(kind, 3, True)
    _, params = bank.stored("pow2")
    values = params.numpy()
    assert np.array_equal(pow2_values(*pow2_scales(values)), values)
    exact = bank.stored("float32")[1].numpy()
    assert 0 < np.abs(values - exact).max() <= np.abs(exact).sum(0).max() / 64


def test_fixed_codes_train_only_scales() -> None:
    bank = make(FixedBank, 2, True)
    bank(torch.float32).sum().backward()
    assert bank.latent.grad is None
    codes = getattr(bank, "codes").float() * 2 - 1  # noqa: B009
    torch.testing.assert_close(bank.scales.grad, codes.sum(2))
    assert bank.scale_parameters() == [bank.scales, bank.offsets]
