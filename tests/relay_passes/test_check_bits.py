# SPDX-License-Identifier: Apache-2.0
"""CheckBits: a plan that was not carried out exactly is an error that names the tensors."""

from __future__ import annotations

from typing import Any

import pytest

from relay_passes.check_bits import CheckBits
from relay_passes.lower_embedding import LowerEmbedding
from relay_passes.lower_linear import LowerLinear
from relay_passes.share_tables import ShareTables
from targets import get_target

TARGET = get_target("x86_64_v3")
INPUTS = {"x": "float32[m, 32]"}
TWO = {"a.weight": "float32[32, 32]", "b.weight": "float32[32, 32]"}
IDS, TABLE = {"ids": "int32[m]"}, {"emb.weight": "float32[70, 32]"}


def chain(g: Any, x: Any, a: Any, b: Any) -> Any:
    return g.linear(g.linear(x, a), b)


def test_a_carried_out_plan_passes_unchanged(
    graph: Any, annotated: Any, apply: Any, same: Any, plan: Any
) -> None:
    """Also with ties across graphs, word clusters, unplanned tensors and repeated uses."""
    bits = plan({"emb.weight": ((60, 4), (10, 2)), "a.weight": 1, "b.weight": 32})

    def decode(g: Any, ids: Any, emb: Any, a: Any, b: Any) -> Any:
        x = g.take(emb, ids, axis=0)
        return g.linear(g.linear(g.linear(g.linear(x, a), b), a), emb)

    module = graph(IDS, {**TABLE, **TWO}, decode, name="decode")
    module.update(graph(IDS, TABLE, lambda g, ids, emb: g.take(emb, ids, axis=0), name="encode"))
    lowered = apply(
        annotated(module, bits),
        LowerEmbedding(plan=bits),
        LowerLinear(plan=bits, target=TARGET),
        ShareTables(),
    )
    same(apply(lowered, CheckBits(plan=bits)), lowered)


def test_digits_in_names_are_no_segments(graph: Any, annotated: Any, apply: Any, plan: Any) -> None:
    """``layers.0`` and eleven clusters: ``w:0`` stands for the tensor, ``w:10`` does not."""
    bits = plan({"layers.0": 2, "w": ((2, 3),) * 11})
    weights = {"layers.0": "float32[32, 32]", "w": "float32[22, 32]"}
    module = annotated(graph(INPUTS, weights, chain), bits)
    apply(apply(module, LowerLinear(plan=bits, target=TARGET)), CheckBits(plan=bits))


def test_planned_but_unused(graph: Any, annotated: Any, apply: Any, plan: Any) -> None:
    bits = plan({"a.weight": 2, "b.weight": 2, "c.weight": 2, "d.weight": 32})
    module = apply(annotated(graph(INPUTS, TWO, chain), bits), LowerLinear(plan=bits, target=TARGET))
    with pytest.raises(ValueError, match=r"not carried out: c\.weight is planned but no graph uses it$"):
        CheckBits(plan=bits)(module)


def test_not_lowered(graph: Any, annotated: Any, apply: Any, plan: Any) -> None:
    bits = plan({"emb.weight": 2})
    module = annotated(graph(IDS, TABLE, lambda g, ids, emb: g.take(emb, ids, axis=0)), bits)
    message = (
        r"emb in main was not lowered; emb\.weight is still a float parameter of main; "
        r"emb\.weight was lowered 0 times in main, planned 1$"
    )
    with pytest.raises(ValueError, match=message):
        CheckBits(plan=bits)(apply(module, LowerLinear(plan=bits, target=TARGET)))


def test_still_float(graph: Any, annotated: Any, apply: Any, plan: Any) -> None:
    """A planned tensor that another operator reads too would be stored twice."""
    bits = plan({"a.weight": 2})
    body = lambda g, x, a, b: g.add(g.linear(x, a), g.sum(a))  # noqa: E731
    module = apply(annotated(graph(INPUTS, TWO, body), bits), LowerLinear(plan=bits, target=TARGET))
    with pytest.raises(ValueError, match=r"not carried out: a\.weight is still a float parameter of main$"):
        CheckBits(plan=bits)(module)


