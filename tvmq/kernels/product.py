# SPDX-License-Identifier: Apache-2.0
"""Kernels as a shared library of their own, compiled as those of an artifact are, and how long they take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schedules.problem import Outputs, Problem
from targets import detect_host, get_target
from targets.spec import TargetSpec
from tvmq.errors import InputError, MissingToolError
from tvmq.native.library import require_linker, run_compiler
from tvmq.vm import ALIGNMENT, aligned, ffi

TENSOR = 7
"""Type index of a pointer to a DLTensor in TVM's FFI."""
CPU_DEVICE = 1
_KINDS = {"i": 0, "u": 1, "f": 2}


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Any(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("zero", ctypes.c_uint32), ("value", ctypes.c_void_p))


def compile_kernels(kernels: Mapping[str, Any], target: TargetSpec, path: Path) -> None:
    """Compiles PrimFuncs and links them to ``path``; MissingToolError where no compiler links them."""
    from tvmq.build import LinkError, linking

    try:
        _compiled(kernels, target).export_library(str(path), fcompile=linking(target))
    except LinkError as error:
        first = next(iter(str(error).strip().splitlines()), "no message")
        raise MissingToolError(f"the linker cannot link {target.name} code: {first}") from error


def compile_object(kernels: Mapping[str, Any], target: TargetSpec, path: Path) -> None:
    """Compiles PrimFuncs to one object file."""

    def keep(_: str, objects: Sequence[str], options: Any = None, **__: Any) -> None:
        (only,) = objects
        path.write_bytes(Path(only).read_bytes())

    keep.output_format = "so"  # type: ignore[attr-defined]
    _compiled(kernels, target).export_library(str(path.with_suffix(".unused")), fcompile=keep)


def _compiled(kernels: Mapping[str, Any], target: TargetSpec) -> Any:
    import tvm

    functions = {name: function.with_attr("global_symbol", name) for name, function in kernels.items()}
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
        return tvm.compile(tvm.IRModule(functions), target=target.to_tvm())


def compile_timer(folder: Path) -> Path:
    """Compiles the timing loop into ``folder``; MissingToolError where no compiler makes it."""
    source, path = Path(__file__).with_name("timer.c"), folder / "timer.so"
    compiler = require_linker(get_target(detect_host()[0]))
    command = [*compiler.command, "-O2", "-shared", "-fPIC", str(source), "-o", str(path)]
    run_compiler(compiler, command, "the timing loop")
    return path


@dataclass(slots=True)
class Product:
    """Loaded kernels on the arrays of one problem, with any number of copies of its weights.

    Attributes:
        problem: kernels and data.
        library: where the kernels are.
        timer: path of ``compile_timer``.
        stages: kernels that run; all by default.
        copies: copies of the weights, called in turn.
        spacing: bytes from one copy to the next, if not their size.
        beside: a product on the same problem whose memory this one uses too: where arrays happen to lie moves
            times more than schedules do.
    """

    problem: Problem
    library: Path
    timer: Path
    stages: tuple[str, ...] = ()
    copies: int = 1
    spacing: int = 0
    beside: Product | None = None
    _first: dict[str, NDArray] = field(init=False)
    _weights: list[dict[str, NDArray]] = field(init=False)
    _keep: list[Any] = field(init=False)
    _call: Callable[[int, int, int], float] = field(init=False)
    _next: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = self.stages or self.problem.stages
        module = ffi().load_module(str(self.library))  # fills in what kernels call of the runtime
        library, timer = ctypes.CDLL(str(self.library)), ctypes.CDLL(str(self.timer))
        # Who shares memory shares the place too: the copies that another has just read are not cold.
        self._next = [0] if self.beside is None else self.beside._next
        if self.beside is None:
            self._first = {name: _usable(array) for name, array in self.problem.arrays.items()}
            own = {name: self.problem.arrays[name] for name in self.problem.weights}
            self._weights = _pool(own, self.copies, self.spacing)
        else:
            self._first, self._weights = self.beside._first, self.beside._weights[: self.copies]
        shared = {name: _tensor(array) for name, array in self._first.items()}
        calls = [
            self._arguments(shared | {name: _tensor(array) for name, array in copy.items()}, stage)
            for copy in self._weights
            for stage in self.stages
        ]
        addresses = [
            ctypes.cast(getattr(library, f"__tvm_ffi_{stage}"), ctypes.c_void_p).value
            for stage in self.stages
        ]
        self._keep = [module, library, calls]
        self._bind(timer, addresses, calls)

    def _arguments(self, tensors: Mapping[str, tuple[_DLTensor, Any]], stage: str) -> Any:
        """The packed arguments of one kernel, which keep what they point to."""
        own = [tensors[name] for name in self.problem.calls[stage]]
        packed = (_Any * len(own))(*(_Any(TENSOR, 0, ctypes.addressof(tensor)) for tensor, _ in own))
        packed._keep = own  # type: ignore[attr-defined]
        return packed

    def _bind(self, timer: Any, addresses: Sequence[int | None], calls: Sequence[Any]) -> None:
        count = len(addresses)
        kernels = (ctypes.c_void_p * count)(*addresses)
        pointers = (ctypes.c_void_p * len(calls))(*(ctypes.addressof(call) for call in calls))
        counts = (ctypes.c_int32 * count)(*(len(call) for call in calls[:count]))
        loop = timer.tvmq_time
        loop.restype = ctypes.c_double
        self._call = lambda first, warm, number: loop(
            kernels, pointers, counts, count, self.copies, first, warm, number
        )

    @property
    def arrays(self) -> dict[str, NDArray]:
        """All arrays as the calls so far left them."""
        return self._first

    @property
    def copies_of_weights(self) -> list[dict[str, NDArray]]:
        """The weights of each copy."""
        return self._weights

    def run(self) -> Outputs:
        """Runs the stages once on cleared outputs, which it gives back."""
        for name in self.problem.outputs:
            self._first[name][...] = 0
        self.seconds(1)
        return {name: self._first[name] for name in self.problem.outputs}

    def seconds(self, number: int, warm: int = 0) -> float:
        """Seconds of one product, the mean of ``number`` of them after ``warm`` untimed ones."""
        total = self._call(self._next[0] % self.copies, warm, number)
        if total < 0:
            raise InputError("a kernel refused its arguments")
        self._next[0] += warm + number
        return total / number


def _pool(arrays: Mapping[str, NDArray], copies: int, spacing: int) -> list[dict[str, NDArray]]:
    """Copies of arrays one after the other in memory, as the weights of layers are in a file."""
    sizes = {name: -(-array.nbytes // ALIGNMENT) * ALIGNMENT for name, array in arrays.items()}
    stride = max(sum(sizes.values()), -(-spacing // ALIGNMENT) * ALIGNMENT)
    pool = aligned((copies * stride,), np.uint8)
    found = []
    for copy in range(copies):
        own, start = {}, copy * stride
        for name, array in arrays.items():
            view = pool[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            view[...] = array
            own[name] = view
            start += sizes[name]
        found.append(own)
    return found


def _usable(array: NDArray) -> NDArray:
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def _tensor(array: NDArray) -> tuple[_DLTensor, Any]:
    """A description of an array, and what it points to."""
    extents = (ctypes.c_int64 * array.ndim)(*array.shape)
    kind = array.dtype
    tensor = _DLTensor(
        data=array.ctypes.data,
        device_type=CPU_DEVICE,
        device_id=0,
        ndim=array.ndim,
        code=_KINDS[kind.kind],
        bits=8 * kind.itemsize,
        lanes=1,
        shape=extents,
        strides=None,
        byte_offset=0,
    )
    return tensor, extents
