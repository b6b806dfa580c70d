# SPDX-License-Identifier: Apache-2.0
"""Legalize: what no lowering pass took becomes TensorIR by TVM's own rules, mended where those fail.

Before: plain Relax operators. After: ``call_tir``. ``relax.full`` has an own rule: TVM's rejects infinities,
which attention masks are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, te, tirx


@dataclass(frozen=True, slots=True, kw_only=True)
class Legalize:
    """Legalize every operator that is left."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return relax.transform.LegalizeOps({"relax.full": _full})(module)


def _full(builder: Any, call: Any) -> Any:
    shape, value = call.args
    if not isinstance(shape, relax.ShapeExpr) or not isinstance(value, tvm.ir.Constant):
        return call
    dtype, number = str(call.ty.dtype), call.args[1].value.numpy().item()

    def full() -> Any:
        return te.compute(list(shape.values), lambda *_: tirx.const(number, dtype), name="full")

    return builder.call_te(full, primfunc_name_hint="full")