def test_an_operation_that_no_kernel_computes(graph: Any, annotated: Any, plan: Any) -> None:
    bits = plan({"a.weight": 2})
    module = annotated(graph(INPUTS, TWO, lambda g, x, a, b: g.matmul(x, g.negative(a))), bits)
    with pytest.raises(
        ValueError, match=r"a\.weight is still a float parameter of main; a\.weight is planned but"
    ):
        CheckBits(plan=bits)(module)


def test_lowered_twice(graph: Any, annotated: Any, apply: Any, plan: Any) -> None:
    bits = plan({"a.weight": 2, "b.weight": 2})
    once = annotated(graph(INPUTS, TWO, chain), bits)
    twice = annotated(graph(INPUTS, TWO, lambda g, x, a, b: g.linear(g.linear(g.linear(x, a), a), b)), bits)
    attrs = {"tvmq.planned": once["main"].attrs["tvmq.planned"]}
    twice.update_func(twice.get_global_var("main"), twice["main"].with_attrs(attrs))
    module = apply(twice, LowerLinear(plan=bits, target=TARGET))
    with pytest.raises(
        ValueError, match=r"not carried out: a\.weight was lowered 2 times in main, planned 1$"
    ):
        CheckBits(plan=bits)(module)


def test_lost(graph: Any, annotated: Any, apply: Any, plan: Any) -> None:
    """An operation that disappears after it was planned."""
    bits = plan({"a.weight": 2, "b.weight": 2})
    full = annotated(graph(INPUTS, TWO, chain), bits)
    part = annotated(graph(INPUTS, TWO, lambda g, x, a, b: g.linear(x, a)), bits)
    attrs = {"tvmq.planned": full["main"].attrs["tvmq.planned"]}
    part.update_func(part.get_global_var("main"), part["main"].with_attrs(attrs))
    module = apply(part, LowerLinear(plan=bits, target=TARGET))
    with pytest.raises(ValueError, match=r"b\.weight was lowered 0 times in main, planned 1"):
        CheckBits(plan=bits)(module)


def test_lost_outliers(graph: Any, annotated: Any, apply: Any, plan: Any) -> None:
    """A matrix of 32 x 32 with 2 % has some; one percent of a few weights may be none."""
    plain, sparse = plan({"a.weight": 2, "b.weight": 2}), plan({"a.weight": 2, "b.weight": 2}, outliers=4.0)
    module = annotated(graph(INPUTS, TWO, chain), plain)
    apply(apply(module, LowerLinear(plan=sparse, target=TARGET)), CheckBits(plan=sparse))
    lost = apply(module, LowerLinear(plan=plain, target=TARGET))
    apply(lost, CheckBits(plan=plain))
    wide = {"a.weight": "float32[256, 256]", "b.weight": "float32[256, 256]"}
    module = annotated(graph({"x": "float32[m, 256]"}, wide, chain), plain)
    lost = apply(module, LowerLinear(plan=plain, target=TARGET))
    with pytest.raises(ValueError, match=r"carried out: a\.weight is read without its outliers in main; b\."):
        CheckBits(plan=sparse)(lost)


def test_never_annotated(graph: Any, plan: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.weight is still a float parameter of main"):
        CheckBits(plan=plan({"a.weight": 2}))(graph(INPUTS, TWO, chain))


def test_many_problems_stay_one_readable_line(graph: Any, plan: Any) -> None:
    bits = plan({f"missing.{i}": 2 for i in range(9)})
    with pytest.raises(
        ValueError, match=r"missing\.4 is planned but no graph uses it; and 4 more$"
    ) as caught:
        CheckBits(plan=bits)(graph(INPUTS, TWO, chain))
    assert "\n" not in str(caught.value)
