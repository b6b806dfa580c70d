# SPDX-License-Identifier: Apache-2.0
"""Attention over caches and encoder memory equals a plain softmax in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.attention import AttentionSpec, attention, reference
from schedules.lut_table import reference as table_reference
from schedules.packing import ColumnLayout
from schedules.table_output import table_shapes

LENGTHS = [1, 16, 0, 17, 40]
OFFSETS = np.cumsum([0, *LENGTHS]).astype(np.int32)
TOTAL = int(OFFSETS[-1])
WIDTHS = [(40, 2, True), (12, 2, False), (3, 1, False)]
Float = NDArray[np.float32]


def spec_of(kind: Any, width: int, heads: int, table: bool) -> AttentionSpec:
    layout = ColumnLayout(k=width, group_size=width) if table else None
    return AttentionSpec(kind=kind, heads=heads, width=width, table=layout)


def rows(rng: np.random.Generator, *shape: int) -> Float:
    return rng.standard_normal(shape).astype(np.float32)


def run(build: Any, level: Any, spec: AttentionSpec, inputs: list[NDArray], expected: Float) -> list[NDArray]:
    """Compares the output (and its table) with ``expected``; gives back the inputs after the call."""
    m = expected.shape[0]
    tables = [] if spec.table is None else table_shapes(spec.table, spec.tables)
    outputs = [(expected.shape, "float32"), *(((m, *shape), dtype) for _, shape, dtype in tables)]
    found = build(attention(spec), level)(inputs, *outputs)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    if spec.table is not None:
        for table, wanted in zip(found[1:4], table_reference(found[0], spec.table), strict=True):
            assert np.array_equal(table, wanted)
    return found[len(outputs) :]


@pytest.mark.parametrize(("width", "heads", "table"), WIDTHS)
def test_cross(build: Any, level: Any, width: int, heads: int, table: bool) -> None:
    rng = np.random.default_rng(width)
    k, v = rows(rng, 2, TOTAL, width)
    sentences = np.array([4, 0, 1, 1, 3, 0], np.int32)
    q = rows(rng, len(sentences), width)
    expected = np.stack(
        [
            reference(row, k[OFFSETS[s] : OFFSETS[s + 1]], v[OFFSETS[s] : OFFSETS[s + 1]], heads)
            for row, s in zip(q, sentences, strict=True)
        ]
    )
    run(build, level, spec_of("cross", width, heads, table), [q, k, v, OFFSETS, sentences], expected)


@pytest.mark.parametrize("positions", [[0] * 4, [15] * 4, [16] * 4, [39] * 4, [0, 3, 17, 39]])
@pytest.mark.parametrize(("width", "heads", "table"), WIDTHS)
def test_cached_follows_ancestry(
    build: Any, level: Any, width: int, heads: int, table: bool, positions: list[int]
) -> None:
    rng = np.random.default_rng(width)
    m, slots, limit = 4, 6, 40
    q, k, v = rows(rng, 3, m, width)
    k_cache, v_cache = rows(rng, 2, slots, limit, width)
    position = np.array(positions, np.int32)
    ancestry = rng.integers(0, slots, (m, limit)).astype(np.int32)
    k_after, v_after = k_cache.copy(), v_cache.copy()
    k_after[np.arange(m), position], v_after[np.arange(m), position] = k, v
    expected = []
    for row in range(m):
        times = np.arange(position[row] + 1)
        slot = np.where(times < position[row], ancestry[row, times], row)
        expected.append(reference(q[row], k_after[slot, times], v_after[slot, times], heads))
    inputs = [q, k, v, k_cache, v_cache, position, ancestry]
    after = run(build, level, spec_of("cached", width, heads, table), inputs, np.stack(expected))
    for found, wanted in zip(after, [q, k, v, k_after, v_after, position, ancestry], strict=True):
        assert np.array_equal(found, wanted)


def test_ancestry_of_the_future_is_never_read(build: Any, level: Any) -> None:
    q = np.ones((1, 3), np.float32)
    caches = [np.zeros((1, 2, 3), np.float32)] * 2
    ancestry = np.array([[2**31 - 1, 2**31 - 1]], np.int32)
    inputs = [q, q, 5 * q, *caches, np.zeros(1, np.int32), ancestry]
    run(build, level, spec_of("cached", 3, 1, False), inputs, 5 * q)


@pytest.mark.parametrize("factor", [0, 1e-20, 100, 1e4])
def test_extreme_scores(build: Any, level: Any, factor: float) -> None:
    """Scores far apart select one key, equal ones average all, also when the maximum comes late."""
    rng = np.random.default_rng(5)
    q, k, v = rows(rng, 3, TOTAL, 12)
    k = k * np.float32(factor)
    k[OFFSETS[4] + 35] *= 3
    sentences = np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS)
    spans = [slice(*OFFSETS[s : s + 2]) for s in sentences]
    expected = np.stack([reference(q[i], k[span], v[span], 2) for i, span in enumerate(spans)])
    inputs = [q, k, v, OFFSETS, sentences]
    found = build(attention(spec_of("cross", 12, 2, False)), level)(inputs, (q.shape, "float32"))[0]
    # A float32 score of 1e4 is off by 1e-3, so weights are off by as much.
    np.testing.assert_allclose(found, expected, atol=1e-5 + 1e-6 * factor)


def test_heads_must_divide_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide width 40"):
        AttentionSpec(kind="cross", heads=3, width=40)
