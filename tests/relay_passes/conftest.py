# SPDX-License-Identifier: Apache-2.0
"""Small Relax graphs, bit plans, and the comparison that every Before/Expected test makes.

``encoder`` is a whole encoder layer, ``exponents`` brings graphs to where the integer passes start.

TVMScript cannot spell parameter names such as ``fc.weight`` or ``fc.weight:keys``; ``graph`` can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import unified_diff
from typing import Any

import pytest
import tvm
from tvm import relax
from tvm_ffi import structural_equal, structural_hash

from relay_passes.annotate_bits import AnnotateBits
from relay_passes.annotate_ranges import AnnotateRanges
from relay_passes.bit_plan import BitPlan, BlockBits, WordBits
from relay_passes.choose_exponents import ChooseExponents
from relay_passes.composite import composite_of

Body = Callable[..., Any]
_TYPE = re.compile(r"(\w+)\[(.*)\]")


class Ops:
    """Emits operators: ``g.add(x, y)``, ``g.layer_norm(x, v, v, axes=[-1])``, ``g.linear(x, w, b)``."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self.builder = builder

    def __getattr__(self, name: str) -> Callable[..., Any]:
        make = getattr(relax.op, name, None) or getattr(relax.op.nn, name)
        return lambda *args, **attrs: self.builder.emit(make(*args, **attrs))

    def linear(self, x: Any, w: Any, b: Any = None) -> Any:
        y = self.matmul(x, self.permute_dims(w))
        return y if b is None else self.add(y, b)

    def external(self, symbol: str, args: list[Any], like: Any) -> Any:
        """An operator of ``tvmq``'s own, with an output like ``like``."""
        return self.builder.emit(relax.op.call_dps_packed(symbol, args, like.ty))

    def kernel(
        self, function: Any, name: str, args: list[Any], *outputs: str, in_place: list[int] | None = None
    ) -> list[Any]:
        """The results of a call of a kernel, added to the module as ``name``; outputs: ``float32[m, 8]``."""
        result = self.kernel_call(function, name, args, *outputs, in_place=in_place)
        return [result] if len(outputs) == 1 else self.fields(result)

    def kernel_call(
        self,
        function: Any,
        name: str,
        args: list[Any],
        *outputs: str,
        in_place: list[int] | None = None,
        extents: Any = None,
    ) -> Any:
        """The same as one variable, a tuple where there are several outputs.

        Free extents are those of ``args``, and of the variable ``extents``.
        """
        shapes = [e for arg in [*args, *([] if extents is None else [extents])] for e in arg.ty.shape]
        known = {extent.name: extent for extent in shapes if tvm.ir.is_prim_var(extent)}
        types = [_tensor_type(text, known) for text in outputs]
        out = types if len(types) > 1 else types[0]
        var = self.builder.add_func(function, name)
        if in_place is None:
            return self.builder.emit(relax.op.call_tir(var, args, out))
        return self.builder.emit(relax.op.call_tir_inplace(var, args, in_place, out))

    def fields(self, value: Any) -> list[Any]:
        """The parts of a tuple, each bound to a variable."""
        return [self.builder.emit(relax.TupleGetItem(value, i)) for i in range(len(value.ty.fields))]


@pytest.fixture
def graph() -> Callable[..., tvm.IRModule]:
    """``graph({"x": "float32[m, 8]"}, {"fc.weight": "float32[4, 8]"}, body, name="main", **attributes)``.

    One entry function over inputs and weights; ``body(ops, *variables)`` gives its result.
    """

    def build(
        inputs: Mapping[str, str], weights: Mapping[str, str], body: Body, name: str = "main", **attrs: Any
    ) -> tvm.IRModule:
        builder = relax.BlockBuilder()
        extents: dict[str, Any] = {}
        params = [
            relax.Var(key, _tensor_type(text, extents)) for key, text in [*inputs.items(), *weights.items()]
        ]
        facts = {"num_input": len(inputs)} | {f"tvmq.{key}": value for key, value in attrs.items()}
        with builder.function(name, params, facts):
            with builder.dataflow():
                result = builder.emit_output(body(Ops(builder), *params))
            builder.emit_func_output(result)
        return builder.get()

    return build


