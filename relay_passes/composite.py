# SPDX-License-Identifier: Apache-2.0
"""Composite functions: one private Relax function per planned operation, with its facts as attributes.

``annotate_bits`` makes them, the lowering passes take them apart. Kinds: ``tvmq.linear`` (matmul with a
transposed weight, optional bias and activation), ``tvmq.embedding`` (row gather, optional constant
factor), ``tvmq.norm`` (layer norm, optional residual add).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.dpl import is_const, is_op, wildcard

LINEAR, EMBEDDING, NORM = "tvmq.linear", "tvmq.embedding", "tvmq.norm"
ACTIVATIONS = {
    "relax.nn.relu": "relu",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.tanh": "tanh",
}
"""Operator -> the name that kernels know it by, of activations that end a linear."""


def patterns(check: Any) -> list[Any]:
    """The fusion patterns, longest first; ``check(kind, context)`` accepts or rejects a match."""
    found: list[Any] = []
    for activation in (*ACTIVATIONS, ""):
        for bias in (True, False):
            found.append(_linear(bias, activation, check))
    found += [_embedding(True, check), _embedding(False, check), _norm(True, check), _norm(False, check)]
    return found


def _linear(bias: bool, activation: str, check: Any) -> tuple[Any, ...]:
    x, w, b = wildcard(), wildcard(), wildcard()
    out = is_op("relax.matmul")(x, is_op("relax.permute_dims")(w))
    names = {"x": x, "w": w}
    if bias:
        out = is_op("relax.add")(out, b)
        names["b"] = b
    if activation:
        out = is_op(activation)(out)
    return (LINEAR, out, names, lambda context: check(LINEAR, context))


def _embedding(factor: bool, check: Any) -> tuple[Any, ...]:
    w, ids, scale = wildcard(), wildcard(), is_const()
    out = is_op("relax.take")(w, ids)
    names: dict[str, Any] = {"w": w, "ids": ids}
    if factor:
        out = is_op("relax.multiply")(out, scale)
        names["factor"] = scale
    return (EMBEDDING, out, names, lambda context: check(EMBEDDING, context))


def _norm(residual: bool, check: Any) -> tuple[Any, ...]:
    x, r, gamma, beta = wildcard(), wildcard(), wildcard(), wildcard()
    names = {"x": x, "gamma": gamma, "beta": beta}
    source = x
    if residual:
        source = is_op("relax.add")(x, r)
        names["residual"] = r
    out = is_op("relax.nn.layer_norm")(source, gamma, beta)
    return (NORM, out, names, lambda context: check(NORM, context))


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """A composite function and the roles of its parameters.

    ``arguments`` maps a role (x, w, b, ids, residual, gamma, beta) to the index of the call's argument.
    """

    kind: str
    function: Any
    arguments: dict[str, int]

    def argument(self, call: Any, role: str) -> Any:
        """The call's argument in ``role``, or None."""
        index = self.arguments.get(role)
        return None if index is None else call.args[index]

    @property
    def attrs(self) -> dict[str, Any]:
        return dict(self.function.attrs.items())


def composite_of(module: tvm.IRModule, call: Any) -> Composite | None:
    """The composite that ``call`` calls, or None."""
    if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.GlobalVar):
        return None
    function = module.functions.get(call.op)
    if not isinstance(function, relax.Function) or not function.attrs or "Composite" not in function.attrs:
        return None
    kind = str(function.attrs["Composite"])
    return Composite(kind=kind, function=function, arguments=_roles(kind, function))


def _roles(kind: str, function: Any) -> dict[str, int]:
    index = {param: i for i, param in enumerate(function.params)}
    roles: dict[str, int] = {}
    values = [b.value for block in function.body.blocks for b in block.bindings]
    calls = {str(v.op.name): v for v in values if isinstance(v, relax.Call) and hasattr(v.op, "name")}

    def note(role: str, expr: Any) -> None:
        if expr in index:
            roles[role] = index[expr]

    match kind:
        case "tvmq.linear":
            note("x", calls["relax.matmul"].args[0])
            note("w", calls["relax.permute_dims"].args[0])
            if "relax.add" in calls:
                note("b", calls["relax.add"].args[1])
        case "tvmq.embedding":
            note("w", calls["relax.take"].args[0])
            note("ids", calls["relax.take"].args[1])
        case "tvmq.norm":
            norm = calls["relax.nn.layer_norm"]
            note("gamma", norm.args[1])
            note("beta", norm.args[2])
            if "relax.add" in calls:
                note("x", calls["relax.add"].args[0])
                note("residual", calls["relax.add"].args[1])
            else:
                note("x", norm.args[0])
    return roles


def activation_of(composite: Composite) -> str:
    """The activation at the end of a linear, "" without one."""
    names = (name for op, name in ACTIVATIONS.items() if inner_call(composite, op) is not None)
    return next(names, "")


def inner_call(composite: Composite, op: str) -> Any:
    """The call of ``op`` inside a composite, or None."""
    for block in composite.function.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == op:
                return value
    return None
