# SPDX-License-Identifier: Apache-2.0
"""CheckBits: everything planned was lowered exactly once, with its outliers, and nothing is read as float.

Changes nothing. Raises ValueError naming the tensors otherwise: a plan that silently has no effect
would ship a model of another size and speed than its manifest says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from schedules.outliers import outlier_count
from schedules.packing import BLOCK_ROWS

from .bit_plan import FLOAT_BITS, BitPlan
from .composite import composite_of
from .lowering import is_entry

SHOWN = 5
"""Problems that an error spells out."""
CODES = (":keys", ":levels", ":row_bits", ":row_levels")
"""Endings of the arrays that stand for a planned tensor's codes."""
PLANNED_ATTR = "tvmq.planned"
"""Attribute of an entry function: planned tensor -> number of operations that read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckBits:
    """Compare the lowered graph with the plan."""

    plan: BitPlan

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        quantized = {
            entry.tensor: entry.outliers
            for entry in self.plan.entries()
            if getattr(entry, "bits", None) != FLOAT_BITS
        }
        problems: list[str] = []
        used: set[str] = set()
        for var, function in module.functions.items():
            if is_entry(function):
                found = _check(module, str(var.name_hint), function, quantized)
                used |= found[0]
                problems += found[1]
        unused = sorted(quantized.keys() - used)
        problems += [f"{tensor} is planned but no graph uses it" for tensor in unused]
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise ValueError("the plan was not carried out: " + "; ".join(problems[:SHOWN]) + more)
        return module


def _check(
    module: tvm.IRModule, name: str, function: Any, quantized: dict[str, float]
) -> tuple[set[str], list[str]]:
    planned = {str(k): int(v) for k, v in dict(function.attrs.get(PLANNED_ATTR, {})).items()}
    expected = {tensor: uses for tensor, uses in planned.items() if tensor in quantized}
    lowered: Counter[str] = Counter()
    problems = []
    for block in function.body.blocks:
        for binding in block.bindings:
            if composite_of(module, binding.value) is not None:
                problems.append(f"{binding.value.op.name_hint} in {name} was not lowered")
            arrays = _arrays_read(binding.value)
            lowered.update(_tensors_of(arrays))
            bare = _bare(arrays, quantized)
            problems += [f"{part} is read without its outliers in {name}" for part in bare]
    for param in list(function.params)[int(function.attrs["num_input"]) :]:
        if str(param.name) in quantized:
            problems.append(f"{param.name} is still a float parameter of {name}")
    for tensor in sorted(expected.keys() | (lowered.keys() & quantized.keys())):
        if lowered[tensor] != expected.get(tensor, 0):
            problems.append(
                f"{tensor} was lowered {lowered[tensor]} times in {name}, planned {expected.get(tensor, 0)}"
            )
    return set(expected), problems


def _arrays_read(value: Any) -> dict[str, Any]:
    """The named arguments of a kernel call."""
    if not isinstance(value, relax.Call) or not getattr(value.op, "name", "").startswith("relax.call_tir"):
        return {}
    return {str(getattr(arg, "name", "")): arg for arg in value.args[1]}


def _tensors_of(arrays: Mapping[str, Any]) -> list[str]:
    """Tensors whose codes are read (the first segment stands for a whole embedding)."""
    keys = [name.rpartition(":")[0] for name in arrays if name.endswith(CODES)]
    first = [key for key in keys if ":" not in key or key.endswith(":0")]
    return [key.removesuffix(":0") for key in first]


def _bare(arrays: Mapping[str, Any], quantized: Mapping[str, float]) -> list[str]:
    """Segments that surely have outliers, whose keys are read without them."""
    found = []
    for name in arrays:
        part, keys, _ = name.rpartition(":keys")
        percent = quantized.get(part.partition(":")[0], 0.0) if keys else 0.0
        if percent and f"{part}:values" not in arrays:
            blocks, _, steps, *_ = (int(extent) for extent in arrays[name].ty.shape)
            fewest = outlier_count(percent, (blocks - 1) * BLOCK_ROWS + 1, steps)
            found += [part] if fewest else []
    return found
