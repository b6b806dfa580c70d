# SPDX-License-Identifier: Apache-2.0
"""Relax functions with explicit allocations become lists of kernel calls; anything else is refused."""

from __future__ import annotations

import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvmq.native.flatten import NotFlatError, flatten
from tvmq.native.program import Call, Computed, Free, FromInput, Named, Output, Pool, Tensor


@I.ir_module
class Graph:
    """A view, a tuple, a buffer written in place, a computed size, two buffers that live at a time."""

    @T.prim_func(private=True, s_tir=True)
    def mix(a: T.handle, b: T.Buffer((4,), "float16"), c: T.handle) -> None:
        n = T.int64()
        A = T.match_buffer(a, (n, 8), "float32")
        C = T.match_buffer(c, (n, 8), "float32")
        for i, j in T.grid(n, 8):
            with T.sblock("mix"):
                vi, vj = T.axis.remap("SS", [i, j])
                C[vi, vj] = A[vi, vj] + T.Cast("float32", b[0])

    @R.function(pure=False)
    def main(
        x: R.Tensor(("s", 2, 4), "float32"),
        cache: R.Tensor(("s", 8), "float32"),
        w: R.Tensor((4,), "float16"),
    ) -> R.Tuple(R.Tensor(("s", 8), "float32"), R.Tensor(("s - 1", 8), "float32")):
        s = T.int64()
        cls = Graph
        R.func_attr({"num_input": 2})
        flat: R.Tensor((s, 8), "float32") = R.reshape(x, R.shape([s, 8]))
        a = R.builtin.alloc_tensor(R.shape([s, 8]), R.dtype("float32"), R.prim_value(0))
        cls.mix(flat, w, a)
        b = R.builtin.alloc_tensor(R.shape([s, 8]), R.dtype("float32"), R.prim_value(0))
        cls.mix(a, w, b)
        pair = a, b
        second = pair[1]
        cls.mix(second, w, cache)
        c = R.builtin.alloc_tensor(R.shape([s, 8]), R.dtype("float32"), R.prim_value(0))
        cls.mix(second, w, c)
        d = R.builtin.alloc_tensor(R.shape([s, 8]), R.dtype("float32"), R.prim_value(0))
        cls.mix(c, w, d)
        e = R.builtin.alloc_tensor(R.shape([s - 1, 8]), R.dtype("float32"), R.prim_value(0))
        cls.mix(d, w, e)
        result = d, e
        return result


def test_views_tuples_and_buffers_are_resolved() -> None:
    found = flatten(Graph)
    (function,) = found.functions
    rows = (Free(0), 8)
    assert found.kernels == ("mix",)
    assert found.weights == (Named("float16", (4,), "w"),)
    assert function.extents == (FromInput(0, 0), Computed("sub", Free(0), 1))
    assert function.inputs == (Named("float32", (Free(0), 2, 4), "x"), Named("float32", rows, "cache"))
    assert function.outputs == (Output("float32", rows), Output("float32", (Free(1), 8)))
    assert function.pools == (Pool(128, (Free(0),)),)
    assert function.tensors == (
        Tensor("input", 0, 0, "float32", rows),
        Tensor("weight", 0, 0, "float16", (4,)),
        Tensor("pool", 0, 0, "float32", rows),
        Tensor("pool", 0, 64, "float32", rows),
        Tensor("input", 1, 0, "float32", rows),
        Tensor("output", 0, 0, "float32", rows),
        Tensor("output", 1, 0, "float32", (Free(1), 8)),
    )
    assert function.calls == tuple(
        Call(0, taken) for taken in [(0, 1, 2), (2, 1, 3), (3, 1, 4), (3, 1, 2), (2, 1, 5), (5, 1, 6)]
    )


@I.ir_module
class Unlowered:
    @R.function
    def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        R.func_attr({"num_input": 1})
        y = R.add(x, x)
        return y


@I.ir_module
class Identity:
    @R.function
    def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
        R.func_attr({"num_input": 1})
        return x


@I.ir_module
class Wide:
    @R.function
    def main(x: R.Tensor((4,), "float64")) -> R.Tensor((4,), "float64"):
        R.func_attr({"num_input": 1})
        return x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Unlowered, "main: relax.add is no kernel call"),
        (Identity, "main: result 0 is an input, a weight or another result"),
        (Wide, "main: a tensor of float64; known: "),
    ],
)
def test_what_is_no_kernel_call_is_refused(module: tvm.IRModule, message: str) -> None:
    with pytest.raises(NotFlatError, match=message):
        flatten(module)
