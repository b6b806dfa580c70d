# SPDX-License-Identifier: Apache-2.0
"""Which matches of the composite patterns are what the kernels compute; all others stay plain Relax.

A pattern only knows operators. ``FusionRules`` looks at the rest: axes, types, extents, that weights are
parameters, that no operand is a constant (a fused one has no role), and that nobody else reads
what is inside.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.sym import Analyzer

from .composite import EMBEDDING, LINEAR


class FusionRules:
    """``rules(kind, context)`` accepts or rejects a match; ``params`` are the weights of the module."""

    def __init__(self, params: set[Any]) -> None:
        self._params = params

    def __call__(self, kind: str, context: Any) -> bool:
        if _read_outside(context):
            return False
        found = {str(role): expr for role, expr in context.annotated_expr.items()}
        inner = {str(value.op.name): value for value in context.matched_bindings.values()}
        match kind:
            case _ if kind == LINEAR:
                return self._linear(found, inner)
            case _ if kind == EMBEDDING:
                return self._embedding(found, inner)
            case _:
                return self._norm(found, inner)

    def _linear(self, found: dict[str, Any], inner: dict[str, Any]) -> bool:
        w = found["w"]
        if not self._is_weight(w, 2) or not _is_activation(found["x"]):
            return False
        axes = inner["relax.permute_dims"].attrs["axes"]
        n, k = w.ty.shape
        return (
            (axes is None or [int(axis) for axis in axes] == [1, 0])
            and _equal(found["x"].ty.shape[-1], k)
            and ("b" not in found or (self._is_weight(found["b"], 1) and _equal(found["b"].ty.shape[0], n)))
        )

    def _embedding(self, found: dict[str, Any], inner: dict[str, Any]) -> bool:
        ids = found["ids"]
        return (
            self._is_weight(found["w"], 2)
            and _is_tensor(ids, "int32")
            and int(ids.ty.ndim) == 1
            and inner["relax.take"].attrs["axis"] == 0
            and ("factor" not in found or int(found["factor"].ty.ndim) == 0)
        )

    def _norm(self, found: dict[str, Any], inner: dict[str, Any]) -> bool:
        x, attrs = found["x"], inner["relax.nn.layer_norm"].attrs
        vectors = [found["gamma"], found["beta"]]
        if not _is_activation(x) or not all(self._is_weight(vector, 1) for vector in vectors):
            return False
        return (
            [int(axis) % int(x.ty.ndim) for axis in attrs["axes"]] == [int(x.ty.ndim) - 1]
            and bool(attrs["center"])
            and bool(attrs["scale"])
            and all(_equal(vector.ty.shape[0], x.ty.shape[-1]) for vector in vectors)
            and ("residual" not in found or _same_shape(x, found["residual"]))
        )

    def _is_weight(self, expr: Any, rank: int) -> bool:
        return expr in self._params and _is_tensor(expr, "float32") and int(expr.ty.ndim) == rank


def _read_outside(context: Any) -> bool:
    """Whether a value inside the match, other than its result, is read by others."""
    inside = dict(context.matched_bindings.items())
    result = context.value_to_bound_var[context.matched_expr]
    return any(
        not isinstance(var, relax.DataflowVar) or any(user not in inside for user in context.var_usages[var])
        for var in inside
        if var != result
    )


def _is_tensor(expr: Any, dtype: str) -> bool:
    """A value of ``dtype`` with known extents. (A match shows bound variables as what they are bound to.)"""
    return (
        not isinstance(expr, tvm.ir.Constant)
        and isinstance(expr.ty, relax.TensorType)
        and isinstance(expr.ty.shape, relax.ShapeExpr)
        and str(expr.ty.dtype) == dtype
    )


def _is_activation(expr: Any) -> bool:
    return _is_tensor(expr, "float32") and int(expr.ty.ndim) >= 1


def _same_shape(x: Any, residual: Any) -> bool:
    """Kernels add rows to rows: nothing may broadcast."""
    if not _is_activation(residual) or residual.ty.ndim != x.ty.ndim:
        return False
    return all(_equal(a, b) for a, b in zip(x.ty.shape, residual.ty.shape, strict=True))


def _equal(a: Any, b: Any) -> bool:
    return bool(Analyzer().can_prove_equal(a, b))
