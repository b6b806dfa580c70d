# SPDX-License-Identifier: Apache-2.0
"""A user's ``torch.nn.Module`` as a Relax graph with a signature; every refusal is one sentence.

First step of ``module_compiler``: nothing of the module is changed, its weights are not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sympy
import torch
import tvm
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from .errors import InputError
from .export import export_program
from .frontend import UnsupportedOperator, first_names, import_program, tensor_of, unknown_operators
from .module_runtime import ENTRY
from .signature import DTYPES, Extent, Returns, Signature, TensorSpec

SUPPORTED = (
    "linear layers and matrix products, embeddings, layer norms, scaled dot product attention, "
    "activations, softmax, element-wise arithmetic, reductions and reshaping"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModule:
    """A module after export.

    Attributes:
        name: its class.
        graphs: one Relax function, ``forward``.
        signature: inputs, outputs and free extents.
        state: float32 weights by their first name.
        examples: the example inputs.
        module: the module itself.
    """

    name: str
    graphs: tvm.IRModule
    signature: Signature
    state: dict[str, NDArray[np.float32]]
    examples: list[NDArray[Any]]
    module: nn.Module

    def with_limits(self, limits: Mapping[str, int]) -> ExportedModule:
        """With the number of words that each id input may name."""
        inputs = tuple(replace(spec, limit=limits.get(spec.name, 0)) for spec in self.signature.inputs)
        return replace(self, signature=replace(self.signature, inputs=inputs))

    def run(self, weights: Mapping[str, torch.Tensor], inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """PyTorch's outputs with some weights (and those tied to them) replaced."""
        tensors = tuple(torch.from_numpy(array) for array in inputs)
        with torch.no_grad():
            result = torch.func.functional_call(self.module, dict(weights), tensors)
        return [leaf.numpy() for leaf in pytree.tree_leaves(result)]


def export_module(
    module: nn.Module, example_inputs: Sequence[torch.Tensor], dynamic_shapes: Any
) -> ExportedModule:
    """Exports and imports ``module``.

    Raises:
        InputError: a module in training mode, in another precision, with state, with control flow that
            depends on values, with operators that are not supported, or example inputs that do not fit.
    """
    examples = _checked_inputs(example_inputs)
    _check_module(module)
    program = _export(module, examples, dynamic_shapes)
    _check_program(program)
    names = _extent_names(program, dynamic_shapes)
    return ExportedModule(
        name=type(module).__name__,
        graphs=_import(program),
        signature=_signature(program, names),
        state=_state(program),
        examples=[example.detach().numpy() for example in examples],
        module=module,
    )


def _checked_inputs(example_inputs: Any) -> tuple[torch.Tensor, ...]:
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,)
    if not isinstance(example_inputs, tuple | list) or not example_inputs:
        raise InputError("example_inputs must be a tuple with a tensor for every argument of forward")
    for index, example in enumerate(example_inputs):
        if not isinstance(example, torch.Tensor):
            kind = type(example).__name__
            raise InputError(f"example input {index} is of type {kind}, expected a torch.Tensor")
        if example.device.type != "cpu" or example.layout != torch.strided:
            raise InputError(f"example input {index} must be a dense tensor on the CPU")
        if _dtype(example.dtype) not in DTYPES:
            raise InputError(f"example input {index} is {example.dtype}, expected one of {', '.join(DTYPES)}")
    return tuple(example_inputs)


def _check_module(module: nn.Module) -> None:
    if any(part.training for part in module.modules()):
        raise InputError("the module is in training mode; call module.eval() first")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device.type != "cpu":
            raise InputError(f"{name} is on {tensor.device}; move the module with module.cpu()")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"{name} is {_dtype(tensor.dtype)}, expected float32; call module.float() first")
        if set(name) & set(":@") or name.startswith("__"):
            raise InputError(f"the tensor name {name!r} cannot be stored (no ':' or '@', no leading '__')")
        # masks may hold infinities, weights may not
        if isinstance(tensor, nn.Parameter) and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds values that are not finite; train or load the module again")


def _export(module: nn.Module, examples: tuple[torch.Tensor, ...], shapes: Any) -> ExportedProgram:
    try:
        return export_program(module, examples, shapes)
    except Exception as error:
        # torch.export has no common base class, and its messages are pages long
        text = " ".join(str(error).split()) or type(error).__name__
        if "data-dependent" in text or "Dynamic control flow" in text or "unbacked" in text.lower():
            raise InputError(
                "forward takes decisions on the values of tensors, which a compiled graph cannot; "
                f"use torch.where instead (torch.export: {_short(text, 100)})"
            ) from error
        raise InputError(f"torch.export cannot trace the module: {_short(text)}") from error


def _import(program: ExportedProgram) -> tvm.IRModule:
    try:
        return import_program(program, ENTRY)
    except UnsupportedOperator as error:
        raise InputError(f"unsupported use of operator {error}; supported are {SUPPORTED}") from error


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit].rsplit(' ', 1)[0]} ..."


