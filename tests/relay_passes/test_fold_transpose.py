# SPDX-License-Identifier: Apache-2.0
"""FoldTranspose: weights multiplied as [inputs, outputs] are stored as [outputs, inputs]."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.fold_transpose import FoldTranspose, transposed_tensors


def test_a_multiplied_weight_is_transposed(apply: Any, same: Any) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("m", 8), "float32"), w: R.Tensor((8, 4), "float32")) -> R.Tensor(
            ("m", 4), "float32"
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.matmul(x, w)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("m", 8), "float32"), w: R.Tensor((4, 8), "float32")) -> R.Tensor(
            ("m", 4), "float32"
        ):
            R.func_attr({"num_input": 1, "tvmq.transposed": ["w"]})
            with R.dataflow():
                t = R.permute_dims(w)
                y = R.matmul(x, t)
                R.output(y)
            return y

    after = apply(Before, FoldTranspose())
    same(after, Expected)
    assert transposed_tensors(after) == {"w"}
    same(apply(after, FoldTranspose()), Expected)


def test_a_weight_used_in_another_way_is_left_alone(apply: Any, same: Any) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(  # noqa: ANN202
            x: R.Tensor(("m", 8), "float32"),
            left: R.Tensor((5, 5), "float32"),
            linear: R.Tensor((8, 8), "float32"),
            table: R.Tensor((8, 8), "float32"),
            joined: R.Tensor((8, 8), "float32"),
            named: R.Tensor((8, 8), "float32"),
            batched: R.Tensor((1, 8, 8), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                a = R.matmul(left, left)
                b = R.matmul(x, R.permute_dims(linear))
                c = R.matmul(x, table)
                d = R.add(c, R.sum(table))
                e = R.matmul(x, joined)
                f = R.concat((joined, joined), axis=0)
                same_thing = named
                g = R.matmul(x, named)
                h = R.matmul(x, batched)
                result = (a, b, d, e, f, same_thing, g, h)
                R.output(result)
            return result

    same(apply(Before, FoldTranspose()), Before)


def test_a_returned_weight_is_left_alone(apply: Any, same: Any) -> None:
    w = relax.Var("w", relax.TensorType([8, 8], "float32"))
    x = relax.Var("x", relax.TensorType([2, 8], "float32"))
    y = relax.Var("y", relax.TensorType([2, 8], "float32"))
    block = relax.BindingBlock([relax.VarBinding(y, relax.op.matmul(x, w))])
    function = relax.Function([x, w], relax.SeqExpr([block], w), w.ty).with_attrs({"num_input": 1})
    module = relax.transform.Normalize()(tvm.IRModule({"main": function}))
    same(apply(module, FoldTranspose()), module)


def test_use_in_one_graph_keeps_the_layout_in_all(graph: Any, apply: Any) -> None:
    inputs, weights = {"x": "float32[2, 8]"}, {"a.weight": "float32[8, 8]", "b.weight": "float32[8, 8]"}
    module = graph(inputs, weights, lambda g, x, a, b: g.matmul(g.matmul(x, a), b), name="encode")
    module.update(graph(inputs, weights, lambda g, x, a, b: g.add(x, g.sum(a)), name="decode"))
    assert transposed_tensors(apply(module, FoldTranspose())) == {"b.weight"}


def test_inputs_and_helpers_are_not_weights(apply: Any, same: Any) -> None:
    @I.ir_module
    class Before:
        @R.function
        def helper(x: R.Tensor((2, 8), "float32"), w: R.Tensor((8, 4), "float32")) -> R.Tensor(
            (2, 4), "float32"
        ):
            with R.dataflow():
                y = R.matmul(x, w)
                R.output(y)
            return y

        @R.function
        def main(x: R.Tensor((2, 8), "float32"), z: R.Tensor((8, 4), "float32")) -> R.Tensor(
            (2, 4), "float32"
        ):
            R.func_attr({"num_input": 2})
            with R.dataflow():
                y = R.matmul(x, z)
                R.output(y)
            return y

    same(apply(Before, FoldTranspose()), Before)
