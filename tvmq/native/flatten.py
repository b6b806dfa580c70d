# SPDX-License-Identifier: Apache-2.0
"""From Relax functions with explicit allocations (after TVM's CallTIRRewrite) to a flat program.

What a translation model or an encoder lowers to is calls of kernels on tensors: views, tuples and renamings
are resolved, in-place results are the buffers themselves, and every other buffer gets a place in scratch
memory that is reused as soon as its last reader has run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from relay_passes.lowering import is_entry

from . import program
from .pools import Span, place
from .program import (
    ALIGNMENT,
    ITEM_BYTES,
    Call,
    Computed,
    Free,
    FromInput,
    Named,
    Operation,
    Output,
    Pool,
    Program,
    Shape,
    Size,
    Tensor,
)

_OPERATIONS: dict[str, Operation] = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "FloorDiv": "div", "FloorMod": "mod",
    "Min": "min", "Max": "max",
}  # fmt: skip


class NotFlatError(ValueError):
    """A function that is more than kernel calls."""


def flatten(module: tvm.IRModule) -> Program:
    """All entry functions of ``module`` as one program.

    Raises:
        NotFlatError: a construct that is no kernel call, naming it and the function.
    """
    entries = {str(v.name_hint): f for v, f in module.functions.items() if is_entry(f)}
    tables = _Tables()
    functions = tuple(_Flattener(name, entries[name], tables).function() for name in sorted(entries))
    return Program(kernels=tuple(tables.kernels), weights=tuple(tables.weights), functions=functions)


class _Tables:
    """Kernels and weights, numbered as they are first used by any function."""

    def __init__(self) -> None:
        self.kernels: dict[str, int] = {}
        self.weights: dict[Named, int] = {}

    def kernel(self, name: str) -> int:
        return self.kernels.setdefault(name, len(self.kernels))

    def weight(self, weight: Named) -> int:
        return self.weights.setdefault(weight, len(self.weights))


class _Extents:
    """Sizes of one function; equal expressions share one extent."""

    def __init__(self, where: str) -> None:
        self.all: list[FromInput | Computed] = []
        self._where = where
        self._variables: dict[Any, Free] = {}
        self._computed: dict[Computed, Free] = {}

    def declare(self, number: int, sizes: Sequence[Any]) -> None:
        """Takes the free sizes that input ``number`` is the first to show."""
        for axis, size in enumerate(sizes):
            if isinstance(size, tvm.tirx.Var) and size not in self._variables:
                self._variables[size] = Free(len(self.all))
                self.all.append(FromInput(number, axis))

    def shape(self, sizes: Sequence[Any]) -> Shape:
        return tuple(self._size(size) for size in sizes)

    def _size(self, size: Any) -> Size:
        if isinstance(size, tvm.tirx.IntImm):
            return int(size)
        if isinstance(size, tvm.tirx.Var) and size in self._variables:
            return self._variables[size]
        operation = _OPERATIONS.get(type(size).__name__)
        if operation is None:
            raise NotFlatError(f"{self._where}: the size {size} is no expression of the inputs' sizes")
        computed = Computed(operation, self._size(size.a), self._size(size.b))
        if computed not in self._computed:
            self._computed[computed] = Free(len(self.all))
            self.all.append(computed)
        return self._computed[computed]


class _Storage:
    """Memory behind tensors; ``key`` tells its kind and number, or nothing yet for an allocation."""

    def __init__(self, dtype: str, shape: Shape, key: tuple[program.Place, int] | None) -> None:
        self.dtype, self.shape = dtype, shape
        self.key: tuple[program.Place, int] | None = key
        self.offset = 0
        self.calls: list[int] = []


_View = tuple[_Storage, Shape]


class _Flattener:
    """One function on its way to calls."""

    def __init__(self, name: str, function: Any, tables: _Tables) -> None:
        self._name, self._function, self._tables = name, function, tables
        self._extents = _Extents(name)
        self._inputs: list[Named] = []
        self._values: dict[Any, Any] = {}
        self._storages: list[_Storage] = []
        self._calls: list[tuple[int, list[_View]]] = []

    def function(self) -> program.Function:
        self._read_params()
        for block in self._function.body.blocks:
            for binding in block.bindings:
                self._read(binding)
        outputs = self._read_results()
        pools = self._plan()
        numbers: dict[Tensor, int] = {}
        calls = []
        for kernel, views in self._calls:
            tensors = [self._tensor(view) for view in views]
            taken = tuple(numbers.setdefault(tensor, len(numbers)) for tensor in tensors)
            calls.append(Call(kernel, taken))
        return program.Function(
            name=self._name, extents=tuple(self._extents.all), inputs=tuple(self._inputs),
            outputs=tuple(outputs), pools=tuple(pools), tensors=tuple(numbers), calls=tuple(calls),
        )  # fmt: skip

    def _read_params(self) -> None:
        params = list(self._function.params)
        count = int(self._function.attrs["num_input"])
        for number, param in enumerate(params[:count]):
            sizes = self._sizes(param.ty)
            self._extents.declare(number, sizes)
            shape = self._extents.shape(sizes)
            numbers = isinstance(param.ty, relax.ShapeType)
            dtype = "shape" if numbers else self._dtype(param.ty)
            self._inputs.append(Named(dtype, shape, str(param.name)))
            if not numbers:
                self._values[param] = (_Storage(dtype, shape, ("input", number)), shape)
        for param in params[count:]:
            shape = self._extents.shape(self._sizes(param.ty))
            number = self._tables.weight(Named(self._dtype(param.ty), shape, str(param.name)))
            self._values[param] = (_Storage(self._dtype(param.ty), shape, ("weight", number)), shape)

    def _read(self, binding: Any) -> None:
        value, var = binding.value, binding.var
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            self._read_call(value)
        elif isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.builtin.alloc_tensor":
            shape = self._extents.shape(value.args[0].values)
            storage = _Storage(self._dtype(value.ty), shape, None)
            self._storages.append(storage)
            self._values[var] = (storage, shape)
        elif isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.reshape":
            storage, _ = self._view(value.args[0])
            self._values[var] = (storage, self._extents.shape(self._sizes(value.ty)))
        elif isinstance(value, relax.Tuple):
            self._values[var] = [self._value(field) for field in value.fields]
        elif isinstance(value, relax.TupleGetItem):
            self._values[var] = self._value(value.tuple_value)[value.index]
        elif isinstance(value, relax.Var):
            self._values[var] = self._value(value)
        else:
            raise self._refusal(value)

    def _read_call(self, call: Any) -> None:
        views = [self._view(arg) for arg in call.args]
        for storage, _ in views:
            storage.calls.append(len(self._calls))
        self._calls.append((self._tables.kernel(str(call.op.name_hint)), views))

    def _read_results(self) -> list[Output]:
        result = self._value(self._function.body.body)
        outputs = []
        for number, (storage, shape) in enumerate(result if isinstance(result, list) else [result]):
            if storage.key is not None:
                raise NotFlatError(f"{self._name}: result {number} is an input, a weight or another result")
            storage.key = ("output", number)
            outputs.append(Output(storage.dtype, shape))
        return outputs

    def _plan(self) -> list[Pool]:
        """Gives every allocation that is no result its place; one pool for each product of free sizes."""
        groups: dict[Shape, list[_Storage]] = defaultdict(list)
        for storage in self._storages:
            if storage.key is None and storage.calls:
                free = [size for size in storage.shape if isinstance(size, Free)]
                groups[tuple(sorted(free, key=lambda size: size.index))].append(storage)
        pools = []
        for number, (factors, storages) in enumerate(groups.items()):
            spans = [Span(s.calls[0], s.calls[-1], _units(s)) for s in storages]
            offsets, units = place(spans)
            key: tuple[program.Place, int] = ("pool", number)
            for storage, offset in zip(storages, offsets, strict=True):
                storage.key, storage.offset = key, offset
            pools.append(Pool(units, factors))
        return pools

    def _tensor(self, view: _View) -> Tensor:
        storage, shape = view
        assert storage.key is not None, "every storage that a call touches was planned"
        return Tensor(*storage.key, storage.offset, storage.dtype, shape)

    def _view(self, expr: Any) -> _View:
        value = self._value(expr)
        if isinstance(value, list):
            raise NotFlatError(f"{self._name}: a tuple where a tensor is expected")
        return value

    def _value(self, expr: Any) -> Any:
        if isinstance(expr, relax.Tuple):
            return [self._value(field) for field in expr.fields]
        if expr not in self._values:
            raise self._refusal(expr)
        return self._values[expr]

    def _sizes(self, ty: Any) -> list[Any]:
        values = ty.values if isinstance(ty, relax.ShapeType) else getattr(ty.shape, "values", None)
        if values is None:
            raise NotFlatError(f"{self._name}: a tensor of unknown shape")
        return list(values)

    def _dtype(self, ty: Any) -> str:
        dtype = str(ty.dtype)
        if dtype not in ITEM_BYTES:
            raise NotFlatError(f"{self._name}: a tensor of {dtype}; known: {', '.join(ITEM_BYTES)}")
        return dtype

    def _refusal(self, expr: Any) -> NotFlatError:
        what = getattr(getattr(expr, "op", None), "name", "") or type(expr).__name__
        return NotFlatError(f"{self._name}: {what} is no kernel call")


def _units(storage: _Storage) -> int:
    """Bytes per product of the free sizes, up to the next boundary."""
    fixed = math.prod(size for size in storage.shape if isinstance(size, int))
    return -(-fixed * ITEM_BYTES[storage.dtype] // ALIGNMENT) * ALIGNMENT
