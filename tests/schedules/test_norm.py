# SPDX-License-Identifier: Apache-2.0
"""Layer norm equals NumPy within rounding; the table it writes is that of the row it wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedules.lut_table import reference as table_reference
from schedules.norm import NormSpec, norm, reference
from schedules.packing import ColumnLayout
from schedules.table_output import table_shapes

SPECS = [
    NormSpec(width=512, epsilon=1e-5, residual=True, table=ColumnLayout(k=512, group_size=128)),
    NormSpec(width=40, epsilon=1e-6, residual=True, table=ColumnLayout(k=40, group_size=10), tables="exact"),
    NormSpec(width=39, epsilon=1e-5, residual=False),
    NormSpec(width=7, epsilon=1e-12, residual=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: str(s.width))
def test_equals_reference(build: Any, level: Any, spec: NormSpec) -> None:
    rng = np.random.default_rng(spec.width)
    m, d = 6, spec.width
    x, residual = rng.standard_normal((2, m, d)).astype(np.float32)
    gamma, beta = rng.standard_normal((2, d)).astype(np.float32)
    x[1] = residual[1] = 0.5  # no variance: y = beta
    x[2] += 1000
    x[3] *= np.float32(1e-12)
    x[4] *= np.float32(1e12)
    inputs = [x, *([residual] if spec.residual else []), gamma, beta]
    tables = [] if spec.table is None else table_shapes(spec.table, spec.tables)
    y, *rest = build(norm(spec), level)(inputs, ((m, d), "float32"), *(((m, *s), t) for _, s, t in tables))
    expected = reference(x, residual if spec.residual else None, gamma, beta, spec)
    scale = np.abs(expected).max()
    plain = np.arange(m) != 2
    np.testing.assert_allclose(y[plain], expected[plain], rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(y[2], expected[2], atol=1e-3)  # half of the digits are in the mean
    if spec.table is not None:
        for found, wanted in zip(rest[:3], table_reference(y, spec.table, spec.tables), strict=True):
            assert np.array_equal(found, wanted)


def test_not_finite_stays_in_its_row(build: Any, level: Any) -> None:
    spec = SPECS[0]
    assert spec.table is not None
    x, residual = np.random.default_rng(0).standard_normal((2, 3, 512)).astype(np.float32)
    ones = np.ones(512, np.float32)
    outputs = [((3, 512), "float32"), *(((3, *s), t) for _, s, t in table_shapes(spec.table, "int8"))]
    kernel = build(norm(spec), level)
    clean = kernel([x, residual, ones, ones], *outputs)[:4]
    x[1, 7] = np.nan
    for a, b in zip(clean, kernel([x, residual, ones, ones], *outputs)[:4], strict=True):
        assert np.array_equal(a[::2], b[::2])
