# SPDX-License-Identifier: Apache-2.0
"""The simulated activations: what shares a power of two, and that folding and sorting change nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.activation_scales import SCALINGS, Inputs, Scaling, measure_ranges, rounded, simulated

RANGES = np.array([1.0, 64.0, 1.0, 64.0, 1.0, 64.0, 1.0, 64.0])
"""Channels of two kinds, alternating: blocks of four hold both unless they are sorted."""


def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 8, generator=generator) * torch.from_numpy(RANGES).float()


def error(scaling: Scaling) -> float:
    """Largest error of the small channels."""
    x = inputs()
    return float((Inputs.of(scaling, RANGES).round(x, scaling.block) - x)[:, ::2].abs().max())


def test_steps_are_the_least_powers_of_two_that_hold_a_block() -> None:
    x = torch.tensor([[127.0, 0.4, -3.0, 0.26], [0.0, 0.0, 0.0, 0.0]])
    assert rounded(x, 0).tolist() == [[127.0, 0.0, -3.0, 0.0], [0.0] * 4]
    assert rounded(x, 2)[0].tolist() == pytest.approx([127.0, 0.0, -3.0, 0.25])


def test_values_over_a_power_of_two_stay_what_they_are() -> None:
    x = torch.arange(-127, 128, dtype=torch.float32)[None] / 16
    for scaling in (Scaling(), Scaling(sort=True)):
        assert torch.equal(Inputs.of(scaling, np.abs(x[0].numpy())).round(x, 0), x)


def test_sorted_channels_and_channel_exponents_spare_small_channels() -> None:
    plain = error(Scaling(block=4))
    assert error(Scaling(block=4, sort=True)) < plain / 30
    assert error(Scaling(block=4, fold=True)) < plain / 4


@pytest.mark.parametrize("name", SCALINGS)
def test_a_module_is_the_same_afterwards_and_near_inside(name: str) -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128)).eval()
    x = torch.randn(9, 128)
    with torch.inference_mode():
        before = module(x)
        ranges = measure_ranges(module, lambda: module(x))
        assert ranges["0"] == pytest.approx(x.square().mean(0).sqrt().numpy(), rel=1e-5)
        with simulated(module, SCALINGS[name], ranges, levels=True):
            inside = module(x)
        assert torch.equal(module(x), before)
    assert not torch.equal(inside, before)
    assert float((inside - before).norm() / before.norm()) < 0.03
