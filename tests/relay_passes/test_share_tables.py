# SPDX-License-Identifier: Apache-2.0
"""ShareTables: equal tables of one activation are built once."""

from __future__ import annotations

from typing import Any

from relay_passes.lower_linear import LowerLinear
from relay_passes.lowering import mark_table
from relay_passes.share_tables import ShareTables
from schedules.lut_gemm import LutSpec, Segment, lut_gemm
from schedules.lut_table import lut_table
from schedules.packing import ColumnLayout
from targets import get_target

TARGET = get_target("x86_64_v3")


def test_one_table_for_two_products(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    """Different bits and rows, the same columns: one table, read twice."""
    bits = plan({"q.weight": 1, "k.weight": 3})
    weights = {"q.weight": "float32[64, 32]", "k.weight": "float32[70, 32]"}
    before = graph(
        {"x": "float32[m, 32]"},
        weights,
        lambda g, x, q, k: g.concat([g.linear(x, q), g.linear(x, k)], axis=1),
    )

    def body(g: Any, x: Any, *stored: Any) -> Any:
        layout = ColumnLayout(k=32, group_size=32)
        kernel = mark_table(lut_table(layout, "int8"), layout, "int8")
        built = g.kernel_call(kernel, "lut_table", [x], "int8[m, 8, 16]", "float32[m, 1]", "float32[m, 1]")

        def product(name: str, rows: int, bits: int, arrays: Any) -> Any:
            part = Segment(
                rows=rows, bits=bits, group_size=32, offset=False, scale_dtype="float16", output=0, start=0
            )
            spec = LutSpec(k=32, outputs=(rows,), segments=(part,), bias=(False,), activation=("",))
            args = [*g.fields(built), *arrays]
            return g.kernel(lut_gemm(spec, "avx2"), name, args, f"float32[m, {rows}]")[0]

        q = product("lut_gemm", 64, 1, stored[:2])
        k = product("lut_gemm1", 70, 3, stored[2:])
        return g.concat([q, k], axis=1)

    expected = graph(
        {"x": "float32[m, 32]"},
        {
            "q.weight:keys": "uint8[1, 1, 1, 4, 64]",
            "q.weight:scales": "float16[1, 1, 1, 64]",
            "k.weight:keys": "uint8[2, 3, 1, 4, 64]",
            "k.weight:scales": "float16[2, 3, 1, 64]",
        },
        body,
        planned={"q.weight": 1, "k.weight": 1},
    )
    after = apply(annotated(before, bits), LowerLinear(plan=bits, target=TARGET), ShareTables())
    same(after, expected)
    same(apply(after, ShareTables()), expected)


def tables(module: Any, operators: Any) -> int:
    return sum(name.startswith("lut_table") for name in operators(module))


def lowered(
    graph: Any, annotated: Any, apply: Any, bits: Any, body: Any, shape: str = "float32[m, 64]"
) -> Any:
    weights = {"a.weight": "float32[64, 64]", "b.weight": "float32[64, 64]"}
    module = annotated(graph({"x": shape}, weights, body), bits)
    return apply(module, LowerLinear(plan=bits, target=TARGET), ShareTables())


def test_other_activations_keep_their_table(
    graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any
) -> None:
    bits = plan({"a.weight": 2, "b.weight": 2})
    after = lowered(graph, annotated, apply, bits, lambda g, x, a, b: g.linear(g.linear(x, a), b))
    assert tables(after, operators) == 2


def test_other_chunks_keep_their_table(
    graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any
) -> None:
    """int8 tables have a scale for every chunk of columns, which follows the group size."""

    def body(g: Any, x: Any, a: Any, b: Any) -> Any:
        return g.add(g.linear(x, a), g.linear(x, b))

    found = []
    for sizes in ((64, 64), (None, 64), (32, 64), (16, 32)):
        blocks = [
            plan({name: 2}, group_size=size).blocks[0]
            for name, size in zip(("a.weight", "b.weight"), sizes, strict=True)
        ]
        bits = type(plan({}))(schema=1, blocks=tuple(blocks), words=(), source="test")
        found.append(tables(lowered(graph, annotated, apply, bits, body), operators))
    assert found == [1, 1, 2, 2]


def test_readers_of_one_activation_with_leading_axes_share(
    graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any
) -> None:
    bits = plan({"a.weight": 2, "b.weight": 2})
    after = lowered(
        graph,
        annotated,
        apply,
        bits,
        lambda g, x, a, b: g.add(g.linear(x, a), g.linear(x, b)),
        "float32[2, n, 64]",
    )
    assert tables(after, operators) == 1


def test_other_calls_are_never_merged(graph: Any, apply: Any, same: Any) -> None:
    module = graph({"x": "float32[m, 8]"}, {}, lambda g, x: g.add(g.relu(x), g.relu(x)))
    same(apply(module, ShareTables()), module)