def _tensor_type(text: str, extents: dict[str, Any]) -> Any:
    match = _TYPE.fullmatch(text)
    assert match, text
    dims = [part.strip() for part in match[2].split(",") if part.strip()]
    shape = [
        int(dim) if dim.isdigit() else extents.setdefault(dim, tvm.tirx.Var(dim, "int64")) for dim in dims
    ]
    return relax.TensorType(shape, match[1])


@pytest.fixture
def plan() -> Callable[..., BitPlan]:
    """``plan({"fc.weight": 3, "emb.weight": ((6, 3), (4, 2))}, group_size=4)``: bits, or word clusters."""

    def make(bits: Mapping[str, Any], **options: Any) -> BitPlan:
        blocks = [
            BlockBits(tensor=tensor, block="B", bits=value, **options)
            for tensor, value in bits.items()
            if isinstance(value, int)
        ]
        words = [
            WordBits(tensor=tensor, block="W", clusters=value, **options)
            for tensor, value in bits.items()
            if not isinstance(value, int)
        ]
        return BitPlan(schema=1, blocks=tuple(blocks), words=tuple(words), source="test")

    return make


@pytest.fixture
def apply() -> Callable[..., tvm.IRModule]:
    """``apply(module, *passes)``: every result must be well formed, no pass may change its input."""

    def run(module: tvm.IRModule, *passes: Callable[[tvm.IRModule], tvm.IRModule]) -> tvm.IRModule:
        for step in passes:
            before = structural_hash(module)
            result = step(module)
            assert structural_hash(module) == before, f"{type(step).__name__} changed its input"
            relax.analysis.well_formed(result)
            module = result
        return module

    return run


@pytest.fixture
def annotated(apply: Any) -> Callable[..., tvm.IRModule]:
    """``annotated(module, plan)``: what the lowering passes take."""
    return lambda module, bits: apply(module, AnnotateBits(plan=bits))


@pytest.fixture
def exponents(annotated: Any, apply: Any) -> Callable[..., tvm.IRModule]:
    """``exponents(module, plan, {"fc.weight": ranges})``: what LowerBlockInt takes; texts of 24 tokens."""

    def make(module: tvm.IRModule, bits: BitPlan, ranges: Mapping[str, Any] | None = None) -> tvm.IRModule:
        step = AnnotateRanges(plan=bits, longest=24, ranges=ranges or {})
        return apply(annotated(module, bits), step, ChooseExponents(plan=bits))

    return make


_BASE = {"activation", "bits", "epsilon", "factor", "path", "tensor"}


@pytest.fixture
def facts() -> Callable[..., dict[str, dict[str, Any]]]:
    """Path -> attributes beyond those of AnnotateBits, without ``tvmq.``, of every composite that has any."""

    def read(module: tvm.IRModule, function: str = "main") -> dict[str, dict[str, Any]]:
        found = {}
        for block in module[function].body.blocks:
            for composite in [composite_of(module, binding.value) for binding in block.bindings]:
                attrs = {} if composite is None else composite.attrs
                own = {k.removeprefix("tvmq."): v for k, v in attrs.items() if k.startswith("tvmq.")}
                found[str(own.get("path"))] = {key: v for key, v in own.items() if key not in _BASE}
        return {path: added for path, added in found.items() if added}

    return read


TOKENS = {"ids": "int32[t]", "places": "int32[t]", "offsets": "int32[s]"}


@pytest.fixture
def encoder(graph: Any) -> Callable[..., tvm.IRModule]:
    """``encoder(end, {"head.weight": "float32[2, 64]"})``: one BERT layer of width 64, ffn 128 and 2 heads.

    Matrices ``words places q k v out up down``, norms ``n0 n1 n2``; ``end(ops, x, offsets, *weights)`` goes
    on with the hidden states. ``activation`` follows ``up``.
    """

    def make(
        end: Body = lambda g, x, offsets: x,
        more: Mapping[str, str] | None = None,
        activation: str = "gelu",
        name: str = "main",
    ) -> tvm.IRModule:
        def body(g: Any, ids: Any, places: Any, offsets: Any, *weights: Any) -> Any:
            w = dict(zip(encoder_weights(), weights, strict=False))

            def linear(x: Any, layer: str) -> Any:
                return g.linear(x, w[f"{layer}.weight"], w[f"{layer}.bias"])

            def norm(x: Any, layer: str) -> Any:
                return g.layer_norm(x, w[f"{layer}.weight"], w[f"{layer}.bias"], axes=[-1], epsilon=0.5)

            rows = g.add(g.take(w["words.weight"], ids, axis=0), g.take(w["places.weight"], places, axis=0))
            x = norm(rows, "n0")
            q, k, v = (linear(x, layer) for layer in "qkv")
            a = g.external("tvmq.ragged_attention", [q, k, v, offsets, relax.prim_value(2)], q)
            x = norm(g.add(linear(a, "out"), x), "n1")
            hidden = linear(x, "up")
            hidden = getattr(g, activation)(hidden) if activation else hidden
            x = norm(g.add(linear(hidden, "down"), x), "n2")
            return end(g, x, offsets, *weights[len(w) :])

        return graph(TOKENS, {**encoder_weights(), **(more or {})}, body, name=name)

    return make


