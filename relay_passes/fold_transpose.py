# SPDX-License-Identifier: Apache-2.0
"""FoldTranspose: every multiplied weight parameter becomes [outputs, inputs], the layout of ``nn.Linear``.

Before: ``matmul(x, W[k, n])``. After: ``matmul(x, permute_dims(W[n, k]))`` and W's name in the function's
``tvmq.transposed`` attribute, so that the build transposes the stored tensor once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .lowering import is_entry

TRANSPOSED_ATTR = "tvmq.transposed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldTranspose:
    """Fold the layout of weights that a graph only ever uses as the right side of a matmul."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        plain = _foldable(module)
        folded = module.clone()
        for var, function in module.functions.items():
            if is_entry(function):
                folded.update_func(var, _Folder(module, plain).fold(function))
        return folded


def transposed_tensors(module: tvm.IRModule) -> set[str]:
    """Names of weights whose stored form is the transpose of the source tensor."""
    found: set[str] = set()
    for function in module.functions.values():
        if is_entry(function) and TRANSPOSED_ATTR in function.attrs:
            found |= {str(name) for name in function.attrs[TRANSPOSED_ATTR]}
    return found


def _foldable(module: tvm.IRModule) -> set[str]:
    """Rank-2 parameters that appear as a direct right operand, and nowhere else in any graph."""
    direct: set[str] = set()
    other: set[str] = set()
    for function in module.functions.values():
        if not is_entry(function):
            continue
        weights = {p: str(p.name) for p in list(function.params)[int(function.attrs["num_input"]) :]}
        reads = list(relax.analysis.free_vars(function.body.body))
        for block in function.body.blocks:
            for binding in block.bindings:
                value = binding.value
                if _is_matmul(value) and value.args[1] in weights and int(value.args[1].ty.ndim) == 2:
                    direct.add(weights[value.args[1]])
                    value = value.args[0]
                reads += relax.analysis.free_vars(value)
        other |= {weights[var] for var in reads if var in weights}
    return direct - other


def _is_matmul(value: Any) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.matmul"


@mutator
class _Folder(PyExprMutator):
    def __init__(self, module: tvm.IRModule, names: set[str]) -> None:
        super().__init__(module)
        self._names = names
        self._flipped: dict[Any, relax.Var] = {}

    def fold(self, function: Any) -> Any:
        inputs = int(function.attrs["num_input"])
        for param in list(function.params)[inputs:]:
            if str(param.name) in self._names:
                k, n = param.ty.shape
                self._flipped[param] = relax.Var(str(param.name), relax.TensorType([n, k], param.ty.dtype))
        if not self._flipped:
            return function
        rewritten = self.visit_expr(function)
        params = [self._flipped.get(p, p) for p in rewritten.params]
        result = relax.Function(params, rewritten.body, rewritten.ret_ty, rewritten.is_pure, rewritten.attrs)
        return result.with_attr(TRANSPOSED_ATTR, sorted(str(v.name) for v in self._flipped.values()))

    def visit_call_(self, call: Any) -> Any:
        if _is_matmul(call) and call.args[1] in self._flipped:
            weight = self.builder_.emit(relax.op.permute_dims(self._flipped[call.args[1]]))
            return relax.op.matmul(self.visit_expr(call.args[0]), weight)
        return self.visit_expr_post_order(call)
