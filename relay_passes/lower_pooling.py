# SPDX-License-Identifier: Apache-2.0
"""LowerPooling: rows of sentences from rows of tokens, and rows of unit length, become kernels.

Before: ``call_dps_packed`` of ``tvmq.mean_tokens``, ``tvmq.first_token`` and ``tvmq.l2_normalize``. After:
``call_tir`` of ``pooling`` and ``normalize``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm.relax.expr_functor import mutator

from schedules.pooling import Pool, normalize, pooling

from .lowering import Lowering

NORMALIZE = "tvmq.l2_normalize"
_POOLS: dict[str, Pool] = {"tvmq.mean_tokens": "mean", "tvmq.first_token": "first"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerPooling:
    """Lower every pooling operator of ``tvmq``'s own front ends."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _PoolingLowering(module).run()


@mutator
class _PoolingLowering(Lowering):
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", "") != "relax.call_dps_packed":
            return call
        symbol, tensors = str(call.args[0].global_symbol), list(call.args[1])
        if symbol != NORMALIZE and symbol not in _POOLS:
            return call
        width = int(tensors[0].ty.shape[1])
        if symbol == NORMALIZE:
            kernel = self.kernel((symbol, width), "normalize", lambda: normalize(width))
        else:
            kernel = self.kernel((symbol, width), "pooling", lambda: pooling(_POOLS[symbol], width))
        return self.call(kernel, tensors, [call.ty])[0]
