# SPDX-License-Identifier: Apache-2.0
"""CheckInteger: no float arithmetic between the embedding and the head.

Changes nothing. Walks every entry function backwards from each ``block_dequantize``: all that it is
computed from must be integer tensors, and no kernel among it may hold a float expression. Raises ValueError
with the first one otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.target import codegen

from .integer_body import bindings
from .lowering import is_entry

BOUNDARY = "block_dequantize"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInteger:
    """Check every entry function; runs right after LowerBlockInt."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        for var, function in module.functions.items():
            if is_entry(function):
                _check(module, str(var.name_hint), function)
        return module


def float_expressions(function: Any) -> list[str]:
    """Float dtypes of the expressions in a PrimFunc's body, in the order of first use.

    Integers that only pass through LLVM's fence, which takes floats alone (``tir.pinned``), are none.
    """
    found: dict[str, None] = {}
    passing: set[int] = set()

    def note(node: Any) -> None:
        dtype = str(getattr(node, "ty", ""))
        if not dtype.startswith(("float", "bfloat")):
            return
        if _is_call(node, "tirx.call_llvm_pure_intrin") and int(node.args[0]) == fence:
            bits = node.args[1]
            if _is_call(bits, "tirx.reinterpret") and "float" not in str(bits.args[0].ty):
                passing.update((node.__chandle__(), bits.__chandle__()))
        if node.__chandle__() not in passing:
            found[dtype] = None

    fence = codegen.llvm_lookup_intrinsic_id("llvm.arithmetic.fence")

    tvm_ffi.structural_walk(function.body, (object, note), order="pre")
    return list(found)


def _is_call(node: Any, name: str) -> bool:
    return getattr(getattr(node, "op", None), "name", "") == name


def _check(module: tvm.IRModule, name: str, function: Any) -> None:
    values = {binding.var: binding.value for binding in bindings(function)}
    waiting = [var for var, value in values.items() if _kernel(value).startswith(BOUNDARY)]
    if not waiting:
        raise ValueError(f"{name} has no integer body")
    seen = set(waiting)
    while waiting:
        var = waiting.pop()
        value = values.get(var)
        if value is None:
            continue
        for source in _sources(value):
            kind = getattr(source.ty, "dtype", "")
            if "float" in str(kind):
                raise ValueError(f"{source.name} in {name} is {kind}, expected integers before the head")
            if source not in seen:
                seen.add(source)
                waiting.append(source)
        kernel = _kernel(value)
        if kernel and not kernel.startswith(BOUNDARY):
            floats = float_expressions(module[kernel])
            if floats:
                raise ValueError(f"the kernel {kernel} in {name} computes in {floats[0]}, expected integers")


def _sources(value: Any) -> list[Any]:
    return [var for var in relax.analysis.free_vars(value) if isinstance(var, relax.Var)]


def _kernel(value: Any) -> str:
    """Name of the kernel that a call runs, or ""."""
    if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
        return str(value.args[0].name_hint)
    return ""
