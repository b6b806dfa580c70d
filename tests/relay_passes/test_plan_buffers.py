# SPDX-License-Identifier: Apache-2.0
"""PlanBuffers: intermediate results of fixed shape live in workspaces of the caller."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relay_passes.plan_buffers import PlanBuffers, workspace_keys

STEP = PlanBuffers(names=("main",))


@I.ir_module
class Chain:
    """Three intermediate results, of which two live at a time, and the result."""

    @T.prim_func(private=True, s_tir=True)
    def twice(a: T.Buffer((2, 8), "float32"), b: T.Buffer((2, 8), "float32")) -> None:
        for i, j in T.grid(2, 8):
            with T.sblock("twice"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj] * T.float32(2)

    @R.function(pure=False)
    def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, 8), "float32"):
        cls = Chain
        R.func_attr({"num_input": 1})
        a = R.builtin.alloc_tensor(R.shape([2, 8]), R.dtype("float32"), R.prim_value(0))
        cls.twice(x, a)
        b = R.builtin.alloc_tensor(R.shape([2, 8]), R.dtype("float32"), R.prim_value(0))
        cls.twice(a, b)
        c = R.builtin.alloc_tensor(R.shape([2, 8]), R.dtype("float32"), R.prim_value(0))
        cls.twice(b, c)
        d = R.builtin.alloc_tensor(R.shape([2, 8]), R.dtype("float32"), R.prim_value(0))
        cls.twice(c, d)
        return d


def test_workspaces_are_reused(apply: Any, same: Any) -> None:
    @I.ir_module
    class Expected:
        @T.prim_func(private=True, s_tir=True)
        def twice(a: T.Buffer((2, 8), "float32"), b: T.Buffer((2, 8), "float32")) -> None:
            for i, j in T.grid(2, 8):
                with T.sblock("twice"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    b[vi, vj] = a[vi, vj] * T.float32(2)

        @R.function(pure=False)
        def main(
            x: R.Tensor((2, 8), "float32"),
            workspace_0: R.Tensor((2, 8), "float32"),
            workspace_1: R.Tensor((2, 8), "float32"),
        ) -> R.Tensor((2, 8), "float32"):
            cls = Expected
            R.func_attr({"num_input": 1, "tvmq.workspaces": 2})
            cls.twice(x, workspace_0)
            cls.twice(workspace_0, workspace_1)
            cls.twice(workspace_1, workspace_0)
            d = R.builtin.alloc_tensor(R.shape([2, 8]), R.dtype("float32"), R.prim_value(0))
            cls.twice(workspace_0, d)
            return d

    after = apply(Chain, STEP)
    same(after, Expected)
    assert workspace_keys(after["main"]) == [("float32", (2, 8))] * 2
    assert workspace_keys(Chain["main"]) == []


def test_other_functions_are_left_alone(apply: Any, same: Any) -> None:
    same(apply(Chain, PlanBuffers(names=("greedy_1",))), Chain)


def build(body: Any, shape: tuple[Any, ...]) -> tvm.IRModule:
    """A function after CallTIRRewrite, made from plain operators."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x], {"num_input": 1}):
        with builder.dataflow():
            out = builder.emit_output(body(builder, x))
        builder.emit_func_output(out)
    module = builder.get()
    transform = relax.transform
    for step in (
        transform.LegalizeOps(),
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
    ):
        module = step(module)
    return module


def allocated(module: tvm.IRModule) -> int:
    bindings = [b for block in module["main"].body.blocks for b in block.bindings]
    return sum("alloc_tensor" in str(getattr(getattr(b.value, "op", None), "name", "")) for b in bindings)


def test_sizes_of_run_time_stay_allocated(apply: Any) -> None:
    rows = tvm.tirx.Var("m", "int64")
    module = build(lambda g, x: g.emit(relax.op.exp(g.emit(relax.op.sin(x)))), (rows, 8))
    after = apply(module, STEP)
    assert workspace_keys(after["main"]) == []
    assert allocated(after) == 2


def test_a_view_keeps_its_workspace_busy(apply: Any) -> None:
    """A reshape shares memory: what it came from must not be reused while the view is still read."""

    def body(g: Any, x: Any) -> Any:
        view = g.emit(relax.op.reshape(g.emit(relax.op.sin(x)), [8, 2]))
        other = g.emit(relax.op.exp(x))
        return g.emit(relax.op.matmul(other, view))

    after = apply(build(body, (2, 8)), STEP)
    assert workspace_keys(after["main"]) == [("float32", (2, 8))] * 2


def test_a_returned_view_is_allocated(apply: Any) -> None:
    after = apply(build(lambda g, x: g.emit(relax.op.reshape(g.emit(relax.op.sin(x)), [8, 2])), (2, 8)), STEP)
    assert workspace_keys(after["main"]) == []
    assert allocated(after) == 1


def test_returned_parts_of_tuples_are_allocated(apply: Any) -> None:
    def body(g: Any, x: Any) -> Any:
        first, second = g.emit(relax.op.sin(x)), g.emit(relax.op.exp(x))
        return relax.Tuple([g.emit(relax.op.add(first, second)), second])

    after = apply(build(body, (2, 8)), STEP)
    assert workspace_keys(after["main"]) == [("float32", (2, 8))]
    assert allocated(after) == 2
