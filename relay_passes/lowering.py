# SPDX-License-Identifier: Apache-2.0
"""What the lowering passes share: kernels added once, stored weights as parameters, tables that follow.

A lowering pass is a ``Lowering`` subclass: it sees calls, emits ``call_tir`` of kernels of
``schedules`` and asks for the stored arrays that these read; ``run`` then appends them to the
function's parameters and drops float weights that nobody reads any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator

from schedules.lut_table import Tables
from schedules.packing import ColumnLayout
from schedules.storage import StoredArray
from schedules.table_output import table_shapes

TABLE_ATTR = "tvmq.table"
"""PrimFunc attribute of a stand-alone table kernel: JSON of its layout and mode."""


class Lowering(PyExprMutator):
    """Base of the lowering passes over functions with a ``num_input`` attribute."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.module = module
        self.current: Any = None
        self._kernels: dict[Hashable, Any] = {}
        self._known: dict[str, relax.Var] = {}
        self._added: dict[str, relax.Var] = {}
        self._flat: dict[Any, Any] = {}

    def run(self) -> tvm.IRModule:
        """The module with every entry function rewritten."""
        for var, function in self.module.functions.items():
            if is_entry(function):
                self._known = {str(p.name): p for p in function.params}
                self._added = {}
                self._flat = {}
                self.enter(function)
                rewritten = self.visit_expr(function)
                params = [*rewritten.params, *self._added.values()]
                updated = relax.Function(
                    params, rewritten.body, rewritten.ret_ty, rewritten.is_pure, rewritten.attrs
                )
                self.builder_.update_func(var, updated)
        return prune(self.builder_.get())

    def enter(self, function: Any) -> None:
        """Hook before a function is rewritten."""

    def visit_var_binding_(self, binding: Any) -> None:
        self.current = binding.var
        super().visit_var_binding_(binding)

    def stored(self, array: StoredArray) -> relax.Var:
        """The parameter that holds ``array``."""
        return self.parameter(array.name, array.shape, array.dtype)

    def parameter(self, name: str, shape: Sequence[int], dtype: str = "float32") -> relax.Var:
        """The parameter ``name``, added to the current function when new."""
        if name in self._known:
            return self.visit_expr(self._known[name])
        if name not in self._added:
            self._added[name] = relax.Var(name, relax.TensorType(list(shape), dtype))
        return self._added[name]

    def kernel(self, key: Hashable, name: str, make: Callable[[], Any]) -> Any:
        """The module's function for a kernel, made once per key."""
        if key not in self._kernels:
            self._kernels[key] = self.builder_.add_func(make(), name)
        return self._kernels[key]

    def call(self, kernel: Any, args: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """Emits ``call_tir`` and returns one variable per output."""
        if len(outputs) == 1:
            return [self.builder_.emit(relax.op.call_tir(kernel, list(args), outputs[0]))]
        result = self.builder_.emit(relax.op.call_tir(kernel, list(args), list(outputs)))
        return [self.builder_.emit(relax.TupleGetItem(result, i)) for i in range(len(outputs))]

    def flat(self, x: Any) -> tuple[Any, list[Any]]:
        """``x`` as [rows, width], and its leading dimensions (one: nothing was reshaped).

        The same ``x`` gives the same variable, so that its readers can share a table.
        """
        *lead, width = list(x.ty.shape)
        if len(lead) == 1:
            return x, lead
        if x not in self._flat:
            rows: Any = 1
            for extent in lead:
                rows = rows * extent
            self._flat[x] = self.builder_.emit(relax.op.reshape(x, [rows, width]))
        return self._flat[x], lead

    def unflat(self, y: Any, lead: list[Any]) -> Any:
        """Undoes :meth:`flat` on a result [rows, n]."""
        if len(lead) == 1:
            return y
        return self.builder_.emit(relax.op.reshape(y, [*lead, y.ty.shape[1]]))


def is_entry(function: Any) -> bool:
    """Whether ``function`` is one of the model's graphs."""
    return isinstance(function, relax.Function) and bool(function.attrs) and "num_input" in function.attrs


def prune(module: tvm.IRModule) -> tvm.IRModule:
    """Removes dead code and weight parameters that no binding reads."""
    module = relax.transform.DeadCodeElimination()(module)
    for var, function in module.functions.items():
        if not is_entry(function):
            continue
        used = set(relax.analysis.free_vars(function.body))
        inputs = int(function.attrs["num_input"])
        params = [p for i, p in enumerate(function.params) if i < inputs or p in used]
        if len(params) != len(function.params):
            module.update_func(
                var, relax.Function(params, function.body, function.ret_ty, function.is_pure, function.attrs)
            )
    return module


def float_type(*shape: Any) -> Any:
    """float32 tensor type of ``shape``."""
    return relax.TensorType(list(shape), "float32")


def table_types(rows: Any, layout: ColumnLayout, tables: Tables) -> list[Any]:
    """Relax types of a table's three outputs."""
    return [relax.TensorType([rows, *shape], dtype) for _, shape, dtype in table_shapes(layout, tables)]


def mark_table(kernel: Any, layout: ColumnLayout, tables: Tables) -> Any:
    """Notes on a table kernel what it builds, so that its producer can take the work over."""
    return kernel.with_attr(TABLE_ATTR, json.dumps({"layout": asdict(layout), "tables": tables}))


def following_tables(module: tvm.IRModule, function: Any) -> dict[Any, tuple[Any, ColumnLayout, Tables]]:
    """Activation variable -> (binding variable, layout, mode) of the first table built from it."""
    found: dict[Any, tuple[Any, ColumnLayout, Tables]] = {}
    for block in function.body.blocks:
        for binding in block.bindings:
            facts = table_facts(module, binding.value)
            if facts is not None:
                x, layout, tables = facts
                found.setdefault(x, (binding.var, layout, tables))
    return found


def table_facts(module: tvm.IRModule, value: Any) -> tuple[Any, ColumnLayout, Tables] | None:
    """(activation, layout, mode) if ``value`` is a call of a stand-alone table kernel."""
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") != "relax.call_tir":
        return None
    kernel = module.functions.get(value.args[0])
    if kernel is None or not kernel.attrs or TABLE_ATTR not in kernel.attrs:
        return None
    facts = json.loads(str(kernel.attrs[TABLE_ATTR]))
    return value.args[1][0], ColumnLayout(**facts["layout"]), facts["tables"]
