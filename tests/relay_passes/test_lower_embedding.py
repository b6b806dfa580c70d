# SPDX-License-Identifier: Apache-2.0
"""LowerEmbedding: gathers from the arrays that a tied projection multiplies by, or from FP32 rows."""

from __future__ import annotations

from typing import Any

from tvm import relax

from relay_passes.lower_embedding import LowerEmbedding, multiplied_tensors
from relay_passes.lower_linear import LowerLinear
from schedules.embedding import GatherSpec, gather
from schedules.lut_gemm import Segment
from targets import get_target

TARGET = get_target("x86_64_v3")
IDS = {"ids": "int32[m]"}
TABLE = {"emb.weight": "float32[70, 32]"}


def segment(rows: int, bits: int, start: int = 0, **changes: Any) -> Segment:
    facts = {"group_size": 32, "offset": False, "scale_dtype": "float16"} | changes
    return Segment(rows=rows, bits=bits, output=0, start=start, **facts)


def rows(g: Any, ids: Any, table: Any) -> Any:
    return g.take(table, ids, axis=0)


def test_bits_by_word(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    bits = plan({"emb.weight": ((60, 4), (10, 2))})

    def scaled(g: Any, ids: Any, table: Any) -> Any:
        return g.multiply(rows(g, ids, table), relax.const(2.5, "float32"))

    spec = GatherSpec(
        words=70,
        width=32,
        segments=(segment(60, 4), segment(10, 2, start=60)),
        rank_dtype="uint16",
        factor=2.5,
    )
    stored = {
        "emb.weight:0:keys": "uint8[1, 4, 1, 4, 64]",
        "emb.weight:0:scales": "float16[1, 4, 1, 64]",
        "emb.weight:1:keys": "uint8[1, 2, 1, 4, 64]",
        "emb.weight:1:scales": "float16[1, 2, 1, 64]",
        "emb.weight:rank": "uint16[70]",
    }

    def body(g: Any, ids: Any, *arrays: Any) -> Any:
        *segments, rank = arrays
        return g.kernel(gather(spec), "gather", [ids, rank, *segments], "float32[m, 32]")[0]

    expected = graph(IDS, stored, body, planned={"emb.weight": 1})
    step = LowerEmbedding(plan=bits)
    after = apply(annotated(graph(IDS, TABLE, scaled), bits), step)
    same(after, expected)
    same(apply(after, step), expected)


def test_equal_bits_with_groups_and_offsets(
    graph: Any, annotated: Any, apply: Any, same: Any, plan: Any
) -> None:
    bits = plan({"emb.weight": 3}, group_size=16, offset=True, scale_dtype="float32")
    part = segment(70, 3, group_size=16, offset=True, scale_dtype="float32")
    spec = GatherSpec(words=70, width=32, segments=(part,))
    stored = {
        "emb.weight:keys": "uint8[2, 3, 2, 4, 64]",
        "emb.weight:scales": "float32[2, 3, 2, 64]",
        "emb.weight:offsets": "float32[2, 2, 64]",
    }
    expected = graph(
        IDS,
        stored,
        lambda g, *a: g.kernel(gather(spec), "gather", list(a), "float32[m, 32]")[0],
        planned={"emb.weight": 1},
    )
    same(apply(annotated(graph(IDS, TABLE, rows), bits), LowerEmbedding(plan=bits)), expected)


def test_outliers(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    bits = plan({"emb.weight": 3}, outliers=1.0)
    spec = GatherSpec(words=70, width=32, segments=(segment(70, 3, outliers=True),))
    stored = {
        "emb.weight:keys": "uint8[2, 3, 1, 4, 64]",
        "emb.weight:scales": "float16[2, 3, 1, 64]",
        "emb.weight:starts": "int32[3]",
        "emb.weight:places": "uint16[22]",
        "emb.weight:values": "float16[22]",
    }
    expected = graph(
        IDS,
        stored,
        lambda g, *a: g.kernel(gather(spec), "gather", list(a), "float32[m, 32]")[0],
        planned={"emb.weight": 1},
    )
    same(apply(annotated(graph(IDS, TABLE, rows), bits), LowerEmbedding(plan=bits)), expected)


def test_float_rows(graph: Any, annotated: Any, apply: Any, same: Any, plan: Any) -> None:
    spec = GatherSpec(words=70, width=32, segments=(), packed=False)
    expected = graph(
        IDS,
        TABLE,
        lambda g, ids, w: g.kernel(gather(spec), "gather", [ids, w], "float32[m, 32]")[0],
        planned={},
    )
    before = annotated(graph(IDS, TABLE, rows), plan({}))
    same(apply(before, LowerEmbedding(plan=plan({}))), expected)


def test_a_tied_float_table_is_stored_once(
    graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any
) -> None:
    """The gather reads the layout of the product, also where the product is in another graph."""
    module = graph(IDS, TABLE, lambda g, ids, w: g.linear(rows(g, ids, w), w), name="decode")
    module.update(graph(IDS, TABLE, rows, name="encode"))
    before = annotated(module, plan({}))
    assert multiplied_tensors(before) == {"emb.weight"}
    after = apply(before, LowerEmbedding(plan=plan({})), LowerLinear(plan=plan({}), target=TARGET))
    assert operators(after, "decode") == ["gather", "float_gemm"]
    for name in ("encode", "decode"):
        assert [str(p.name) for p in after[name].params] == ["ids", "emb.weight:packed"]


def test_a_tied_quantized_table_is_stored_once(
    graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any
) -> None:
    bits = plan({"emb.weight": ((60, 4), (10, 2))})
    module = graph(IDS, TABLE, lambda g, ids, w: g.linear(rows(g, ids, w), w))
    steps = LowerEmbedding(plan=bits), LowerLinear(plan=bits, target=TARGET)
    after = apply(annotated(module, bits), *steps)
    assert operators(after) == ["gather", "lut_table", "lut_gemm", "relax.astype", "relax.take"]
    names = ["0:keys", "0:scales", "1:keys", "1:scales", "rank"]
    assert [str(p.name) for p in after["main"].params] == ["ids", *(f"emb.weight:{n}" for n in names)]


def test_equal_tables_share_code(graph: Any, annotated: Any, apply: Any, plan: Any, operators: Any) -> None:
    bits = plan({"a": 2, "b": 2})
    weights = {"a": "float32[70, 32]", "b": "float32[70, 32]"}
    module = graph(IDS, weights, lambda g, ids, a, b: g.add(rows(g, ids, a), rows(g, ids, b)))
    after = apply(annotated(module, bits), LowerEmbedding(plan=bits))
    assert operators(after) == ["gather", "gather", "relax.add"]
