# SPDX-License-Identifier: Apache-2.0
"""LowerPooling: rows of sentences and rows of unit length become kernels, whose code equal widths share."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import relax

from relay_passes.lower_pooling import LowerPooling
from schedules.pooling import normalize, pooling

INPUTS = {"x": "float32[t, 32]", "offsets": "int32[b]"}


def sentences(g: Any, symbol: str, x: Any, offsets: Any) -> Any:
    out = relax.TensorType([offsets.ty.shape[0] - 1, 32], "float32")
    return g.builder.emit(relax.op.call_dps_packed(symbol, [x, offsets], out))


@pytest.mark.parametrize(("symbol", "pool"), [("tvmq.mean_tokens", "mean"), ("tvmq.first_token", "first")])
def test_pooling(graph: Any, apply: Any, same: Any, symbol: str, pool: Any) -> None:
    before = graph(INPUTS, {}, lambda g, x, offsets: sentences(g, symbol, x, offsets))

    def body(g: Any, x: Any, offsets: Any) -> Any:
        kernel = g.builder.add_func(pooling(pool, 32), "pooling")
        out = relax.TensorType([offsets.ty.shape[0] - 1, 32], "float32")
        return g.builder.emit(relax.op.call_tir(kernel, [x, offsets], out))

    after = apply(before, LowerPooling())
    same(after, graph(INPUTS, {}, body))
    same(apply(after, LowerPooling()), after)


def test_normalize(graph: Any, apply: Any, same: Any) -> None:
    inputs = {"x": "float32[m, 32]"}
    before = graph(inputs, {}, lambda g, x: g.external("tvmq.l2_normalize", [x], x))
    expected = graph(
        inputs, {}, lambda g, x: g.kernel(normalize(32), "normalize", [x], "float32[m, 32]")[0]
    )
    same(apply(before, LowerPooling()), expected)


def test_equal_kernels_exist_once(graph: Any, apply: Any, operators: Any) -> None:
    def body(g: Any, x: Any, offsets: Any) -> Any:
        first, again = (sentences(g, "tvmq.first_token", x, offsets) for _ in range(2))
        return g.add(g.add(first, again), sentences(g, "tvmq.mean_tokens", x, offsets))

    after = apply(graph(INPUTS, {}, body), LowerPooling())
    assert operators(after) == ["pooling", "pooling", "relax.add", "pooling1", "relax.add"]


def test_other_operators_stay(graph: Any, apply: Any, same: Any) -> None:
    before = graph(INPUTS, {}, lambda g, x, offsets: sentences(g, "other.pooling", x, offsets))
    same(apply(before, LowerPooling()), before)
