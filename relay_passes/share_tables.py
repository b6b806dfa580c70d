# SPDX-License-Identifier: Apache-2.0
"""ShareTables: linears that read the same activation use one lookup table.

Before: every table product has a ``lut_table`` call of its own (Q, K and V build the same table three
times). After: equal calls are one; all other users read its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm.relax.expr_functor import mutator

from .lowering import Lowering, table_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareTables:
    """Merge table kernels with the same activation, layout and mode. Runs after LowerLinear."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Sharer(module).run()


@mutator
class _Sharer(Lowering):
    def enter(self, function: Any) -> None:
        self._first: dict[Any, Any] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        facts = table_facts(self.module, binding.value)
        if facts is None:
            super().visit_var_binding_(binding)
            return
        activation, layout, tables = facts
        key = (activation, layout.table_key, tables)
        first = self._first.get(key)
        if first is None:
            super().visit_var_binding_(binding)
            self._first[key] = self.visit_expr(binding.var)
        else:
            self.set_var_remap(binding.var, first)
