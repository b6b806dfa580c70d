# SPDX-License-Identifier: Apache-2.0
"""LowerLinear: table products over stored planes, FP32 products, and logits back in word order."""

from __future__ import annotations

from typing import Any

import pytest

from relay_passes.lower_linear import LowerLinear, kernel_segments, stored_segments
from relay_passes.lowering import mark_table
from schedules.float_gemm import FloatSpec, float_gemm
from schedules.lut_gemm import LutSpec, Segment, lut_gemm
from schedules.lut_table import Tables, lut_table
from schedules.packing import ColumnLayout
from schedules.schedule import LUT_RULE, Schedule, TokenTile
from schedules.tuning_log import Key, TuningLog, TuningRecord
from schedules.workload import Workload
from targets import get_target

TARGET = get_target("x86_64_v3")


def segment(rows: int, bits: int, k: int, start: int = 0, **changes: Any) -> Segment:
    facts = {"group_size": k, "offset": False, "scale_dtype": "float16"} | changes
    return Segment(rows=rows, bits=bits, output=0, start=start, **facts)


def spec(k: int, n: int, *segments: Segment, **changes: Any) -> LutSpec:
    facts = {"bias": (False,), "activation": ("",), "tables": "int8"} | changes
    return LutSpec(k=k, outputs=(n,), segments=segments, **facts)


def table(g: Any, x: Any, layout: ColumnLayout, tables: Tables = "int8", rows: str = "m") -> list[Any]:
    """The stand-alone table of x."""
    entries = "int8" if tables == "int8" else "float32"
    return g.kernel(
        mark_table(lut_table(layout, tables), layout, tables),
        "lut_table",
        [x],
        f"{entries}[{rows}, {layout.padded_k // 4}, 16]",
        f"float32[{rows}, {layout.chunks}]",
        f"float32[{rows}, {layout.steps}]",
    )


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "tanh"])
def test_quantized_linear_with_bias_and_activation(
    graph: Any, annotated: Any, apply: Any, same: Any, plan: Any, activation: str
) -> None:
    bits = plan({"fc.weight": 3})
    before = graph(
        {"x": "float32[m, 40]"},
        {"fc.weight": "float32[70, 40]", "fc.bias": "float32[70]"},
        lambda g, x, w, b: getattr(g, activation)(g.linear(x, w, b)),
    )

    def body(g: Any, x: Any, bias: Any, keys: Any, scales: Any) -> Any:
        wanted = spec(40, 70, segment(70, 3, 40), bias=(True,), activation=(activation,))
        args = [*table(g, x, ColumnLayout(k=40, group_size=40)), keys, scales, bias]
        return g.kernel(lut_gemm(wanted, "avx2"), "lut_gemm", args, "float32[m, 70]")[0]

    expected = graph(
        {"x": "float32[m, 40]"},
        {
            "fc.bias": "float32[70]",
            "fc.weight:keys": "uint8[2, 3, 2, 4, 64]",
            "fc.weight:scales": "float16[2, 3, 1, 64]",
        },
        body,
        planned={"fc.weight": 1},
    )
    step = LowerLinear(plan=bits, target=TARGET)
    after = apply(annotated(before, bits), step)
    same(after, expected)
    same(apply(after, step), expected)


