# SPDX-License-Identifier: Apache-2.0
"""LowerSearch: argmax and top-k of logits become kernels that read the logits in storage order.

Before: ``tvmq.argmax(take(logits, rank))``: logits brought into word order, then searched. After: the
kernel searches the stored order and maps only the few winners to words; the ``take`` is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from schedules.search_step import SearchSpec, argmax, topk
from schedules.storage import order_array, reordered

from .lowering import Lowering

ARGMAX, TOPK = "tvmq.argmax", "tvmq.topk"


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSearch:
    """Lower every ``tvmq.argmax`` and ``tvmq.topk``."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _SearchLowering(module).run()


@mutator
class _SearchLowering(Lowering):
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", "") != "relax.call_dps_packed":
            return call
        symbol = str(call.args[0].global_symbol)
        if symbol not in (ARGMAX, TOPK):
            return call
        logits, banned = list(call.args[1])[:2]
        vocabulary = int(logits.ty.shape[1])
        stored, tensor = self._storage_order(logits)
        args = [stored, banned]
        order_dtype = ""
        if tensor:
            order = order_array(tensor, vocabulary)
            order_dtype = order.dtype
            count = [int(extent) for extent in banned.ty.shape]
            rows = self.parameter(reordered(str(banned.name), tensor), count, "int32")
            args = [stored, rows, self.stored(order)]
        spec = SearchSpec(vocabulary=vocabulary, order_dtype=order_dtype, banned=int(banned.ty.shape[0]))
        make = argmax if symbol == ARGMAX else topk
        kernel = self.kernel((symbol, spec), symbol.removeprefix("tvmq."), lambda: make(spec))
        outputs = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        return self._emit(kernel, args, outputs)

    def _emit(self, kernel: Any, args: list[Any], outputs: list[Any]) -> Any:
        """The kernels overwrite the logits, so these are declared as an in-place output."""
        indices = [*[-1] * len(outputs), 0]
        result = self.builder_.emit(relax.op.call_tir_inplace(kernel, args, indices, [*outputs, args[0].ty]))
        items = [self.builder_.emit(relax.TupleGetItem(result, i)) for i in range(len(outputs))]
        return items[0] if len(items) == 1 else relax.Tuple(items)

    def _storage_order(self, logits: Any) -> tuple[Any, str]:
        """(logits in storage order, tensor whose order it is) behind a take by rank, else as they are."""
        value = self._origin(logits)
        if getattr(getattr(value, "op", None), "name", "") != "relax.take" or value.attrs["axis"] != 1:
            return logits, ""
        index = self._origin(value.args[1])
        if getattr(getattr(index, "op", None), "name", "") != "relax.astype":
            return logits, ""
        name = str(getattr(index.args[0], "name", ""))
        return (value.args[0], name.removesuffix(":rank")) if name.endswith(":rank") else (logits, "")

    def _origin(self, expr: Any) -> Any:
        """What a variable is bound to, through plain renamings."""
        while isinstance(expr, relax.Var):
            value = self.lookup_binding(expr)
            if value is None:
                return expr
            expr = value
        return expr
