# SPDX-License-Identifier: Apache-2.0
"""torch.export programs to one Relax module: weights as named parameters, module path in every name.

``import_program`` keeps the checkpoint's tensor names as Relax parameter names and names each binding
after the module that computed it (dots become double underscores). Ties are one parameter, and shapes
that TVM cannot infer are taken from torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, cast

import sympy
import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter
from tvm.sym import Analyzer

from .torch_ops import Converter, attention, layer_norm, select

PATH_SEPARATOR = "__"


class UnsupportedOperator(ValueError):
    """A node of an exported graph that cannot be translated: its operator, its module and why."""


class _NamingBuilder:
    """A block builder whose ``emit`` names bindings after the current module path."""

    def __init__(self, builder: relax.BlockBuilder, path: Callable[[], str]) -> None:
        self._builder = builder
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def emit(self, expr: Any, name_hint: str = "") -> relax.Var:
        return self._builder.emit(expr, name_hint or self._path())


class _Importer(ExportedProgramImporter):
    """TVM's importer, with paths kept and the ``tvmq::*`` operators understood."""

    def __init__(self) -> None:
        super().__init__()
        self._current = ""
        self._raw_builder: Any = None
        self._symbols: dict[str, Any] = {}

    @property
    def block_builder(self) -> Any:
        return self._raw_builder

    @block_builder.setter
    def block_builder(self, builder: Any) -> None:
        self._raw_builder = None if builder is None else _NamingBuilder(builder, lambda: self._current)

    def create_convert_map(self) -> dict[str, Any]:
        return {name: self._tracked(convert) for name, convert in super().create_convert_map().items()}

    def create_input_vars(self, exported_program: Any) -> Any:
        result: Any = super().create_input_vars(exported_program.program)
        exported_program.hide_weights = True
        for var in result[1].values():
            self._symbols |= {e.name: e for e in var.ty.shape if tvm.ir.is_prim_var(e)}
        return result

    def _tracked(self, convert: Callable[..., Any]) -> Callable[..., Any]:
        def run(node: fx.Node, *rest: Any) -> Any:
            path = module_path(node)
            self._current = path.replace(".", PATH_SEPARATOR)
            try:
                return self._with_known_shape(node, convert(node, *rest))
            except Exception as error:
                # converters fail in whatever way their first wrong assumption does
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise UnsupportedOperator(f"{node.target} in {path}: {reason[-1]}") from error

        return run

    def _with_known_shape(self, node: fx.Node, result: Any) -> Any:
        """``result`` with torch's shape where TVM lost it or wrote it in another way (slices, for one)."""
        value = node.meta.get("val")
        kind: Any = getattr(result, "ty", None)
        if not isinstance(value, torch.Tensor) or not isinstance(kind, relax.TensorType):
            return result
        expected: Any = [self._extent(extent) for extent in value.shape]
        found: Any = kind.shape
        if any(extent is None for extent in expected) or _same_extents(found, expected):
            return result
        if not isinstance(result, relax.Var):
            result = self._raw_builder.emit(result)
        if found is None:
            return self._raw_builder.match_cast(result, relax.TensorType(expected, kind.dtype))
        # a match_cast of one expression of an extent to another sends CanonicalizeBindings into a loop
        return self._raw_builder.emit(relax.op.reshape(result, expected))

    def _extent(self, extent: int | torch.SymInt) -> Any:
        """A number, or a symbolic extent in the function's own variables; None if that cannot be said."""
        return extent if isinstance(extent, int) else self._expression(extent.node.expr)

    def _expression(self, expr: Any) -> Any:
        match expr:
            case sympy.Integer():
                return int(expr)
            case sympy.Symbol():
                return self._symbols.get(expr.name)
            case sympy.Add() | sympy.Mul():
                terms = [self._expression(term) for term in expr.args]
                combine = operator.add if isinstance(expr, sympy.Add) else operator.mul
                return None if any(term is None for term in terms) else reduce(combine, terms)
        return None

    def custom(self, converters: Mapping[str, Converter]) -> dict[str, Any]:
        return {name: self._tracked(convert) for name, convert in converters.items()}


class _ProgramView:
    """An exported program that stops offering its weights once parameters are declared.

    TVM's importer binds buffers as constants and copies parameters; here weights stay named inputs.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.hide_weights = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def named_buffers(self) -> Iterable[tuple[str, torch.Tensor]]:
        return () if self.hide_weights else self.program.named_buffers()

    def named_parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        return () if self.hide_weights else self.program.named_parameters()


def unknown_operators(program: ExportedProgram) -> list[str]:
    """Operators that cannot be imported, each with the first module that uses it."""
    known = (_Importer().create_convert_map().keys() | _CONVERTERS.keys()) - _REFUSED
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_function" and name not in known:
            found.setdefault(str(node.target), module_path(node))
    return [f"{operator} (in {path})" for operator, path in found.items()]


def _same_extents(found: Sequence[Any] | None, expected: Sequence[Any]) -> bool:
    if found is None or len(found) != len(expected):
        return False
    analyzer = Analyzer()
    return all(analyzer.can_prove_equal(a, b) for a, b in zip(found, expected, strict=True))


def module_path(node: fx.Node) -> str:
    """Dotted path of the module that computed a node; the op's name for code outside submodules."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path or str(node.name)


