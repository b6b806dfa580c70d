# SPDX-License-Identifier: Apache-2.0
"""torch.export programs to one Relax module: weights as named parameters, module path in every name.

``import_program`` keeps the checkpoint's tensor names as Relax parameter names and names each binding
after the module that computed it (dots become double underscores). Ties are one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

Converter = Callable[[fx.Node, Any], relax.Var]
PATH_SEPARATOR = "__"


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

    @property
    def block_builder(self) -> Any:
        return self._raw_builder

    @block_builder.setter
    def block_builder(self, builder: Any) -> None:
        self._raw_builder = None if builder is None else _NamingBuilder(builder, lambda: self._current)

    def create_convert_map(self) -> dict[str, Any]:
        return {name: self._tracked(convert) for name, convert in super().create_convert_map().items()}

    def create_input_vars(self, exported_program: Any) -> Any:
        result = super().create_input_vars(exported_program.program)
        exported_program.hide_weights = True
        return result

    def _tracked(self, convert: Callable[..., Any]) -> Callable[..., Any]:
        def run(node: fx.Node, *rest: Any) -> Any:
            self._current = module_path(node).replace(".", PATH_SEPARATOR)
            return convert(node, *rest)

        return run

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


def module_path(node: fx.Node) -> str:
    """Dotted path of the module that computed a node; the op's name for code outside submodules."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path or str(node.name)


def import_program(program: ExportedProgram, name: str) -> tvm.IRModule:
    """One Relax function ``name``: inputs first, then every used parameter and buffer under its own name.

    Parameters that share storage become one. The function's ``num_input`` attribute counts the inputs.
    """
    importer = _Importer()
    module = importer.from_exported_program(
        _ProgramView(program),
        keep_params_as_input=True,
        unwrap_unit_return_tuple=True,
        no_bind_return_tuple=False,
        custom_convert_map=importer.custom(_CONVERTERS),
    )
    return tvm.IRModule({name: _rename_parameters(module["main"], program, name)})


def _rename_parameters(function: relax.Function, program: ExportedProgram, name: str) -> relax.Function:
    """Placeholder names to tensor names; ties to their first name; unused parameters dropped."""
    targets = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    first_of_storage: dict[int, str] = {}
    used = {str(var.name) for var in relax.analysis.all_vars(function.body)}
    renamed: dict[str, relax.Var] = {}
    replace: dict[relax.Var, relax.Var] = {}
    params = list(function.params[: int(function.attrs["num_input"])])
    for param in function.params[len(params) :]:
        if param.name not in used:
            continue
        target = targets[param.name]
        canonical = first_of_storage.setdefault(_storage(program, target), target)
        if canonical not in renamed:
            renamed[canonical] = relax.Var(canonical, param.ty)
        replace[param] = renamed[canonical]
    bound = function.bind_params(replace)
    return (
        relax.Function([*params, *renamed.values()], bound.body, bound.ret_ty, bound.is_pure)
        .with_attr("num_input", len(params))
        .with_attr("global_symbol", name)
    )


def _storage(program: ExportedProgram, target: str) -> int:
    tensor = program.state_dict[target] if target in program.state_dict else program.constants[target]
    assert isinstance(tensor, torch.Tensor)
    return tensor.untyped_storage().data_ptr() if tensor.numel() else id(tensor)


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


_CONVERTERS: dict[str, Converter] = {
    "ragged_attention.default": _kernel_call("tvmq.ragged_attention", 0),
    "cached_attention.default": _kernel_call("tvmq.cached_attention", 0),
    "cross_attention.default": _kernel_call("tvmq.cross_attention", 0),
}
