# SPDX-License-Identifier: Apache-2.0
"""The integer body of an encoder: from tables to the last norm, and nothing of the head."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import relax

from relay_passes.integer_body import body_steps

VECTORS = {"n.weight": "float32[64]", "n.bias": "float32[64]"}
SQUARE = {"a.weight": "float32[64, 64]"}


@pytest.fixture
def steps(annotated: Any) -> Any:
    """``steps(module, plan)``: (kind, path) of every step of ``main``, and the paths that each reads."""

    def find(module: Any, bits: Any) -> dict[tuple[str, str], list[str]]:
        module = annotated(module, bits)
        found = body_steps(module, module["main"], bits)
        assert all(found[var].var == var for var in found)
        return {
            (step.kind, step.path): [found[source].path or found[source].kind for source in step.sources]
            for step in found.values()
        }

    return find


def norm(g: Any, x: Any, weight: Any, bias: Any) -> Any:
    return g.layer_norm(x, weight, bias, axes=[-1])


def test_a_whole_encoder(encoder: Any, everywhere: Any, steps: Any) -> None:
    assert steps(encoder(), everywhere(8)) == {
        ("table", "words"): [],
        ("table", "places"): [],
        ("norm", "n0"): ["words", "places"],
        ("linear", "q"): ["n0"],
        ("linear", "k"): ["n0"],
        ("linear", "v"): ["n0"],
        ("attention", ""): ["q", "k", "v"],
        ("linear", "out"): ["attention"],
        ("norm", "n1"): ["out", "n0"],
        ("linear", "up"): ["n1"],
        ("linear", "down"): ["up"],
        ("norm", "n2"): ["down", "n1"],
    }


def test_weights_of_the_steps(encoder: Any, everywhere: Any, annotated: Any) -> None:
    module = annotated(encoder(), everywhere(8))
    found = {s.path: s.tensor for s in body_steps(module, module["main"], everywhere(8)).values()}
    assert {name: found[name] for name in ("words", "q", "n0", "")} == {
        "words": "words.weight", "q": "q.weight", "n0": "", "": ""
    }  # fmt: skip


@pytest.mark.parametrize("head", [("head.weight",), ()], ids=["of block Head", "not planned"])
def test_the_head_is_outside(encoder: Any, everywhere: Any, steps: Any, head: tuple[str, ...]) -> None:
    """Nor is what reads the head's results: another linear, a norm."""
    more = {"head.weight": "float32[64, 64]", "h.weight": "float32[64]", "h.bias": "float32[64]"}
    more |= {"last.weight": "float32[2, 64]"}

    def end(g: Any, x: Any, offsets: Any, w: Any, gamma: Any, beta: Any, last: Any) -> Any:
        return g.linear(norm(g, g.gelu(g.linear(x, w)), gamma, beta), last)

    bits = everywhere(4, head=head, activation_block=None)
    found = steps(encoder(end, more), bits)
    assert found == steps(encoder(), everywhere(4))


def test_tables_alone_are_a_body(graph: Any, plan: Any, steps: Any) -> None:
    weights = {"e.weight": "float32[70, 64]", **VECTORS}
    module = graph({"ids": "int32[m]"}, weights, lambda g, ids, e, *v: norm(g, g.take(e, ids, axis=0), *v))
    assert steps(module, plan({})) == {("table", "e"): [], ("norm", "n"): ["e"]}


def test_three_tables(graph: Any, plan: Any, steps: Any) -> None:
    """The first two as a sum of their own, the third as the norm's residual."""
    weights = {f"{name}.weight": "float32[70, 64]" for name in "abc"} | VECTORS

    def body(g: Any, ids: Any, a: Any, b: Any, c: Any, *vectors: Any) -> Any:
        a, b, c = (g.take(table, ids, axis=0) for table in (a, b, c))
        return norm(g, g.add(g.add(a, b), c), *vectors)

    found = steps(graph({"ids": "int32[m]"}, weights, body), plan({}))
    assert (found["sum", ""], found["norm", "n"]) == (["a", "b"], ["sum", "c"])


def test_floats_from_outside_are_none(graph: Any, plan: Any, steps: Any) -> None:
    """Norms, linears and sums of a float input, and what reads them."""
    inputs, weights = {"x": "float32[m, 64]"}, {**VECTORS, **SQUARE}

    def body(g: Any, x: Any, gamma: Any, beta: Any, a: Any) -> Any:
        y = norm(g, x, gamma, beta)
        return g.add(g.linear(g.linear(y, a), a), y)

    assert steps(graph(inputs, weights, body), plan({"a.weight": 8})) == {}


def test_a_norm_needs_all_its_summands(graph: Any, plan: Any, steps: Any) -> None:
    inputs = {"ids": "int32[m]", "x": "float32[m, 64]"}
    weights = {"e.weight": "float32[70, 64]", **VECTORS}

    def body(g: Any, ids: Any, x: Any, e: Any, *vectors: Any) -> Any:
        return norm(g, g.add(g.take(e, ids, axis=0), x), *vectors)

    assert steps(graph(inputs, weights, body), plan({})) == {("table", "e"): []}


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_attention_needs_products(graph: Any, plan: Any, steps: Any, part: str) -> None:
    """An attention that reads a norm itself is none of the body's, nor is its reader."""
    inputs = {"ids": "int32[m]", "offsets": "int32[s]"}
    weights = {"e.weight": "float32[70, 64]", **VECTORS, **SQUARE}

    def body(g: Any, ids: Any, offsets: Any, e: Any, gamma: Any, beta: Any, a: Any) -> Any:
        x = norm(g, g.take(e, ids, axis=0), gamma, beta)
        y = g.linear(x, a)
        args = [x if name == part else y for name in "qkv"]
        called = g.external("tvmq.ragged_attention", [*args, offsets, relax.prim_value(2)], y)
        return g.linear(called, a)

    found = steps(graph(inputs, weights, body), plan({"a.weight": 8}))
    assert list(found) == [("table", "e"), ("norm", "n"), ("linear", "a")]


def test_sums_of_products_are_none(graph: Any, plan: Any, steps: Any) -> None:
    """Only tables are added by themselves; a residual is added by its norm."""
    inputs, weights = {"ids": "int32[m]"}, {"e.weight": "float32[70, 64]", **VECTORS, **SQUARE}

    def body(g: Any, ids: Any, e: Any, gamma: Any, beta: Any, a: Any) -> Any:
        x = norm(g, g.take(e, ids, axis=0), gamma, beta)
        return g.add(g.linear(x, a), x)

    found = steps(graph(inputs, weights, body), plan({"a.weight": 8}))
    assert list(found) == [("table", "e"), ("norm", "n"), ("linear", "a")]


def test_a_linear_of_a_table_is_none(graph: Any, plan: Any, steps: Any) -> None:
    inputs, weights = {"ids": "int32[m]"}, {"e.weight": "float32[70, 64]", **SQUARE}
    module = graph(inputs, weights, lambda g, ids, e, a: g.linear(g.take(e, ids, axis=0), a))
    assert steps(module, plan({"e.weight": 8, "a.weight": 8})) == {("table", "e"): []}
