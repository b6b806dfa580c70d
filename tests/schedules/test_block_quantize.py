# SPDX-License-Identifier: Apache-2.0
"""Requantization of int32 rows, with GELU, ReLU or heads of their own exponents, on every level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedules.block_dequantize import block_dequantize
from schedules.block_dequantize import reference as float_reference
from schedules.block_format import BlockLayout, values_of
from schedules.block_quantize import GELU_TABLES, BlockQuantizeSpec, block_quantize, reference
from schedules.integer_tables import gelu, gelu_table


@pytest.mark.parametrize(
    ("activation", "width", "block", "heads", "bits"),
    [
        ("gelu", 128, 64, 1, 8),
        ("gelu_tanh", 128, 64, 1, 8),
        ("", 96, 96, 3, 8),
        ("relu", 48, 48, 1, 4),
        ("", 768, 64, 12, 8),
    ],
)
def test_kernel_equals_reference(
    build: Any, kernel_level: Any, activation: Any, width: int, block: int, heads: int, bits: int
) -> None:
    rng = np.random.default_rng(width)
    layout = BlockLayout(width=width, block=block, bits=bits)
    spec = BlockQuantizeSpec(layout=layout, source_groups=heads, activation=activation)
    exponents = rng.integers(-20, -15, (5, heads)).astype(np.int32)
    each = np.repeat(exponents, width // heads, axis=1)
    y = np.rint(3 * rng.standard_normal((5, width)) / 2.0**each).astype(np.int32)
    y[0], y[1, 0] = 0, -(1 << 30)
    wanted = reference(y, exponents, spec)
    inputs = [y, exponents, *([GELU_TABLES[activation]()] if activation in GELU_TABLES else [])]
    shapes = (((5, layout.padded), np.int8), ((5, layout.groups), np.int32))
    found = build(block_quantize(spec, kernel_level.kernel_isa), kernel_level)(inputs, *shapes)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])
    if not activation:
        error = np.abs(values_of(*wanted, layout) - np.ldexp(y.astype(float), each))
        step = np.repeat(2.0 ** wanted[1].astype(float), block, axis=1)
        assert (error <= step * 0.51 + 2.0 ** exponents.max(axis=1, keepdims=True)).all()


@pytest.mark.emulated("arm64_v8")
def test_gelu_of_all_magnitudes(build: Any, kernel_level: Any) -> None:
    """Rows around the limits that the 16-bit form has, moved up and down by any shift."""
    rng = np.random.default_rng(7)
    layout = BlockLayout(width=128, block=64)
    spec = BlockQuantizeSpec(layout=layout, activation="gelu")
    exponents = np.concatenate([np.arange(-60, 20), rng.integers(-24, -10, 160)]).astype(np.int32)[:, None]
    bits = np.concatenate([rng.uniform(0, 31, 160), np.clip(4.0 - exponents[160:, 0], 0, 31)])
    y = (rng.uniform(-1, 1, (240, 128)) * 2.0 ** bits[:, None]).astype(np.int32)
    edges = [-(1 << 31), (1 << 31) - 1, -(1 << 30), (1 << 30) - 1, 1 << 30, 0]
    y[np.arange(0, 240, 3), 5] = np.resize(edges, 80)
    wanted = reference(y, exponents, spec)
    found = build(block_quantize(spec, kernel_level.kernel_isa), kernel_level)(
        [y, exponents, gelu_table()], ((240, layout.padded), np.int8), ((240, layout.groups), np.int32)
    )
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def test_gelu_has_no_bump_at_the_end() -> None:
    """The 16-bit form leaves the bump out beyond the table."""
    np.testing.assert_array_equal(gelu(np.array([4 << 16, -(4 << 16)]), gelu_table()), [4 << 16, 0])


def test_blocks_become_floats(build: Any, kernel_level: Any) -> None:
    rng = np.random.default_rng(3)
    layout = BlockLayout(width=96, block=96)
    mantissas = rng.integers(-127, 128, (4, layout.padded)).astype(np.int8)
    exponents = rng.integers(-30, 5, (4, 1)).astype(np.int32)
    channels = rng.integers(-3, 4, 96).astype(np.int8)
    fine = rng.integers(-128, 128, (4, 96)).astype(np.int8)
    (found, *_) = build(block_dequantize(layout), kernel_level)(
        [mantissas, exponents, fine, channels], ((4, 96), np.float32)
    )
    np.testing.assert_array_equal(found, float_reference(mantissas, exponents, fine, channels, layout))


def test_refusals() -> None:
    layout = BlockLayout(width=64, block=64)
    with pytest.raises(ValueError, match="needs rows with one exponent"):
        BlockQuantizeSpec(layout=layout, source_groups=2, activation="gelu")
    with pytest.raises(ValueError, match="do not fit vectors"):
        BlockQuantizeSpec(layout=layout, source_groups=8)