def _check_program(program: ExportedProgram) -> None:
    for spec in program.graph_signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            changed = spec.target or "its inputs"
            raise InputError(f"forward changes {changed}; a compiled module keeps no state")
        if not isinstance(spec.arg, TensorArgument):
            raise InputError("forward returns something besides tensors; return tensors only")
    unknown = unknown_operators(program)
    if unknown:
        raise InputError(f"unsupported operators: {', '.join(unknown)}; supported are {SUPPORTED}")
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and free_unbacked_symbols(value):
            raise InputError(
                f"the shape of {node.name} depends on the values of a tensor, which a compiled graph cannot "
                "follow; use masks instead"
            )


def _state(program: ExportedProgram) -> dict[str, NDArray[np.float32]]:
    names = sorted(set(first_names(program).values()))
    tensors = {name: tensor_of(program, name).detach() for name in names}
    return {name: t.numpy() for name, t in tensors.items() if t.dtype == torch.float32}


def _extent_names(program: ExportedProgram, shapes: Any) -> dict[sympy.Symbol, sympy.Symbol]:
    """Torch's symbol of a free extent -> the name that the user gave to its ``Dim``."""
    values = _input_values(program)
    if isinstance(shapes, Mapping):
        shapes = [shapes.get(name) for name in values]
    names: dict[sympy.Symbol, sympy.Symbol] = {}
    for value, axes in zip(values.values(), _leaves(shapes or ()), strict=False):
        pairs = axes.items() if isinstance(axes, Mapping) else enumerate(axes or ())
        for axis, dim in pairs:
            name, extent = getattr(dim, "__name__", None), value.shape[axis]
            if name and isinstance(extent, torch.SymInt) and isinstance(extent.node.expr, sympy.Symbol):
                names.setdefault(extent.node.expr, sympy.Symbol(name))
    return names


def _leaves(shapes: Any) -> Iterator[Any]:
    """What ``dynamic_shapes`` says of each input, containers of inputs opened."""
    if isinstance(shapes, Mapping) and not all(isinstance(key, int) for key in shapes):
        shapes = list(shapes.values())
    if isinstance(shapes, tuple | list) and any(isinstance(item, Mapping | tuple | list) for item in shapes):
        for item in shapes:
            yield from _leaves(item)
    else:
        yield shapes


def _input_values(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Name -> torch's description of each input."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[str, torch.Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            continue
        value = None if isinstance(spec.arg, ConstantArgument) else values[spec.arg.name]
        if not isinstance(value, torch.Tensor):
            raise InputError(f"input {spec.arg.name} is not a tensor; give forward tensors only")
        found[spec.arg.name] = value
    return found


def _signature(program: ExportedProgram, names: Mapping[sympy.Symbol, sympy.Symbol]) -> Signature:
    inputs = tuple(_spec(name, value, names) for name, value in _input_values(program).items())
    free = {extent for spec in inputs for extent in spec.shape if isinstance(extent, str)}
    ranges = {
        str(names.get(symbol, symbol)): _range(values) for symbol, values in program.range_constraints.items()
    }
    if derived := free - ranges.keys():
        extent = sorted(derived)[0]
        raise InputError(f"the extent {extent} of an input is an expression; use a plain torch.export.Dim")
    returns, keys = _returned(program)
    outputs = tuple(_spec(key, value, names) for key, value in zip(keys, _outputs(program), strict=True))
    return Signature(
        inputs=inputs, outputs=outputs, ranges={name: ranges[name] for name in sorted(free)}, returns=returns
    )


def _outputs(program: ExportedProgram) -> list[torch.Tensor]:
    (result,) = (node for node in program.graph.nodes if node.op == "output")
    return [node.meta["val"] for node in result.args[0]]


def _returned(program: ExportedProgram) -> tuple[Returns, list[str]]:
    spec = program.call_spec.out_spec
    assert spec is not None
    if spec.is_leaf():
        return "tensor", ["output"]
    if not all(child.is_leaf() for child in spec.children()):
        raise InputError("forward returns nested containers; return a tensor, a tuple or a dict of tensors")
    kind = spec.type if isinstance(spec.type, type) else object
    if issubclass(kind, dict):
        return "dict", [str(key) for key in spec.context]
    if issubclass(kind, tuple | list):
        return "tuple", [f"output_{i}" for i in range(spec.num_children)]
    raise InputError(f"forward returns a {kind.__name__}; return a tensor, a tuple or a dict of tensors")


def _spec(name: str, value: torch.Tensor, names: Mapping[sympy.Symbol, sympy.Symbol]) -> TensorSpec:
    shape: list[Extent] = [
        extent if isinstance(extent, int) else str(extent.node.expr.xreplace(dict(names)))
        for extent in value.shape
    ]
    return TensorSpec(name=name, dtype=_dtype(value.dtype), shape=tuple(shape))


def _range(values: Any) -> tuple[int, int | None]:
    high = values.upper
    return max(1, int(values.lower)), int(high) if isinstance(high, int | sympy.Integer) else None


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
