# SPDX-License-Identifier: Apache-2.0
"""LowerAttention: the ``tvmq.*_attention`` calls become kernels, caches written in place.

Before: ``call_dps_packed("tvmq.cached_attention", ...)``. After: ``call_tir_inplace`` of ``attention``
(cross: ``call_tir``), with the table of the result inside where one follows. Attention within sentences
becomes ``call_tir`` of ``ragged_attention``, whose last output is its work space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from schedules.attention import AttentionSpec, Kind, attention
from schedules.ragged_attention import RaggedSpec, ragged_attention, work_columns

from .lower_norm import TableTaking
from .lowering import float_type, table_types

RAGGED = "tvmq.ragged_attention"
_KINDS: dict[str, Kind] = {
    "tvmq.cached_attention": "cached",
    "tvmq.cross_attention": "cross",
}
CACHE_ARGUMENTS = (3, 4)
"""Positions of the key and value cache among the arguments of a cached attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerAttention:
    """Lower every attention operator of ``tvmq``'s own front ends."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _AttentionLowering(module).run()


@mutator
class _AttentionLowering(TableTaking):
    def visit_call_(self, call: Any) -> Any:
        follower = self.following()
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", "") != "relax.call_dps_packed":
            return call
        symbol = str(call.args[0].global_symbol)
        if symbol != RAGGED and symbol not in _KINDS:
            return call
        *tensors, heads = list(call.args[1])
        rows, width = tensors[0].ty.shape[0], int(tensors[0].ty.shape[1])
        layout, tables = (None, "int8") if follower is None else follower[1:]
        facts: dict[str, Any] = {"heads": int(heads.value), "width": width, "table": layout, "tables": tables}
        types = [float_type(rows, width)]
        if layout is not None:
            types += table_types(rows, layout, tables)
        if symbol == RAGGED:
            y, *table = self._ragged(RaggedSpec(**facts), tensors, types)
        else:
            y, *table = self._rows(AttentionSpec(kind=_KINDS[symbol], **facts), tensors, types)
        if follower is not None:
            self.take(follower[0], table)
        return y

    def _ragged(self, spec: RaggedSpec, tensors: list[Any], types: list[Any]) -> list[Any]:
        """Emits the call; returns the outputs without the work space."""
        kernel = self.kernel(spec, "ragged_attention", lambda: ragged_attention(spec))
        work = float_type(spec.work_rows, work_columns(tensors[0].ty.shape[0]))
        return self.call(kernel, tensors, [*types, work])[:-1]

    def _rows(self, spec: AttentionSpec, tensors: list[Any], types: list[Any]) -> list[Any]:
        kernel = self.kernel(spec, f"{spec.kind}_attention", lambda: attention(spec))
        emit = self._cached if spec.kind == "cached" else self.call
        return emit(kernel, tensors, types)

    def _cached(self, kernel: Any, tensors: list[Any], types: list[Any]) -> list[Any]:
        """Emits the in-place call; returns the outputs without the caches."""
        caches = [tensors[i].ty for i in CACHE_ARGUMENTS]
        indices = [-1, *CACHE_ARGUMENTS, *[-1] * (len(types) - 1)]
        call = relax.op.call_tir_inplace(kernel, tensors, indices, [types[0], *caches, *types[1:]])
        result = self.builder_.emit(call)
        wanted = [0, *range(1 + len(caches), len(types) + len(caches))]
        return [self.builder_.emit(relax.TupleGetItem(result, i)) for i in wanted]
