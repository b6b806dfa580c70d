# SPDX-License-Identifier: Apache-2.0
"""LowerAttention: attention operators become kernels; the decoder's caches are written in place."""

from __future__ import annotations

from typing import Any

from tvm import relax

from relay_passes.lower_attention import LowerAttention
from relay_passes.lower_linear import LowerLinear
from schedules.attention import AttentionSpec, attention
from schedules.lut_gemm import LutSpec, Segment, lut_gemm
from schedules.packing import ColumnLayout
from schedules.ragged_attention import RaggedSpec, ragged_attention
from targets import get_target

TARGET = get_target("x86_64_v3")
RAGGED = {"q": "float32[t, 32]", "k": "float32[t, 32]", "v": "float32[t, 32]", "offsets": "int32[b]"}
CROSS = {
    "q": "float32[m, 32]",
    "k": "float32[t, 32]",
    "v": "float32[t, 32]",
    "offsets": "int32[b]",
    "sentences": "int32[m]",
}
CACHED = {
    "q": "float32[m, 32]",
    "k": "float32[m, 32]",
    "v": "float32[m, 32]",
    "k_cache": "float32[s, n, 32]",
    "v_cache": "float32[s, n, 32]",
    "position": "int32[m]",
    "ancestry": "int32[m, n]",
}
HEADS = relax.prim_value(4)


def test_ragged(graph: Any, apply: Any, same: Any) -> None:
    before = graph(RAGGED, {}, lambda g, *a: g.external("tvmq.ragged_attention", [*a, HEADS], a[0]))
    kernel = ragged_attention(RaggedSpec(heads=4, width=32))

    def body(g: Any, *a: Any) -> Any:
        tokens = a[0].ty.shape[0]
        types = [a[0].ty, relax.TensorType([32 + 4 * 4, tokens + 16], "float32")]
        called = g.builder.emit(
            relax.op.call_tir(g.builder.add_func(kernel, "ragged_attention"), list(a), types)
        )
        return g.builder.emit(relax.TupleGetItem(called, 0))

    expected = graph(RAGGED, {}, body)
    after = apply(before, LowerAttention())
    same(after, expected)
    same(apply(after, LowerAttention()), expected)


def test_cross(graph: Any, apply: Any, same: Any) -> None:
    before = graph(CROSS, {}, lambda g, *a: g.external("tvmq.cross_attention", [*a, HEADS], a[0]))
    kernel = attention(AttentionSpec(kind="cross", heads=4, width=32))
    expected = graph(
        CROSS, {}, lambda g, *a: g.kernel(kernel, "cross_attention", list(a), "float32[m, 32]")[0]
    )
    same(apply(before, LowerAttention()), expected)


def test_cached_writes_its_caches_in_place(graph: Any, apply: Any, same: Any) -> None:
    before = graph(CACHED, {}, lambda g, *a: g.external("tvmq.cached_attention", [*a, HEADS], a[0]))
    kernel = attention(AttentionSpec(kind="cached", heads=4, width=32))

    def body(g: Any, *a: Any) -> Any:
        outputs = ["float32[m, 32]", "float32[s, n, 32]", "float32[s, n, 32]"]
        result = g.kernel_call(kernel, "cached_attention", list(a), *outputs, in_place=[-1, 3, 4])
        return g.builder.emit(relax.TupleGetItem(result, 0))

    same(apply(before, LowerAttention()), graph(CACHED, {}, body))


def test_the_table_of_the_result_is_taken_over(
    graph: Any, annotated: Any, apply: Any, same: Any, plan: Any
) -> None:
    bits = plan({"out.weight": 2})

    def source(g: Any, *args: Any) -> Any:
        *a, w = args
        return g.linear(g.external("tvmq.cached_attention", [*a, HEADS], a[0]), w)

    def body(g: Any, *args: Any) -> Any:
        *a, keys, scales = args
        layout = ColumnLayout(k=32, group_size=32)
        kernel = attention(AttentionSpec(kind="cached", heads=4, width=32, table=layout))
        outputs = ["float32[m, 32]", "float32[s, n, 32]", "float32[s, n, 32]"]
        outputs += ["int8[m, 8, 16]", "float32[m, 1]", "float32[m, 1]"]
        _, _, _, *table = g.kernel(kernel, "cached_attention", a, *outputs, in_place=[-1, 3, 4, -1, -1, -1])
        part = Segment(rows=64, bits=2, group_size=32, offset=False, scale_dtype="float16", output=0, start=0)
        spec = LutSpec(k=32, outputs=(64,), segments=(part,), bias=(False,), activation=("",))
        return g.kernel(lut_gemm(spec, "avx2"), "lut_gemm", [*table, keys, scales], "float32[m, 64]")[0]

    stored = {"out.weight:keys": "uint8[1, 2, 1, 4, 64]", "out.weight:scales": "float16[1, 2, 1, 64]"}
    expected = graph(CACHED, stored, body, planned={"out.weight": 1})
    before = annotated(graph(CACHED, {"out.weight": "float32[64, 32]"}, source), bits)
    same(apply(before, LowerLinear(plan=bits, target=TARGET), LowerAttention()), expected)


def test_other_operators_stay(graph: Any, apply: Any, same: Any) -> None:
    before = graph(RAGGED, {}, lambda g, *a: g.external("other.attention", list(a), a[0]))
    same(apply(before, LowerAttention()), before)
