# SPDX-License-Identifier: Apache-2.0
"""The FP32 product equals NumPy: exactly on whole numbers, within rounding otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedules.float_gemm import FloatSpec, float_gemm, pack, reference

SPECS = [
    FloatSpec(n=130, k=40, bias=True, activation="relu"),
    FloatSpec(n=64, k=7, bias=False, activation=""),
    FloatSpec(n=1, k=1, bias=True, activation=""),
    FloatSpec(n=83, k=24, bias=True, activation="gelu"),
    FloatSpec(n=64, k=16, bias=False, activation="tanh"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.n}x{s.k}")
def test_equals_reference(build: Any, level: Any, spec: FloatSpec) -> None:
    kernel = build(float_gemm(spec), level)
    rng = np.random.default_rng(spec.n)
    for m in (1, 2, 3, 4, 5, 9):
        x = rng.standard_normal((m, spec.k)).astype(np.float32)
        weight = rng.standard_normal((spec.n, spec.k)).astype(np.float32)
        bias = rng.standard_normal(spec.n).astype(np.float32) if spec.bias else None
        for whole in (False, True):
            if whole:
                x, weight = np.rint(4 * x), np.rint(4 * weight)
                bias = None if bias is None else np.rint(4 * bias)
            inputs = [x, pack(weight), *([] if bias is None else [bias])]
            (y, *_) = kernel(inputs, ((m, spec.n), "float32"))
            expected = reference(x, weight, bias, spec)
            rounding = 0 if whole and spec.activation in ("", "relu") else 1e-5
            np.testing.assert_allclose(y, expected, rtol=rounding, atol=rounding)


def test_pack_pads_with_zero_rows() -> None:
    weight = np.arange(1, 66 * 3 + 1, dtype=np.float32).reshape(66, 3)
    packed = pack(weight)
    assert packed.shape == (2, 3, 64)
    back = packed.transpose(0, 2, 1).reshape(128, 3)
    assert np.array_equal(back[:66], weight)
    assert not back[66:].any()