def import_program(program: ExportedProgram, name: str) -> tvm.IRModule:
    """One Relax function ``name``: inputs first, then every used parameter and buffer under its own name.

    Parameters that share storage become one. The function's ``num_input`` attribute counts the inputs.
    """
    importer, view = _Importer(), cast(Any, _ProgramView(program))
    module = importer.from_exported_program(
        view,
        keep_params_as_input=True,
        unwrap_unit_return_tuple=True,
        no_bind_return_tuple=False,
        custom_convert_map=importer.custom(_CONVERTERS),
    )
    return tvm.IRModule({name: _rename_parameters(module["main"], program, name)})


def _rename_parameters(function: Any, program: ExportedProgram, name: str) -> relax.Function:
    """Placeholder names to tensor names; ties to their first name; unused parameters dropped.

    Tensors that are not float32 (masks, position ids) become constants.
    """
    targets = {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    canonical = first_names(program)
    used = {str(var.name) for var in relax.analysis.all_vars(function.body)}
    renamed: dict[str, relax.Var] = {}
    replace: dict[relax.Var, Any] = {}
    params = list(function.params[: int(function.attrs["num_input"])])
    for param in function.params[len(params) :]:
        if param.name not in used:
            continue
        target = canonical[targets[param.name]]
        if str(param.ty.dtype) != "float32":
            replace[param] = relax.const(tensor_of(program, target).detach().cpu().numpy())
            continue
        if target not in renamed:
            renamed[target] = relax.Var(target, param.ty)
        replace[param] = renamed[target]
    bound: Any = function.bind_params(replace)
    return (
        relax.Function([*params, *renamed.values()], bound.body, bound.ret_ty, bound.is_pure)
        .with_attr("num_input", len(params))
        .with_attr("global_symbol", name)
    )


def first_names(program: ExportedProgram) -> dict[str, str]:
    """Parameter or buffer -> the first one of those that share its memory."""
    first: dict[Any, str] = {}
    names = [
        str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    ]
    return {name: first.setdefault(_place(tensor_of(program, name)), name) for name in names}


def tensor_of(program: ExportedProgram, name: str) -> torch.Tensor:
    """The value of a parameter or buffer."""
    tensor = program.state_dict[name] if name in program.state_dict else program.constants[name]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _place(tensor: torch.Tensor) -> Any:
    """Equal for tensors that are the same view of the same memory."""
    if not tensor.numel():
        return id(tensor)
    memory = tensor.untyped_storage().data_ptr()
    return (memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _kernel_call(symbol: str, shape_of: int) -> Converter:
    """``tvmq::symbol`` as a destination-passing call whose output looks like argument ``shape_of``.

    The number of heads follows the tensors as a scalar argument.
    """

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        args = importer.retrieve_args(node)
        tensors, heads = list(args[:-1]), int(args[-1])
        like = tensors[shape_of].ty
        out = relax.TensorType(like.shape, like.dtype)
        call = relax.op.call_dps_packed(symbol, [*tensors, relax.prim_value(heads)], out)
        return importer.block_builder.emit(call)

    return convert


def _pooling_call(symbol: str) -> Converter:
    """``tvmq::symbol`` over (x[T, D], offsets[B + 1]) with an output [B, D]."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        x, offsets = importer.retrieve_args(node)
        out = relax.TensorType([offsets.ty.shape[0] - 1, x.ty.shape[1]], x.ty.dtype)
        return importer.block_builder.emit(relax.op.call_dps_packed(symbol, [x, offsets], out))

    return convert


def _normalize(node: fx.Node, importer: Any) -> relax.Var:
    (x,) = importer.retrieve_args(node)
    return importer.block_builder.emit(relax.op.call_dps_packed("tvmq.l2_normalize", [x], x.ty))


_REFUSED = {
    "cond", "item.default", "_local_scalar_dense.default", "masked_select.default", "native_dropout.default",
    "bernoulli.p", "randn.default", "randn_like.default", "exponential.default",
}  # fmt: skip
"""Operators that TVM imports but that give no pure function of the inputs."""
_CONVERTERS: dict[str, Converter] = {
    "ragged_attention.default": _kernel_call("tvmq.ragged_attention", 0),
    "cached_attention.default": _kernel_call("tvmq.cached_attention", 0),
    "cross_attention.default": _kernel_call("tvmq.cross_attention", 0),
    "mean_tokens.default": _pooling_call("tvmq.mean_tokens"),
    "first_token.default": _pooling_call("tvmq.first_token"),
    "l2_normalize.default": _normalize,
    "scaled_dot_product_attention.default": attention,
    "layer_norm.default": layer_norm,
    "select.int": select,
}
