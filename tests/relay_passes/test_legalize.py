# SPDX-License-Identifier: Apache-2.0
"""Legalize: what is left becomes TensorIR, infinities in masks included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.legalize import Legalize


def run(module: tvm.IRModule, x: np.ndarray) -> np.ndarray:
    machine = relax.VirtualMachine(relax.build(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("value", [-math.inf, math.inf, 1.5])
def test_full(graph: Any, apply: Any, operators: Any, value: float) -> None:
    """``-inf`` is what TVM's own rule refuses."""

    def body(g: Any, x: Any) -> Any:
        return g.add(x, g.full(relax.ShapeExpr([x.ty.shape[0], 3]), relax.const(value, "float32")))

    after = apply(graph({"x": "float32[m, 3]"}, {}, body), Legalize())
    assert operators(after) == ["full", "add"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(run(after, x), x + np.float32(value))


def test_kernels_and_plain_operators(graph: Any, apply: Any, operators: Any, same: Any) -> None:
    module = graph({"x": "float32[m, 3]"}, {}, lambda g, x: g.exp(g.add(x, x)))
    after = apply(module, Legalize())
    assert operators(after) == ["add", "tir_exp"]
    same(apply(after, Legalize()), after)
