# SPDX-License-Identifier: Apache-2.0
"""LowerNorm: one kernel for residual, norm and the table of the result."""

from __future__ import annotations

from typing import Any

from relay_passes.lower_linear import LowerLinear
from relay_passes.lower_norm import LowerNorm
from relay_passes.share_tables import ShareTables
from schedules.lut_gemm import LutSpec, Segment, lut_gemm
from schedules.norm import NormSpec, norm
from schedules.packing import ColumnLayout
from targets import get_target

TARGET = get_target("x86_64_v3")
VECTORS = {"ln.weight": "float32[32]", "ln.bias": "float32[32]"}


def test_plain_norm(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    inputs = {"x": "float32[m, 32]"}
    before = graph(inputs, VECTORS, lambda g, x, a, b: g.layer_norm(x, a, b, axes=[-1], epsilon=0.5))
    kernel = norm(NormSpec(width=32, epsilon=0.5, residual=False))
    expected = graph(
        inputs,
        VECTORS,
        lambda g, x, a, b: g.kernel(kernel, "norm", [x, a, b], "float32[m, 32]")[0],
        planned={},
    )
    same(apply(annotated(before, plan({})), LowerNorm()), expected)


def test_norm_with_residual(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    inputs = {"x": "float32[m, 32]", "y": "float32[m, 32]"}
    before = graph(
        inputs, VECTORS, lambda g, x, y, a, b: g.layer_norm(g.add(x, y), a, b, axes=[-1], epsilon=0.5)
    )
    kernel = norm(NormSpec(width=32, epsilon=0.5, residual=True))
    expected = graph(
        inputs,
        VECTORS,
        lambda g, x, y, a, b: g.kernel(kernel, "norm", [x, y, a, b], "float32[m, 32]")[0],
        planned={},
    )
    same(apply(annotated(before, plan({})), LowerNorm()), expected)


def test_norm_of_a_value_and_itself(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    """x + x: one argument of the composite in two roles."""
    inputs = {"x": "float32[m, 32]"}
    before = graph(
        inputs, VECTORS, lambda g, x, a, b: g.layer_norm(g.add(x, x), a, b, axes=[-1], epsilon=0.5)
    )
    kernel = norm(NormSpec(width=32, epsilon=0.5, residual=True))
    expected = graph(
        inputs,
        VECTORS,
        lambda g, x, a, b: g.kernel(kernel, "norm", [x, x, a, b], "float32[m, 32]")[0],
        planned={},
    )
    same(apply(annotated(before, plan({})), LowerNorm()), expected)


def test_leading_axes_are_rows(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    inputs = {"x": "float32[2, 3, 32]", "y": "float32[2, 3, 32]"}
    before = graph(inputs, VECTORS, lambda g, x, y, a, b: g.layer_norm(g.add(x, y), a, b, axes=[-1]))

    def body(g: Any, x: Any, y: Any, a: Any, b: Any) -> Any:
        kernel = norm(NormSpec(width=32, epsilon=1e-5, residual=True))
        flat = [g.reshape(x, [6, 32]), g.reshape(y, [6, 32])]
        return g.reshape(g.kernel(kernel, "norm", [*flat, a, b], "float32[6, 32]")[0], [2, 3, 32])

    same(apply(annotated(before, plan({})), LowerNorm()), graph(inputs, VECTORS, body, planned={}))


def test_the_table_of_the_result_is_taken_over(
    graph: Any, annotated: Any, apply: Any, same: Any, plan: Any
) -> None:
    bits = plan({"fc.weight": 2})
    inputs, weights = {"x": "float32[m, 32]"}, {**VECTORS, "fc.weight": "float32[64, 32]"}

    def source(g: Any, x: Any, a: Any, b: Any, w: Any) -> Any:
        y = g.layer_norm(x, a, b, axes=[-1], epsilon=0.5)
        return g.concat([y, g.linear(y, w)], axis=1)

    def body(g: Any, x: Any, a: Any, b: Any, keys: Any, scales: Any) -> Any:
        layout = ColumnLayout(k=32, group_size=32)
        kernel = norm(NormSpec(width=32, epsilon=0.5, residual=False, table=layout))
        outputs = ["float32[m, 32]", "int8[m, 8, 16]", "float32[m, 1]", "float32[m, 1]"]
        y, *table = g.kernel(kernel, "norm", [x, a, b], *outputs)
        part = Segment(rows=64, bits=2, group_size=32, offset=False, scale_dtype="float16", output=0, start=0)
        spec = LutSpec(k=32, outputs=(64,), segments=(part,), bias=(False,), activation=("",))
        args = [*table, keys, scales]
        return g.concat([y, g.kernel(lut_gemm(spec, "avx2"), "lut_gemm", args, "float32[m, 64]")[0]], axis=1)

    stored = {"fc.weight:keys": "uint8[1, 2, 1, 4, 64]", "fc.weight:scales": "float16[1, 2, 1, 64]"}
    expected = graph(inputs, {**VECTORS, **stored}, body, planned={"fc.weight": 1})
    linear = LowerLinear(plan=bits, target=TARGET)
    after = apply(annotated(graph(inputs, weights, source), bits), linear, ShareTables(), LowerNorm())
    same(after, expected)
    same(apply(after, LowerNorm()), expected)


def test_only_the_first_table_is_taken_over(
    graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any
) -> None:
    """Readers with other column groups build their own table from the norm's result."""
    bits = type(plan({}))(
        schema=1,
        blocks=(*plan({"a": 2}, group_size=16).blocks, *plan({"b": 2}).blocks),
        words=(),
        source="test",
    )
    weights = {**VECTORS, "a": "float32[64, 32]", "b": "float32[64, 32]"}

    def body(g: Any, x: Any, gamma: Any, beta: Any, a: Any, b: Any) -> Any:
        y = g.layer_norm(x, gamma, beta, axes=[-1])
        return g.add(g.linear(y, a), g.linear(y, b))

    before = annotated(graph({"x": "float32[m, 32]"}, weights, body), bits)
    after = apply(before, LowerLinear(plan=bits, target=TARGET), ShareTables(), LowerNorm())
    assert operators(after) == ["norm", "lut_gemm", "lut_table1", "lut_gemm1", "relax.add"]


def test_equal_norms_share_code(graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any) -> None:
    def body(g: Any, x: Any, a: Any, b: Any) -> Any:
        y = g.layer_norm(g.layer_norm(x, a, b, axes=[-1]), b, a, axes=[-1])
        return g.layer_norm(y, a, b, axes=[-1], epsilon=0.5)

    before = annotated(graph({"x": "float32[m, 32]"}, VECTORS, body), plan({}))
    assert operators(apply(before, LowerNorm())) == ["norm", "norm", "norm1"]
