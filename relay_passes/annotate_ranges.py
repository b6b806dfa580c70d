# SPDX-License-Identifier: Apache-2.0
"""AnnotateRanges: what the integer body of an encoder reads, and how large it is, written on its composites.

Before: composites of ``annotate_bits``. After: linears carry ``tvmq.reads`` (the norm whose result they
read, or ""), norms ``tvmq.residual`` (the norm whose result is added, or "") and ``tvmq.ranges`` (root mean
squares by channel of what the norm gives, as a calibration measured them; none without one), query
projections ``tvmq.heads`` (of the attention that they feed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .bit_plan import BitPlan
from .integer_body import BodyStep, body_steps
from .lowering import is_entry

LONGEST_ATTR = "tvmq.longest"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateRanges:
    """Annotate the body of every entry function.

    Attributes:
        plan: tells the head's matrices from the body's.
        longest: tokens of the longest text: entry functions carry it as ``tvmq.longest``.
        ranges: matrix -> float[k], root mean square of each input channel; may lack any matrix.
    """

    plan: BitPlan
    longest: int
    ranges: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        annotator = Annotator(module)
        for var, function in module.functions.items():
            if is_entry(function):
                steps = body_steps(module, function, self.plan)
                facts = {step.var: self._facts(step, steps) for step in steps.values()}
                annotator.annotate(var, function.with_attr(LONGEST_ATTR, self.longest), facts)
        return relax.transform.DeadCodeElimination()(annotator.builder_.get())

    def _facts(self, step: BodyStep, steps: dict[Any, BodyStep]) -> dict[str, Any]:
        sources = [steps[source] for source in step.sources]
        norms = [source.path for source in sources if source.kind == "norm"]
        if step.kind == "linear":
            facts: dict[str, Any] = {"tvmq.reads": norms[0] if norms else ""}
            heads = _heads_fed(step, steps)
            return facts | ({"tvmq.heads": heads} if heads else {})
        if step.kind == "norm":
            return {"tvmq.residual": norms[0] if norms else "", "tvmq.ranges": self._ranges(step, steps)}
        return {}

    def _ranges(self, norm: BodyStep, steps: dict[Any, BodyStep]) -> list[float]:
        readers = [
            step.tensor for step in steps.values() if step.kind == "linear" and norm.var in step.sources
        ]
        known = [self.ranges[tensor] for tensor in readers if tensor in self.ranges]
        return [float(value) for value in np.max(known, axis=0)] if known else []


def _heads_fed(linear: BodyStep, steps: dict[Any, BodyStep]) -> int:
    """Heads of the attention whose queries ``linear`` makes; 0 for any other linear."""
    for step in steps.values():
        if step.kind == "attention" and step.sources[0] == linear.var:
            return int(list(step.value.args[1])[-1].value)
    return 0


@mutator
class Annotator(PyExprMutator):
    """Gives composites further attributes."""

    def annotate(self, var: Any, function: Any, facts: Mapping[Any, Mapping[str, Any]]) -> None:
        """Rewrites an entry function: the composite bound to each variable gets its facts."""
        self._facts = facts
        self.builder_.update_func(var, self.visit_expr(function))

    def visit_var_binding_(self, binding: Any) -> None:
        self._current = self._facts.get(binding.var)
        super().visit_var_binding_(binding)

    def visit_call_(self, call: Any) -> Any:
        facts, self._current = self._current, None
        call = self.visit_expr_post_order(call)
        if not facts:
            return call
        function = self.builder_.get()[call.op].with_attrs(dict(facts))
        return relax.Call(
            self.builder_.add_func(relax.utils.copy_with_new_vars(function), call.op.name_hint), call.args
        )
