# SPDX-License-Identifier: Apache-2.0
"""Which operations of an encoder make up its integer body, and who reads whose result.

The body goes from the embedding to the last hidden states: tables that are added, norms, linears that are
not of the block Head, and attention. Everything after it stays float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import tvm
from tvm import relax

from .bit_plan import BitPlan
from .composite import EMBEDDING, LINEAR, NORM, Composite, composite_of

HEAD = "Head"
ATTENTION = "tvmq.ragged_attention"
Kind = Literal["table", "sum", "norm", "linear", "attention"]


@dataclass(frozen=True, slots=True)
class BodyStep:
    """One binding of the body.

    Attributes:
        var: the variable that it binds.
        kind: what it computes; ``sum`` adds tables.
        value: the bound call.
        composite: the composite that is called, None for sums and attention.
        sources: the variables that it reads as activations: (x) of a linear, (x, residual or None) of a
            norm, (q, k, v) of attention, both sides of a sum, nothing of a table.
    """

    var: Any
    kind: Kind
    value: Any
    composite: Composite | None
    sources: tuple[Any, ...]

    @property
    def path(self) -> str:
        """Module path of a composite."""
        return "" if self.composite is None else str(self.composite.attrs["tvmq.path"])

    @property
    def tensor(self) -> str:
        """Weight of a linear or table, "" of anything else."""
        return "" if self.composite is None else str(self.composite.attrs.get("tvmq.tensor", ""))


def body_steps(module: tvm.IRModule, function: Any, plan: BitPlan) -> dict[Any, BodyStep]:
    """Variable -> its step, in order, of the body of one function."""
    blocks = {entry.tensor: entry.block for entry in plan.entries()}
    steps: dict[Any, BodyStep] = {}
    for binding in bindings(function):
        step = _step(module, binding, blocks, steps)
        if step is not None:
            steps[binding.var] = step
    return steps


def bindings(function: Any) -> Iterator[Any]:
    """All bindings of a function, in order."""
    for block in function.body.blocks:
        yield from block.bindings


def _step(module: Any, binding: Any, blocks: dict[str, str], steps: dict[Any, BodyStep]) -> BodyStep | None:
    value, var = binding.value, binding.var
    composite = composite_of(module, value)
    if composite is not None:
        return _composite_step(composite, var, value, blocks, steps)
    name = getattr(getattr(value, "op", None), "name", "")
    if name == "relax.add" and all(_is(steps, arg, "table", "sum") for arg in value.args):
        return BodyStep(var, "sum", value, None, tuple(value.args))
    if name == "relax.call_dps_packed" and str(value.args[0].global_symbol) == ATTENTION:
        sources = tuple(list(value.args[1])[:3])
        if all(_is(steps, source, "linear") for source in sources):
            return BodyStep(var, "attention", value, None, sources)
    return None


def _composite_step(
    composite: Composite, var: Any, value: Any, blocks: dict[str, str], steps: dict[Any, BodyStep]
) -> BodyStep | None:
    if composite.kind == EMBEDDING:
        return BodyStep(var, "table", value, composite, ())
    x = composite.argument(value, "x")
    if composite.kind == LINEAR:
        planned = blocks.get(str(composite.attrs["tvmq.tensor"]), HEAD) != HEAD
        if planned and _is(steps, x, "norm", "linear", "attention"):
            return BodyStep(var, "linear", value, composite, (x,))
        return None
    assert composite.kind == NORM
    residual = composite.argument(value, "residual")
    sources = (x,) if residual is None else (x, residual)
    if all(_is(steps, source, "table", "sum", "norm", "linear") for source in sources):
        return BodyStep(var, "norm", value, composite, sources)
    return None


def _is(steps: dict[Any, BodyStep], var: Any, *kinds: Kind) -> bool:
    return isinstance(var, relax.Var) and var in steps and steps[var].kind in kinds
