# SPDX-License-Identifier: Apache-2.0
"""Integer layer norm: equal to its reference on every level, and the reference to mathematics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedules.block_format import BlockLayout, fine_part, quantize, values_of
from schedules.block_norm import BlockNormSpec, NormConstants, block_norm, reference
from schedules.integer_tables import rsqrt_table

CASES = [
    (48, 48, None),
    pytest.param(128, 64, 128, marks=pytest.mark.emulated("arm64_v8")),
    (384, 64, 64),
    (768, 768, None),
    (4096, 4096, 64),
]
"""Width, columns of a block, and of the residual's."""


def example(width: int, block: int, residual: int | None, m: int = 7) -> dict[str, Any]:
    rng = np.random.default_rng([width, block])
    layout = BlockLayout(width=width, block=block)
    other = None if residual is None else BlockLayout(width=width, block=residual)
    exponents = rng.integers(-20, -12, m).astype(np.int32)
    y = np.rint(rng.standard_normal((m, width)) / 2.0 ** exponents[:, None]).astype(np.int32)
    y[1] = 5  # no variance
    y[2, 3] *= 30
    own, channels = (rng.integers(-2, 3, width).astype(np.int8) for _ in range(2))
    added = None
    if other is not None:
        rows = np.rint(np.ldexp(rng.standard_normal((m, width)), 20 - channels)).astype(np.int64)
        base = np.full(m, -20)
        blocks = quantize(rows, base, other)
        added = (*blocks, fine_part(rows, base, blocks, other), channels)
        y[0] = 0
    gamma, beta = rng.standard_normal(width), 2 * rng.standard_normal(width)
    constants = NormConstants.of(
        gamma, beta, 1e-5, channels=own, residual_channels=None if added is None else channels
    )
    spec = BlockNormSpec(layout=layout, residual=other)
    return {
        "spec": spec, "y": y, "exponents": exponents, "added": added, "constants": constants,
        "own": own, "gamma": gamma, "beta": beta,
    }  # fmt: skip


@pytest.mark.parametrize(("width", "block", "residual"), CASES)
def test_kernel_equals_reference(
    build: Any, kernel_level: Any, width: int, block: int, residual: int | None
) -> None:
    e = example(width, block, residual)
    c, layout, m = e["constants"], e["spec"].layout, e["y"].shape[0]
    wanted = reference(e["y"], e["exponents"], c, e["spec"], e["added"])
    inputs = [e["y"], e["exponents"], *(e["added"] or ()), c.gamma, c.beta, c.constants, rsqrt_table()]
    shapes = (((m, layout.padded), np.int8), ((m, layout.groups), np.int32), ((m, width), np.int8))
    found = build(block_norm(e["spec"], kernel_level.kernel_isa), kernel_level)(inputs, *shapes)
    for array, right in zip(found[:3], wanted, strict=True):
        np.testing.assert_array_equal(array, right)


@pytest.mark.parametrize(("width", "block", "residual"), CASES)
def test_reference_is_a_layer_norm(width: int, block: int, residual: int | None) -> None:
    """The error is that of rounding the exact result to blocks, and little more."""
    e = example(width, block, residual)
    layout = e["spec"].layout
    h = np.ldexp(e["y"].astype(float), e["exponents"][:, None])
    if e["added"] is not None:
        mantissas, x_exponents, fine, channels = e["added"]
        h = h + values_of(mantissas, x_exponents, e["spec"].residual, channels, fine)
    centered = h - h.mean(axis=1, keepdims=True)
    exact = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5) * e["gamma"] + e["beta"]
    *blocks, fine = reference(e["y"], e["exponents"], e["constants"], e["spec"], e["added"])
    found = values_of(*blocks, layout, e["own"])
    exactly = values_of(*blocks, layout, e["own"], fine)
    whole = np.rint(np.ldexp(exact, 20 - e["own"].astype(int))).astype(np.int64)
    rounded = values_of(*quantize(whole, np.full(len(h), -20), layout), layout, e["own"])
    limit = 1.1 * np.linalg.norm(rounded - exact) + 2.0**-9 * np.linalg.norm(exact)
    assert np.linalg.norm(found - exact) <= limit
    assert np.linalg.norm(exactly - exact) <= 2.0**-8 * np.linalg.norm(exact)


def test_refusals() -> None:
    wide, narrow = BlockLayout(width=8192, block=64), BlockLayout(width=64, block=64)
    with pytest.raises(ValueError, match="4096 at most"):
        BlockNormSpec(layout=wide, residual=None)
    with pytest.raises(ValueError, match="expected equal"):
        BlockNormSpec(layout=narrow, residual=BlockLayout(width=128, block=64))
