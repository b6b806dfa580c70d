# SPDX-License-Identifier: Apache-2.0
"""LowerNorm: residual add, layer norm and the table of the result become one kernel.

Before: composites ``tvmq.norm``, stand-alone ``lut_table`` calls on their results. After: ``norm`` calls
with up to four outputs. Runs after LowerLinear, which emits the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from schedules.norm import NormSpec, norm

from .composite import NORM, composite_of
from .lowering import Lowering, float_type, following_tables, table_types


class TableTaking(Lowering):
    """A lowering whose kernels can write the table that follows their result."""

    def enter(self, function: Any) -> None:
        self._following = following_tables(self.module, function)
        self._taken: dict[Any, list[Any]] = {}

    def following(self) -> Any:
        """(binding variable, layout, mode) of the table built from the current binding, or None."""
        return self._following.get(self.current)

    def take(self, follower: Any, outputs: list[Any]) -> None:
        """Replaces the stand-alone table call ``follower`` by the fused kernel's outputs."""
        self._taken[follower] = outputs

    def visit_var_binding_(self, binding: Any) -> None:
        outputs = self._taken.get(binding.var)
        if outputs is None:
            super().visit_var_binding_(binding)
        else:
            self.set_var_remap(binding.var, self.builder_.emit(relax.Tuple(outputs)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerNorm:
    """Lower every ``tvmq.norm``."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _NormLowering(module).run()


@mutator
class _NormLowering(TableTaking):
    def visit_call_(self, call: Any) -> Any:
        follower = self.following()
        call = self.visit_expr_post_order(call)
        composite = composite_of(self.module, call)
        if composite is None or composite.kind != NORM:
            return call
        x, residual = composite.argument(call, "x"), composite.argument(call, "residual")
        flat, lead = self.flat(x)
        if len(lead) != 1:
            follower = None
        rows, width = flat.ty.shape[0], int(flat.ty.shape[1])
        layout, tables = (None, "int8") if follower is None else follower[1:]
        spec = NormSpec(
            width=width,
            epsilon=float(composite.attrs["tvmq.epsilon"]),
            residual=residual is not None,
            table=layout,
            tables=tables,
        )
        args = [flat, *([] if residual is None else [self.flat(residual)[0]])]
        args += [composite.argument(call, "gamma"), composite.argument(call, "beta")]
        types = [float_type(rows, width)]
        if layout is not None:
            types += table_types(rows, layout, tables)
        y, *table = self.call(self.kernel(spec, "norm", lambda: norm(spec)), args, types)
        if follower is not None:
            self.take(follower[0], table)
        return self.unflat(y, lead)
