# SPDX-License-Identifier: Apache-2.0
"""PlanBuffers: intermediate results of fixed shape live in workspace parameters, planned at compile time.

Before (after CallTIRRewrite): every kernel call is preceded by ``alloc_tensor`` of its outputs. After:
the outputs are extra parameters of the function, reused as soon as their last reader has run, so that a
call of the function allocates nothing. Results that leave the function are still allocated.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .lowering import is_entry

WORKSPACE_ATTR = "tvmq.workspaces"
"""Number of trailing parameters that are workspaces."""
Key = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBuffers:
    """Plan the entry functions called ``names``; sizes only known at run time are left alone."""

    names: tuple[str, ...]

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        planned = module.clone()
        for var, function in module.functions.items():
            if is_entry(function) and str(var.name_hint) in self.names:
                planned.update_func(var, _plan(module, function))
        return planned


def workspace_keys(function: Any) -> list[Key]:
    """dtype and shape of the workspace parameters of a planned function, in order."""
    count = int(function.attrs.get(WORKSPACE_ATTR, 0)) if function.attrs else 0
    params = list(function.params)[len(function.params) - count :] if count else []
    return [(str(p.ty.dtype), tuple(int(e) for e in p.ty.shape)) for p in params]


def _plan(module: tvm.IRModule, function: Any) -> Any:
    bindings = [b for block in function.body.blocks for b in block.bindings]
    aliases = _Aliases(bindings)
    aliases.whole.add(function.body.body)
    kept = aliases.origins(function.body.body)
    last_use = aliases.last_uses()
    slots = _assign(bindings, kept, last_use)
    if not slots:
        return function
    planner = _Planner(module, slots, aliases)
    rewritten = planner.visit_expr(function)
    spaces = list(dict.fromkeys(slots.values()))
    planned = relax.Function(
        [*rewritten.params, *spaces], rewritten.body, rewritten.ret_ty, rewritten.is_pure, rewritten.attrs
    )
    return planned.with_attr(WORKSPACE_ATTR, len(spaces))


def _allocation(value: Any) -> Key | None:
    """dtype and shape if ``value`` allocates a tensor of fixed shape."""
    if getattr(getattr(value, "op", None), "name", "") != "relax.builtin.alloc_tensor":
        return None
    shape = list(value.args[0].values) if hasattr(value.args[0], "values") else []
    if not shape or not all(isinstance(extent, tvm.tirx.IntImm) for extent in shape):
        return None
    return str(value.ty.dtype), tuple(int(extent) for extent in shape)


class _Aliases:
    """Which allocations a variable stands for, through renamings, tuples, views and in-place results."""

    def __init__(self, bindings: list[Any]) -> None:
        self._bindings = bindings
        self._of: dict[Any, set[Any]] = {}
        self.tuples: dict[Any, list[Any]] = {}
        self.whole: set[Any] = set()
        """Variables that a call, a renaming or the function's result uses as they are."""
        for binding in bindings:
            value, var = binding.value, binding.var
            if isinstance(value, relax.Call):
                self.whole.update(arg for arg in value.args if isinstance(arg, relax.Var))
            if _allocation(value) is not None:
                self._of[var] = {var}
            elif isinstance(value, relax.Call):
                # A reshape is a view of its argument; a kernel's call has no result that could be one.
                self._of[var] = set().union(*(self.origins(arg) for arg in value.args))
            elif isinstance(value, relax.Var):
                self.whole.add(value)
                self._of[var] = self.origins(value)
                if value in self.tuples:
                    self.tuples[var] = self.tuples[value]
            elif isinstance(value, relax.Tuple):
                self._of[var] = self.origins(value)
                self.tuples[var] = list(value.fields)
            elif isinstance(value, relax.TupleGetItem):
                fields = self.tuples.get(value.tuple_value)
                self._of[var] = self.origins(value.tuple_value if fields is None else fields[value.index])

    def origins(self, expr: Any) -> set[Any]:
        if isinstance(expr, relax.Tuple):
            return set().union(*(self.origins(field) for field in expr.fields))
        return self._of.get(expr, set())

    def last_uses(self) -> dict[Any, int]:
        """Allocation -> index of the last kernel call that touches it."""
        last: dict[Any, int] = {}
        for index, binding in enumerate(self._bindings):
            if isinstance(binding.value, relax.Call):
                for arg in binding.value.args:
                    for origin in self.origins(arg):
                        last[origin] = index
        return last


def _assign(bindings: list[Any], kept: set[Any], last_use: dict[Any, int]) -> dict[Any, Any]:
    """Allocation variable -> workspace parameter; a free one of the same type is taken first."""
    free: dict[Key, list[Any]] = defaultdict(list)
    ends: dict[int, list[tuple[Key, Any]]] = defaultdict(list)
    slots: dict[Any, Any] = {}
    count = 0
    for index, binding in enumerate(bindings):
        key = _allocation(binding.value)
        if key is not None and binding.var not in kept:
            if free[key]:
                space = free[key].pop()
            else:
                dtype, shape = key
                space = relax.Var(f"workspace_{count}", relax.TensorType(list(shape), dtype))
                count += 1
            slots[binding.var] = space
            ends[last_use.get(binding.var, index)].append((key, space))
        for ended_key, space in ends.pop(index, []):
            free[ended_key].append(space)
    return slots


@mutator
class _Planner(PyExprMutator):
    def __init__(self, module: tvm.IRModule, slots: dict[Any, Any], aliases: _Aliases) -> None:
        super().__init__(module)
        self._slots = slots
        self._tuples = aliases.tuples
        self._whole = aliases.whole

    def visit_var_binding_(self, binding: Any) -> None:
        value, var = binding.value, binding.var
        if var in self._slots:
            self.set_var_remap(var, self._slots[var])
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self._tuples:
            field = self._tuples[value.tuple_value][value.index]
            self.set_var_remap(var, self.visit_expr(field))
        elif not (isinstance(value, relax.Tuple) and var not in self._whole):
            super().visit_var_binding_(binding)
