# SPDX-License-Identifier: Apache-2.0
"""AnnotateBits: linears, embeddings and norms become composites that carry the plan; nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.annotate_bits import AnnotateBits


def facts(module: Any) -> dict[str, dict[str, Any]]:
    """Composite functions by name, with their attributes."""
    return {
        str(var.name_hint): {
            str(k): v for k, v in function.attrs.items() if str(k) not in ("Primitive", "Composite")
        }
        for var, function in module.functions.items()
        if "Composite" in function.attrs
    }


def test_linear_with_bias_and_relu(apply: Any, plan: Any, same: Any) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor(("m", 8), "float32"), w: R.Tensor((4, 8), "float32"), b: R.Tensor((4,), "float32")
        ) -> R.Tensor(("m", 4), "float32"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                t = R.permute_dims(w)
                y = R.matmul(x, t)
                z = R.add(y, b)
                r = R.nn.relu(z)
                R.output(r)
            return r

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def w(
            w: R.Tensor((4, 8), "float32"), x: R.Tensor(("m", 8), "float32"), b: R.Tensor((4,), "float32")
        ) -> R.Tensor(("m", 4), "float32"):
            R.func_attr(
                {
                    "Composite": "tvmq.linear",
                    "Primitive": True,
                    "tvmq.activation": "relu",
                    "tvmq.bits": 3,
                    "tvmq.path": "w",
                    "tvmq.tensor": "w",
                }
            )
            with R.dataflow():
                t = R.permute_dims(w)
                y = R.matmul(x, t)
                z = R.add(y, b)
                r = R.nn.relu(z)
                R.output(r)
            return r

        @R.function
        def main(
            x: R.Tensor(("m", 8), "float32"), w: R.Tensor((4, 8), "float32"), b: R.Tensor((4,), "float32")
        ) -> R.Tensor(("m", 4), "float32"):
            cls = Expected
            R.func_attr({"num_input": 1, "tvmq.planned": {"w": 1}})
            with R.dataflow():
                r = cls.w(w, x, b)
                R.output(r)
            return r

    same(apply(Before, AnnotateBits(plan=plan({"w": 3}))), Expected)


def test_embedding_with_factor_and_word_bits(apply: Any, plan: Any, same: Any) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(ids: R.Tensor(("m",), "int32"), table: R.Tensor((10, 8), "float32")) -> R.Tensor(
            ("m", 8), "float32"
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                rows = R.take(table, ids, axis=0)
                y = R.multiply(rows, R.const(2.5, "float32"))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def table(table: R.Tensor((10, 8), "float32"), ids: R.Tensor(("m",), "int32")) -> R.Tensor(
            ("m", 8), "float32"
        ):
            R.func_attr(
                {
                    "Composite": "tvmq.embedding",
                    "Primitive": True,
                    "tvmq.bits": 0,
                    "tvmq.factor": 2.5,
                    "tvmq.path": "table",
                    "tvmq.tensor": "table",
                }
            )
            with R.dataflow():
                rows = R.take(table, ids, axis=0)
                y = R.multiply(rows, R.const(2.5, "float32"))
                R.output(y)
            return y

        @R.function
        def main(ids: R.Tensor(("m",), "int32"), table: R.Tensor((10, 8), "float32")) -> R.Tensor(
            ("m", 8), "float32"
        ):
            cls = Expected
            R.func_attr({"num_input": 1, "tvmq.planned": {"table": 1}})
            with R.dataflow():
                y = cls.table(table, ids)
                R.output(y)
            return y

    same(apply(Before, AnnotateBits(plan=plan({"table": ((6, 3), (4, 2))}))), Expected)


def test_norm_takes_its_residual(apply: Any, plan: Any, same: Any) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor(("m", 8), "float32"),
            y: R.Tensor(("m", 8), "float32"),
            gamma: R.Tensor((8,), "float32"),
            beta: R.Tensor((8,), "float32"),
        ) -> R.Tensor(("m", 8), "float32"):
            R.func_attr({"num_input": 2})
            with R.dataflow():
                h = R.add(x, y)
                z = R.nn.layer_norm(h, gamma, beta, axes=[-1], epsilon=0.001)
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def gamma(
            x: R.Tensor(("m", 8), "float32"),
            y: R.Tensor(("m", 8), "float32"),
            gamma: R.Tensor((8,), "float32"),
            beta: R.Tensor((8,), "float32"),
        ) -> R.Tensor(("m", 8), "float32"):
            R.func_attr(
                {"Composite": "tvmq.norm", "Primitive": True, "tvmq.epsilon": 0.001, "tvmq.path": "gamma"}
            )
            with R.dataflow():
                h = R.add(x, y)
                z = R.nn.layer_norm(h, gamma, beta, axes=[-1], epsilon=0.001)
                R.output(z)
            return z

        @R.function
        def main(
            x: R.Tensor(("m", 8), "float32"),
            y: R.Tensor(("m", 8), "float32"),
            gamma: R.Tensor((8,), "float32"),
            beta: R.Tensor((8,), "float32"),
        ) -> R.Tensor(("m", 8), "float32"):
            cls = Expected
            R.func_attr({"num_input": 2, "tvmq.planned": {}})
            with R.dataflow():
                z = cls.gamma(x, y, gamma, beta)
                R.output(z)
            return z

    same(apply(Before, AnnotateBits(plan=plan({}))), Expected)


def test_names_bits_and_uses_of_every_composite(graph: Any, apply: Any, plan: Any, operators: Any) -> None:
    def body(g: Any, ids: Any, emb: Any, fc: Any, bias: Any, plain: Any) -> Any:
        x = g.take(emb, ids, axis=0)
        y = g.linear(g.linear(x, fc, bias), plain)
        return g.linear(g.linear(y, fc, bias), emb)

    weights = {
        "emb.weight": "float32[10, 8]",
        "layers.0.fc.weight": "float32[8, 8]",
        "layers.0.fc.bias": "float32[8]",
        "plain.weight": "float32[8, 8]",
    }
    bits = plan({"emb.weight": ((10, 2),), "layers.0.fc.weight": 4})
    after = apply(graph({"ids": "int32[m]"}, weights, body), AnnotateBits(plan=bits))
    assert operators(after) == ["tvmq.embedding", *["tvmq.linear"] * 4]
    found = facts(after)
    assert {name: (f["tvmq.tensor"], f["tvmq.path"], f["tvmq.bits"]) for name, f in found.items()} == {
        "emb": ("emb.weight", "emb", 0),
        "emb1": ("emb.weight", "emb", 0),
        "layers__0__fc": ("layers.0.fc.weight", "layers.0.fc", 4),
        "plain": ("plain.weight", "plain", 32),
    }
    assert dict(after["main"].attrs["tvmq.planned"]) == {"emb.weight": 2, "layers.0.fc.weight": 2}
    assert found["emb"]["tvmq.factor"] == 1.0
    assert found["plain"]["tvmq.activation"] == ""


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_activations_end_their_linear(
    graph: Any, apply: Any, plan: Any, operators: Any, activation: str, bias: bool
) -> None:
    weights = {"w.weight": "float32[8, 8]", "v": "float32[8]"}
    module = graph(
        {"x": "float32[m, 8]"},
        weights,
        lambda g, x, w, v: getattr(g, activation)(g.linear(x, w, v if bias else None)),
    )
    after = apply(module, AnnotateBits(plan=plan({})))
    assert operators(after) == [LINEAR]
    assert facts(after)["w"]["tvmq.activation"] == activation


def test_each_graph_counts_its_own_uses(graph: Any, apply: Any, plan: Any) -> None:
    inputs, weights = {"x": "float32[m, 8]"}, {"a.weight": "float32[8, 8]", "b.weight": "float32[8, 8]"}
    module = graph(inputs, weights, lambda g, x, a, b: g.linear(x, a), name="encode")
    module.update(graph(inputs, weights, lambda g, x, a, b: g.linear(g.linear(x, b), b), name="decode"))
    after = apply(module, AnnotateBits(plan=plan({"a.weight": 1, "b.weight": 2})))
    assert dict(after["encode"].attrs["tvmq.planned"]) == {"a.weight": 1}
    assert dict(after["decode"].attrs["tvmq.planned"]) == {"b.weight": 2}


def test_a_second_run_changes_nothing(graph: Any, apply: Any, plan: Any, same: Any) -> None:
    module = graph({"x": "float32[m, 8]"}, {"a.weight": "float32[8, 8]"}, lambda g, x, a: g.linear(x, a))
    step = AnnotateBits(plan=plan({"a.weight": 1}))
    once = apply(module, step)
    same(apply(once, step), once)


VECTOR = relax.const(np.full((8,), 2, np.float32))
MATRIX = relax.const(np.full((3, 8), 2, np.float32))
LINEAR, EMBEDDING, NORM = "tvmq.linear", "tvmq.embedding", "tvmq.norm"
CASES: dict[str, tuple[Any, str]] = {
    # linears
    "product of activations": (lambda g, x, i, w, v, one: g.linear(x, x), "matmul"),
    "computed matrix": (lambda g, x, i, w, v, one: g.linear(x, g.negative(w)), "matmul"),
    "not transposed": (lambda g, x, i, w, v, one: g.matmul(x, g.permute_dims(w, [0, 1])), "matmul"),
    "constant activation": (lambda g, x, i, w, v, one: g.linear(MATRIX, w), "matmul"),
    "residual": (lambda g, x, i, w, v, one: g.add(g.linear(x, w), x), f"{LINEAR} add"),
    "constant bias": (lambda g, x, i, w, v, one: g.linear(x, w, VECTOR), f"{LINEAR} add"),
    "computed bias": (lambda g, x, i, w, v, one: g.linear(x, w, g.negative(v)), f"{LINEAR} add"),
    "bias that broadcasts": (lambda g, x, i, w, v, one: g.linear(x, w, one), f"{LINEAR} add"),
    # embeddings
    "columns": (lambda g, x, i, w, v, one: g.take(w, i, axis=1), "take"),
    "ids of two axes": (lambda g, x, i, w, v, one: g.take(w, g.reshape(i, [3, 1]), axis=0), "take"),
    "wide ids": (lambda g, x, i, w, v, one: g.take(w, g.astype(i, "int64"), axis=0), "take"),
    "rows of an input": (lambda g, x, i, w, v, one: g.take(x, i, axis=0), "take"),
    "vector factor": (
        lambda g, x, i, w, v, one: g.multiply(g.take(w, i, axis=0), VECTOR),
        f"{EMBEDDING} multiply",
    ),
    # norms
    "positive axis": (lambda g, x, i, w, v, one: g.layer_norm(x, v, v, axes=[1]), NORM),
    "constant gamma": (lambda g, x, i, w, v, one: g.layer_norm(x, VECTOR, v, axes=[-1]), "layer_norm"),
    "two axes": (lambda g, x, i, w, v, one: g.layer_norm(w, w, w, axes=[0, 1]), "layer_norm"),
    "other axis": (lambda g, x, i, w, v, one: g.layer_norm(g.negative(w), v, v, axes=[0]), "layer_norm"),
    "no offset": (
        lambda g, x, i, w, v, one: g.layer_norm(x, v, v, axes=[-1], center=False),
        "layer_norm",
    ),
    "residual that broadcasts": (
        lambda g, x, i, w, v, one: g.layer_norm(g.add(x, v), v, v, axes=[-1]),
        f"add {NORM}",
    ),
    "constant residual": (
        lambda g, x, i, w, v, one: g.layer_norm(g.add(x, MATRIX), v, v, axes=[-1]),
        f"add {NORM}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_the_kernels_compute_is_fused(
    graph: Any, apply: Any, plan: Any, operators: Any, case: str
) -> None:
    body, expected = CASES[case]
    weights = {"w.weight": "float32[8, 8]", "v": "float32[8]", "one": "float32[1]"}
    after = apply(
        graph({"x": "float32[3, 8]", "ids": "int32[3]"}, weights, body), AnnotateBits(plan=plan({}))
    )
    prepared = {"permute_dims", "negative", "reshape", "astype"}
    found = [name.removeprefix("relax.").removeprefix("nn.") for name in operators(after)]
    assert [name for name in found if name not in prepared] == expected.split()


@pytest.mark.parametrize(("dtype", "expected"), [("float32", LINEAR), ("float16", "relax.matmul")])
def test_only_float32_products_are_lowered(
    graph: Any, apply: Any, plan: Any, operators: Any, dtype: str, expected: str
) -> None:
    weights = {"w.weight": f"{dtype}[8, 8]"}
    module = graph({"x": f"{dtype}[3, 8]"}, weights, lambda g, x, w: g.linear(x, w))
    assert operators(apply(module, AnnotateBits(plan=plan({}))))[-1] == expected


def test_what_others_read_stays_outside(graph: Any, apply: Any, plan: Any, operators: Any) -> None:
    """Pre-norm residuals, and activations of which both sides are used."""

    def norm(g: Any, x: Any, y: Any, w: Any, v: Any) -> Any:
        h = g.add(x, y)
        return g.add(h, g.layer_norm(h, v, v, axes=[-1]))

    def relu(g: Any, x: Any, y: Any, w: Any, v: Any) -> Any:
        h = g.linear(x, w, v)
        return g.add(h, g.relu(h))

    def bias(g: Any, x: Any, y: Any, w: Any, v: Any) -> Any:
        h = g.linear(x, w)
        return g.multiply(h, g.add(h, v))

    inputs, weights = {"x": "float32[m, 8]", "y": "float32[m, 8]"}, {"w": "float32[8, 8]", "v": "float32[8]"}
    step = AnnotateBits(plan=plan({}))
    found = [operators(apply(graph(inputs, weights, body), step)) for body in (norm, relu, bias)]
    assert found == [
        ["relax.add", NORM, "relax.add"],
        [LINEAR, "relax.nn.relu", "relax.add"],
        [LINEAR, "relax.add", "relax.multiply"],
    ]


def test_a_result_of_the_graph_stays_outside(graph: Any, apply: Any, plan: Any, operators: Any) -> None:
    def body(g: Any, x: Any, w: Any, v: Any) -> Any:
        h = g.builder.emit_output(g.linear(x, w))
        return relax.Tuple([h, g.builder.emit_output(g.add(h, v))])

    module = graph({"x": "float32[m, 8]"}, {"w": "float32[8, 8]", "v": "float32[8]"}, body)
    assert operators(apply(module, AnnotateBits(plan=plan({})))) == [LINEAR, "relax.add"]