def test_schedules_come_from_the_log(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    """Of this target only; another target's record leaves the rule."""
    bits = plan({"fc.weight": 3})
    tuned = LUT_RULE.over(TokenTile(tokens=1, row_tiles=2, unroll=2))
    workload = Workload.of("lut", 70, 40, 1, 3)
    before = graph({"x": "float32[m, 40]"}, {"fc.weight": "float32[70, 40]"}, lambda g, x, w: g.linear(x, w))

    def expected(schedule: Schedule) -> Any:
        def body(g: Any, x: Any, keys: Any, scales: Any) -> Any:
            args = [*table(g, x, ColumnLayout(k=40, group_size=40)), keys, scales]
            kernel = lut_gemm(spec(40, 70, segment(70, 3, 40)), "avx2", schedules=[schedule])
            return g.kernel(kernel, "lut_gemm", args, "float32[m, 70]")[0]

        stored = {"fc.weight:keys": "uint8[2, 3, 2, 4, 64]", "fc.weight:scales": "float16[2, 3, 1, 64]"}
        return graph({"x": "float32[m, 40]"}, stored, body, planned={"fc.weight": 1})

    for target, schedule in (("x86_64_v3", tuned), ("x86_64_v2", LUT_RULE)):
        record = TuningRecord(
            key=Key.of(workload, target, 1),
            schedule=tuned,
            status="ok",
            us=1.0,
            rule_us=2.0,
            stage="final",
            cpu="a CPU",
        )
        step = LowerLinear(plan=bits, target=TARGET, log=TuningLog((record,)))
        same(apply(annotated(before, bits), step), expected(schedule))


def test_exact_tables_groups_offsets_and_wide_scales(
    graph: Any, annotated: Any, apply: Any, same: Any, plan: Any
) -> None:
    bits = plan({"fc.weight": 2}, group_size=16, offset=True, scale_dtype="float32")
    before = graph({"x": "float32[m, 32]"}, {"fc.weight": "float32[64, 32]"}, lambda g, x, w: g.linear(x, w))

    def body(g: Any, x: Any, keys: Any, scales: Any, offsets: Any) -> Any:
        part = segment(64, 2, 32, group_size=16, offset=True, scale_dtype="float32")
        wanted = spec(32, 64, part, tables="exact")
        args = [*table(g, x, ColumnLayout(k=32, group_size=16), "exact"), keys, scales, offsets]
        return g.kernel(lut_gemm(wanted, "avx2"), "lut_gemm", args, "float32[m, 64]")[0]

    expected = graph(
        {"x": "float32[m, 32]"},
        {
            "fc.weight:keys": "uint8[1, 2, 2, 4, 64]",
            "fc.weight:scales": "float32[1, 2, 2, 64]",
            "fc.weight:offsets": "float32[1, 2, 64]",
        },
        body,
        planned={"fc.weight": 1},
    )
    same(apply(annotated(before, bits), LowerLinear(plan=bits, target=TARGET, tables="exact")), expected)


def test_float_linear(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    bits = plan({"fc.weight": 32})
    weights = {"fc.weight": "float32[70, 40]", "fc.bias": "float32[70]"}
    before = graph({"x": "float32[m, 40]"}, weights, lambda g, x, w, b: g.relu(g.linear(x, w, b)))

    def body(g: Any, x: Any, bias: Any, packed: Any) -> Any:
        kernel = float_gemm(FloatSpec(n=70, k=40, bias=True, activation="relu"))
        return g.kernel(kernel, "float_gemm", [x, packed, bias], "float32[m, 70]")[0]

    expected = graph(
        {"x": "float32[m, 40]"},
        {"fc.bias": "float32[70]", "fc.weight:packed": "float32[2, 40, 64]"},
        body,
        planned={},
    )
    same(apply(annotated(before, bits), LowerLinear(plan=bits, target=TARGET)), expected)


def test_outliers_read_the_activation(
    graph: Any, annotated: Any, apply: Any, same: Any, plan: Any
) -> None:
    """Tiles of 64 rows; 2 % of 70 x 40 weights are 56, of the second matrix none."""
    bits = plan({"fc.weight": 3, "tiny.weight": 3}, outliers=2.0, scale_dtype="pow2")
    weights = {"fc.weight": "float32[70, 40]", "tiny.weight": "float32[2, 10]"}
    before = graph(
        {"x": "float32[m, 40]", "z": "float32[m, 10]"},
        weights,
        lambda g, x, z, w, t: g.concat([g.linear(x, w), g.linear(z, t)], axis=1),
    )

    def body(g: Any, x: Any, z: Any, *stored: Any) -> Any:
        first, second = stored[:6], stored[6:]
        facts = {"scale_dtype": "pow2"}
        wanted = spec(40, 70, segment(70, 3, 40, outliers=True, **facts))
        args = [*table(g, x, ColumnLayout(k=40, group_size=40)), x, *first]
        (y,) = g.kernel(lut_gemm(wanted, "avx2"), "lut_gemm", args, "float32[m, 70]")
        args = [*table(g, z, ColumnLayout(k=10, group_size=10)), *second]
        kernel = lut_gemm(spec(10, 2, segment(2, 3, 10, **facts)), "avx2")
        return g.concat([y, g.kernel(kernel, "lut_gemm", args, "float32[m, 2]")[0]], axis=1)

    expected = graph(
        {"x": "float32[m, 40]", "z": "float32[m, 10]"},
        {
            "fc.weight:keys": "uint8[2, 3, 2, 4, 64]",
            "fc.weight:scales": "int8[2, 3, 1, 64]",
            "fc.weight:exponents": "int8[2, 1, 64]",
            "fc.weight:starts": "int32[3]",
            "fc.weight:places": "uint16[56]",
            "fc.weight:values": "float16[56]",
            "tiny.weight:keys": "uint8[1, 3, 1, 4, 64]",
            "tiny.weight:scales": "int8[1, 3, 1, 64]",
            "tiny.weight:exponents": "int8[1, 1, 64]",
        },
        body,
        planned={"fc.weight": 1, "tiny.weight": 1},
    )
    same(apply(annotated(before, bits), LowerLinear(plan=bits, target=TARGET)), expected)


def test_head_ordered_by_words(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    """One call for all segments, bias in storage order, logits brought back by rank."""
    bits = plan({"emb.weight": ((60, 4), (10, 2))})
    weights = {"emb.weight": "float32[70, 32]", "head.bias": "float32[70]"}
    before = graph({"x": "float32[m, 32]"}, weights, lambda g, x, w, b: g.linear(x, w, b))

    def body(g: Any, x: Any, *stored: Any) -> Any:
        *arrays, bias, rank = stored
        wanted = spec(32, 70, segment(60, 4, 32), segment(10, 2, 32, start=60), bias=(True,))
        args = [*table(g, x, ColumnLayout(k=32, group_size=32)), *arrays, bias]
        (y,) = g.kernel(lut_gemm(wanted, "avx2"), "lut_gemm", args, "float32[m, 70]")
        return g.take(y, g.astype(rank, "int32"), axis=1)

    expected = graph(
        {"x": "float32[m, 32]"},
        {
            "emb.weight:0:keys": "uint8[1, 4, 1, 4, 64]",
            "emb.weight:0:scales": "float16[1, 4, 1, 64]",
            "emb.weight:1:keys": "uint8[1, 2, 1, 4, 64]",
            "emb.weight:1:scales": "float16[1, 2, 1, 64]",
            "head.bias@emb.weight": "float32[70]",
            "emb.weight:rank": "uint16[70]",
        },
        body,
        planned={"emb.weight": 1},
    )
    same(apply(annotated(before, bits), LowerLinear(plan=bits, target=TARGET)), expected)


def test_leading_axes_are_rows(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    bits = plan({"fc.weight": 1})
    before = graph(
        {"x": "float32[2, 3, 32]"}, {"fc.weight": "float32[64, 32]"}, lambda g, x, w: g.linear(x, w)
    )

    def body(g: Any, x: Any, keys: Any, scales: Any) -> Any:
        flat = g.reshape(x, [6, 32])
        args = [*table(g, flat, ColumnLayout(k=32, group_size=32), rows="6"), keys, scales]
        kernel = lut_gemm(spec(32, 64, segment(64, 1, 32)), "avx2")
        return g.reshape(g.kernel(kernel, "lut_gemm", args, "float32[6, 64]")[0], [2, 3, 64])

    expected = graph(
        {"x": "float32[2, 3, 32]"},
        {"fc.weight:keys": "uint8[1, 1, 1, 4, 64]", "fc.weight:scales": "float16[1, 1, 1, 64]"},
        body,
        planned={"fc.weight": 1},
    )
    same(apply(annotated(before, bits), LowerLinear(plan=bits, target=TARGET)), expected)


@pytest.mark.parametrize(
    ("shapes", "bits", "kernels"),
    [
        (["64, 32", "64, 32"], [1, 4], 1),
        (["64, 32", "128, 32"], [2, 2], 2),
        (["64, 32", "64, 64"], [2, 2], 2),
        (["1024, 1024", "1024, 1024"], [1, 2], 1),
        (["1024, 1024", "1024, 1024"], [2, 8], 2),
    ],
    ids=["any bits", "other rows", "other columns", "both without threads", "one with threads"],
)
def test_equal_layers_share_code(
    graph: Any, annotated: Any, apply: Any, plan: Any, shapes: list[str], bits: list[int], kernels: int
) -> None:
    """The number of planes is no part of a kernel, unless it decides about threads."""
    inputs = {f"x{i}": f"float32[m, {shape.split(', ')[1]}]" for i, shape in enumerate(shapes)}
    weights = {f"w{i}": f"float32[{shape}]" for i, shape in enumerate(shapes)}
    given = plan({f"w{i}": count for i, count in enumerate(bits)})
    before = graph(inputs, weights, lambda g, x, y, v, w: g.concat([g.linear(x, v), g.linear(y, w)], axis=1))
    after = apply(annotated(before, given), LowerLinear(plan=given, target=TARGET))
    assert sum(var.name_hint.startswith("lut_gemm") for var in after.functions) == kernels


def test_unplanned_tensors_are_products_in_float(
    graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any
) -> None:
    bits = plan({"a.weight": 2})
    weights = {"a.weight": "float32[8, 8]", "b.weight": "float32[8, 8]"}
    before = graph({"x": "float32[m, 8]"}, weights, lambda g, x, a, b: g.linear(g.linear(x, a), b))
    after = apply(annotated(before, bits), LowerLinear(plan=bits, target=TARGET))
    assert operators(after) == ["lut_table", "lut_gemm", "float_gemm"]
    assert [str(p.name) for p in after["main"].params] == [
        "x",
        "a.weight:keys",
        "a.weight:scales",
        "b.weight:packed",
    ]


def test_segments_follow_the_clusters(plan: Any) -> None:
    (entry,) = plan({"emb": ((5, 4), (3, 2), (1, 1))}, group_size=8).words
    stored = stored_segments(entry, 9, 16)
    assert [s.prefix for s in stored] == ["emb:0", "emb:1", "emb:2"]
    assert [(s.start, s.rows, s.bits, s.group_size) for s in kernel_segments(stored, 16)] == [
        (0, 5, 4, 8),
        (5, 3, 2, 8),
        (8, 1, 1, 8),
    ]
