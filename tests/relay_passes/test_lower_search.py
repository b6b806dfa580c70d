# SPDX-License-Identifier: Apache-2.0
"""LowerSearch: argmax and top-k read logits as they are stored; only the winners become words."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import relax

from relay_passes.lower_search import ARGMAX, TOPK, LowerSearch
from schedules.search_step import SearchSpec, argmax, topk

BANNED = {"banned": "int32[2]"}


def found(g: Any, symbol: str, logits: Any, banned: Any, out: Any) -> Any:
    return g.builder.emit(relax.op.call_dps_packed(symbol, [logits, banned], out))


def ids(rows: Any) -> Any:
    return relax.TensorType([rows], "int32")


def test_argmax_of_plain_logits(graph: Any, apply: Any, same: Any) -> None:
    inputs = {"logits": "float32[m, 70]"}

    def before(g: Any, logits: Any, banned: Any) -> Any:
        return found(g, ARGMAX, logits, banned, ids(logits.ty.shape[0]))

    def after(g: Any, logits: Any, banned: Any) -> Any:
        kernel = argmax(SearchSpec(vocabulary=70, banned=2))
        args, outputs = [logits, banned], ["int32[m]", "float32[m, 70]"]
        return g.builder.emit(
            relax.TupleGetItem(g.kernel_call(kernel, "argmax", args, *outputs, in_place=[-1, 0]), 0)
        )

    expected = graph(inputs, BANNED, after)
    result = apply(graph(inputs, BANNED, before), LowerSearch())
    same(result, expected)
    same(apply(result, LowerSearch()), expected)


@pytest.mark.parametrize("words", [70, 70_000])
def test_argmax_pulls_the_word_order_away(graph: Any, apply: Any, same: Any, words: int) -> None:
    """No permutation of the logits: ranks disappear, the winner goes through ``order``."""
    dtype = "uint16" if words == 70 else "int32"
    inputs = {"logits": f"float32[m, {words}]"}

    def before(g: Any, logits: Any, rank: Any, banned: Any) -> Any:
        stored = g.negative(logits)
        ordered = g.take(stored, g.astype(rank, "int32"), axis=1)
        return found(g, ARGMAX, ordered, banned, ids(logits.ty.shape[0]))

    def after(g: Any, logits: Any, banned: Any, order: Any) -> Any:
        kernel = argmax(SearchSpec(vocabulary=words, order_dtype=dtype, banned=2))
        args, outputs = [g.negative(logits), banned, order], ["int32[m]", f"float32[m, {words}]"]
        return g.builder.emit(
            relax.TupleGetItem(g.kernel_call(kernel, "argmax", args, *outputs, in_place=[-1, 0]), 0)
        )

    weights = {"emb.weight:rank": f"{dtype}[{words}]", **BANNED}
    stored = {"banned@emb.weight": "int32[2]", "emb.weight:order": f"{dtype}[{words}]"}
    same(apply(graph(inputs, weights, before), LowerSearch()), graph(inputs, stored, after))


def test_topk_pulls_the_word_order_away(graph: Any, apply: Any, same: Any) -> None:
    def types(logits: Any, count: Any) -> list[Any]:
        shape = [logits.ty.shape[0], count.ty.shape[0]]
        return [relax.TensorType(shape, "float32"), relax.TensorType(shape, "int32")]

    def before(g: Any, logits: Any, count: Any, rank: Any, banned: Any) -> Any:
        ordered = g.take(logits, g.astype(rank, "int32"), axis=1)
        return found(g, TOPK, ordered, banned, types(logits, count))

    def after(g: Any, logits: Any, count: Any, banned: Any, order: Any) -> Any:
        kernel = topk(SearchSpec(vocabulary=70, order_dtype="uint16", banned=2))
        args, outputs = [logits, banned, order], ["float32[m, k]", "int32[m, k]", "float32[m, 70]"]
        result = g.kernel_call(kernel, "topk", args, *outputs, in_place=[-1, -1, 0], extents=count)
        return relax.Tuple([g.builder.emit(relax.TupleGetItem(result, i)) for i in range(2)])

    inputs = {"logits": "float32[m, 70]", "count": "float32[k]"}
    weights = {"emb.weight:rank": "uint16[70]", **BANNED}
    stored = {"banned@emb.weight": "int32[2]", "emb.weight:order": "uint16[70]"}
    same(apply(graph(inputs, weights, before), LowerSearch()), graph(inputs, stored, after))


@pytest.mark.parametrize("case", ["other name", "plain index", "other axis"])
def test_other_takes_are_no_word_order(graph: Any, apply: Any, operators: Any, case: str) -> None:
    """Only the take that LowerLinear adds is pulled away."""

    def body(g: Any, logits: Any, rank: Any, banned: Any) -> Any:
        index = rank if case == "plain index" else g.astype(rank, "int32")
        taken = g.take(logits, index, axis=0 if case == "other axis" else 1)
        return found(g, ARGMAX, taken, banned, ids(taken.ty.shape[0]))

    dtype = "int32" if case == "plain index" else "uint16"
    name = "emb.weight:order" if case == "other name" else "emb.weight:rank"
    module = graph({"logits": "float32[70, 70]"}, {name: f"{dtype}[70]", **BANNED}, body)
    after = apply(module, LowerSearch())
    assert [op for op in operators(after) if op != "relax.astype"] == ["relax.take", "argmax"]