def encoder_weights() -> dict[str, str]:
    """Name -> type of the weights of ``encoder``."""
    matrices = {"words": (70, 64), "places": (24, 64), **dict.fromkeys(("q", "k", "v", "out"), (64, 64))}
    matrices |= {"up": (128, 64), "down": (64, 128)}
    found = {f"{name}.weight": f"float32[{n}, {k}]" for name, (n, k) in matrices.items()}
    biases = {name: n for name, (n, _) in matrices.items() if name not in ("words", "places")}
    found |= {f"{name}.bias": f"float32[{n}]" for name, n in biases.items()}
    norms = [f"{norm}.{part}" for norm in ("n0", "n1", "n2") for part in ("weight", "bias")]
    return found | dict.fromkeys(norms, "float32[64]")


@pytest.fixture
def everywhere(plan: Any) -> Callable[..., BitPlan]:
    """``everywhere(3, head=("head.weight",), up=8)``: every matrix of ``encoder`` at 3 bits, ``up`` at 8."""

    def make(bits: int, head: tuple[str, ...] = (), **changes: Any) -> BitPlan:
        own = {key: changes.pop(key) for key in list(changes) if f"{key}.weight" in encoder_weights()}
        matrices = [name.removesuffix(".weight") for name, t in encoder_weights().items() if "," in t]
        made = plan({f"{name}.weight": own.get(name, bits) for name in matrices}, **changes)
        heads = [replace(entry, block="Head") for entry in plan(dict.fromkeys(head, bits)).blocks]
        return replace(made, blocks=(*made.blocks, *heads))

    return make


@pytest.fixture
def same() -> Callable[[tvm.IRModule, tvm.IRModule], None]:
    """Equal functions, kernels, attributes and parameter names; renamings and unread results aside."""

    def check(found: tvm.IRModule, expected: tvm.IRModule) -> None:
        left, right = _tidy(found), _tidy(expected)
        assert _signatures(left) == _signatures(right)
        equal = structural_equal(left, right)  # in an assert, pytest would print every kernel
        assert equal, _difference(left, right)

    return check


def _tidy(module: tvm.IRModule) -> tvm.IRModule:
    module = relax.transform.CanonicalizeBindings()(module)
    return relax.transform.DeadCodeElimination()(module)


def _difference(left: tvm.IRModule, right: tvm.IRModule) -> str:
    """A few lines for people; kernels are too long to show whole."""
    lines = []
    for var in left.functions:
        texts = [module[var.name_hint].script().splitlines() for module in (left, right)]
        lines += [f"in {var.name_hint}: {line}" for line in unified_diff(*texts, lineterm="", n=0)]
    return "\n".join(["- found, + expected", *lines[:12]])


def _signatures(module: tvm.IRModule) -> dict[str, list[str]]:
    """Function -> names of its parameters (kernels: none; their structure says it all)."""
    return {
        str(var.name_hint): [str(p.name) for p in function.params]
        if isinstance(function, relax.Function)
        else []
        for var, function in module.functions.items()
    }


@pytest.fixture
def operators() -> Callable[..., list[str]]:
    """What ``main`` calls, in order: operators, kinds of composites, names of kernels."""

    def names(module: tvm.IRModule, function: str = "main") -> list[str]:
        blocks = module[function].body.blocks
        values = [binding.value for block in blocks for binding in block.bindings]
        return [_called(module, value) for value in values if isinstance(value, relax.Call)]

    return names


def _called(module: tvm.IRModule, call: Any) -> str:
    composite = composite_of(module, call)
    if composite is not None:
        return composite.kind
    name = str(getattr(call.op, "name", getattr(call.op, "name_hint", "")))
    return str(call.args[0].name_hint) if name.startswith("relax.call_tir") else name
