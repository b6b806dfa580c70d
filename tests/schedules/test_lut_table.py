# SPDX-License-Identifier: Apache-2.0
"""Lookup tables equal their NumPy meaning bit for bit on every ISA level, also for odd activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.lut_table import Tables, lut_table, reference
from schedules.packing import ColumnLayout

SHAPES = [(4, 4), (10, 10), (96, 48), (520, 520), (512, 128)]


def activations(k: int) -> NDArray[np.float32]:
    """Rows: zeros, huge, subnormal, nearly subnormal, one outlier, mixed zeros, halves that tie, plain."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((8, k)).astype(np.float32)
    x[0] = 0
    x[1] *= np.float32(1e30)
    x[2] *= np.float32(1e-42)
    x[3] *= np.float32(1e-33)
    x[4, k // 2] = 1e6
    x[5, ::3] = 0
    x[6] = np.rint(x[6]) * 0.5
    return x


@pytest.mark.parametrize("tables", ["int8", "exact"])
@pytest.mark.parametrize(("k", "group"), SHAPES)
def test_equals_reference(build: Any, level: Any, k: int, group: int, tables: Tables) -> None:
    layout = ColumnLayout(k=k, group_size=group)
    kernel = build(lut_table(layout, tables), level)
    x = activations(k)
    expected = reference(x, layout, tables)
    table, scale, sums, _ = kernel([x], *((e.shape, e.dtype) for e in expected))
    assert np.array_equal(table, expected[0])
    assert np.array_equal(scale, expected[1])
    assert np.array_equal(sums, expected[2])


def test_int8_entries_are_within_half_a_scale() -> None:
    layout = ColumnLayout(k=96, group_size=48)
    x = activations(96)[4:]
    table, scale, _ = reference(x, layout, "int8")
    exact, _, _ = reference(x, layout, "exact")
    wide = np.repeat(scale, layout.chunk // 4, axis=1)[:, :, None]
    assert np.abs(table * wide - exact).max() <= 0.5001 * wide.max()
    assert table.min() >= -127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_stays_in_its_row(build: Any, level: Any, bad: float) -> None:
    layout = ColumnLayout(k=96, group_size=48)
    x = activations(96)
    clean = reference(x, layout, "int8")
    x[3, 5] = bad
    kernel = build(lut_table(layout, "int8"), level)
    table, scale, sums, _ = kernel([x], *((c.shape, c.dtype) for c in clean))
    others = np.arange(8) != 3
    for found, expected in zip((table, scale, sums), clean, strict=True):
        assert np.array_equal(found[others], expected[others])
    assert not np.isfinite(sums[3, 0])
