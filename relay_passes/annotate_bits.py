# SPDX-License-Identifier: Apache-2.0
"""AnnotateBits: every linear, embedding and norm becomes a composite function that carries its plan.

Before: plain Relax ops over named float parameters. After: calls of private functions with attributes
``Composite``, ``tvmq.tensor`` (the weight's name) and ``tvmq.bits`` (32 for float, 0 for word clusters).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .bit_plan import FLOAT_BITS, BitPlan
from .check_bits import PLANNED_ATTR
from .composite import EMBEDDING, LINEAR, NORM, activation_of, composite_of, inner_call, patterns
from .fusible import FusionRules
from .lowering import is_entry

WORD_BITS = 0
"""``tvmq.bits`` of a tensor whose rows have their own widths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateBits:
    """Attach ``plan`` to the graph. Tensors that the plan does not name stay FP32."""

    plan: BitPlan

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        bits = {block.tensor: block.bits for block in self.plan.blocks}
        bits |= {words.tensor: WORD_BITS for words in self.plan.words}
        rules = FusionRules(_parameters(module))
        fused = relax.transform.FuseOpsByPattern(patterns(rules), bind_constants=True)(module)
        return _annotate(fused, bits)


def _parameters(module: tvm.IRModule) -> set[Any]:
    """Weight parameters of all functions."""
    return {
        param
        for function in module.functions.values()
        if is_entry(function)
        for param in list(function.params)[int(function.attrs["num_input"]) :]
    }


@mutator
class _Annotator(PyExprMutator):
    """Gives every call of a composite its own function, named after the module that it computes."""

    def __init__(self, module: tvm.IRModule, bits: dict[str, int]) -> None:
        super().__init__(module)
        self._module = module
        self._bits = bits
        self.uses: Counter[str] = Counter()

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        composite = composite_of(self._module, call)
        if composite is None:
            return call
        facts = _facts(composite, call, self._bits)
        if facts.get("tvmq.bits", FLOAT_BITS) != FLOAT_BITS:
            self.uses[str(facts["tvmq.tensor"])] += 1
        name = str(facts["tvmq.path"]).replace(".", "__")
        function = relax.utils.copy_with_new_vars(composite.function).with_attrs(facts)
        return relax.Call(self.builder_.add_func(function, name), call.args)


def _annotate(module: tvm.IRModule, bits: dict[str, int]) -> tvm.IRModule:
    annotator = _Annotator(module, bits)
    for var, function in module.functions.items():
        if is_entry(function):
            annotator.uses.clear()
            annotated = annotator.visit_expr(function).with_attr(PLANNED_ATTR, dict(annotator.uses))
            annotator.builder_.update_func(var, annotated)
    return relax.transform.DeadCodeElimination()(annotator.builder_.get())


def _facts(composite: Any, call: Any, bits: dict[str, int]) -> dict[str, Any]:
    if composite.kind == NORM:
        epsilon = float(inner_call(composite, "relax.nn.layer_norm").attrs["epsilon"])
        return {"tvmq.path": _module_of(composite.argument(call, "gamma")), "tvmq.epsilon": epsilon}
    weight = composite.argument(call, "w")
    tensor = str(weight.name)
    facts: dict[str, Any] = {
        "tvmq.path": _module_of(weight),
        "tvmq.tensor": tensor,
        "tvmq.bits": bits.get(tensor, FLOAT_BITS),
    }
    if composite.kind == LINEAR:
        facts["tvmq.activation"] = activation_of(composite)
    if composite.kind == EMBEDDING:
        scale = inner_call(composite, "relax.multiply")
        facts["tvmq.factor"] = 1.0 if scale is None else float(scale.args[1].value.numpy())
    return facts


def _module_of(weight: Any) -> str:
    return str(weight.name).removesuffix(".weight")
