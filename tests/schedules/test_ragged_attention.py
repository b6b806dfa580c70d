# SPDX-License-Identifier: Apache-2.0
"""Attention within sentences equals a plain softmax; a sentence's numbers do not depend on its neighbours."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.lut_table import reference as table_reference
from schedules.packing import ColumnLayout
from schedules.ragged_attention import RaggedSpec, ragged_attention, reference, work_columns
from schedules.table_output import table_shapes

LENGTHS = [1, 16, 0, 17, 40, 3, 5]
OFFSETS = np.cumsum([0, *LENGTHS]).astype(np.int32)
TOTAL = int(OFFSETS[-1])
Float = NDArray[np.float32]


def rows(seed: int, *shape: int) -> Float:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(build: Any, level: Any, spec: RaggedSpec, inputs: list[NDArray]) -> list[NDArray]:
    """The output, then its table if there is one."""
    m = len(inputs[0])
    tables = [] if spec.table is None else table_shapes(spec.table, spec.tables)
    outputs: list[Any] = [((m, spec.width), "float32")]
    outputs += [((m, *shape), dtype) for _, shape, dtype in tables]
    work = ((spec.work_rows, work_columns(m)), "float32")
    return build(ragged_attention(spec), level)(inputs, *outputs, work)[: len(outputs)]


@pytest.mark.parametrize(
    ("width", "heads", "table"), [(40, 2, True), (12, 2, False), (3, 1, False), (64, 2, True)]
)
def test_equals_reference(build: Any, level: Any, width: int, heads: int, table: bool) -> None:
    layout = ColumnLayout(k=width, group_size=width) if table else None
    spec = RaggedSpec(heads=heads, width=width, table=layout)
    q, k, v = rows(width, 3, TOTAL, width)
    y, *found = run(build, level, spec, [q, k, v, OFFSETS])
    expected = reference(q, k, v, OFFSETS, heads)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    if layout is not None:
        for part, wanted in zip(found, table_reference(y, layout), strict=True):
            assert np.array_equal(part, wanted)


def test_a_sentence_alone_gives_the_same_bits(build: Any, level: Any) -> None:
    spec = RaggedSpec(heads=2, width=40)
    q, k, v = rows(7, 3, TOTAL, 40)
    (together,) = run(build, level, spec, [q, k, v, OFFSETS])
    for a, b in pairwise(OFFSETS):
        if a < b:
            offsets = np.array([0, b - a], np.int32)
            (alone,) = run(build, level, spec, [q[a:b], k[a:b], v[a:b], offsets])
            assert alone.tobytes() == together[a:b].tobytes()


def test_other_sentences_may_hold_anything(build: Any, level: Any) -> None:
    """Blocks of keys reach beyond their sentence: what lies there must not count."""
    spec = RaggedSpec(heads=1, width=16)
    q, k, v = rows(3, 3, 8, 16)
    k[3:], v[3:] = np.nan, np.nan
    (y,) = run(build, level, spec, [q, k, v, np.array([0, 3, 8], np.int32)])
    np.testing.assert_allclose(
        y[:3], reference(q, k, v, np.array([0, 3], np.int32), 1)[:3], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("factor", [0, 1e-20, 100, 1e4])
def test_extreme_scores(build: Any, level: Any, factor: float) -> None:
    """Scores far apart select one key, equal ones average all, also when the maximum comes late."""
    q, k, v = rows(5, 3, TOTAL, 12)
    k = k * np.float32(factor)
    k[OFFSETS[4] + 35] *= 3
    (found,) = run(build, level, RaggedSpec(heads=2, width=12), [q, k, v, OFFSETS])
    # A float32 score of 1e4 is off by 1e-3, so weights are off by as much.
    np.testing.assert_allclose(found, reference(q, k, v, OFFSETS, 2), atol=1e-5 + 1e-6 * factor)


def test_heads_must_divide_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide width 40"):
        RaggedSpec(heads=3, width=40)
