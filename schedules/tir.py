# SPDX-License-Identifier: Apache-2.0
"""A thin layer over TVM's IR builder: one opaque block a kernel, vector loads and stores, typed lanes.

Kernels are Python functions that emit TensorIR; Python loops unroll, ``T.serial`` loops stay loops.
Every kernel is opaque to Relax' fusion (``op_pattern`` 8), so that its attributes and body survive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
import tvm.tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir

T: Any = ir
"""TVM's builder; untyped, since its operator overloads are made at import time."""
tirx: Any = tvm.tirx
LANES = 16
"""Float lanes of the vectors that kernels are written in; LLVM splits them on narrower machines."""
OPAQUE = 8

Expr = Any
Buffer = Any


class KernelBuilder:
    """Collects one PrimFunc: parameters first, then a body inside :meth:`body`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._builder: Any = IRBuilder()
        self._result: Any = None

    @contextmanager
    def define(self) -> Iterator[KernelBuilder]:
        with self._builder, T.prim_func(s_tir=True):
            T.func_name(self.name)
            T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
            yield self
        self._result = self._builder.get().without_attr("global_symbol")

    def param(self, name: str, shape: Sequence[Expr], dtype: str = "float32") -> Buffer:
        """A 64-byte aligned buffer parameter."""
        handle = T.arg(f"{name}_handle", T.handle())
        return IRBuilder.name(name, T.match_buffer(handle, list(shape), dtype, align=64, layout=None))

    @property
    def result(self) -> Any:
        """The finished ``tirx.PrimFunc``, without a global symbol."""
        return self._result


@contextmanager
def body(writes: Sequence[Buffer], reads: Sequence[Buffer]) -> Iterator[None]:
    """The single opaque block that Relax needs around a kernel's statements."""
    with T.sblock("kernel"):
        T.reads(*[whole(b) for b in reads])
        T.writes(*[whole(b) for b in writes])
        yield


def whole(buffer: Buffer) -> Any:
    """The region that covers all of a buffer."""
    return buffer[tuple(slice(0, extent) for extent in buffer.shape)]


def scratch(shape: Sequence[int], dtype: str = "float32") -> Buffer:
    """A small buffer in default scope: below 1 KB it lives in registers or on the stack."""
    return T.alloc_buffer(list(shape), dtype, align=64, layout=None)


def load(buffer: Buffer, indices: Sequence[Expr], lanes: int) -> Expr:
    """``lanes`` consecutive elements starting at ``indices``."""
    return buffer.vload(list(indices), vec(buffer.dtype, lanes))


def store(buffer: Buffer, indices: Sequence[Expr], value: Expr, lanes: int) -> None:
    """Writes ``lanes`` consecutive elements starting at ``indices``."""
    *outer, last = indices
    T.buffer_store(buffer, value, [*outer, T.ramp(last, 1, lanes) if lanes > 1 else last])


def put(buffer: Buffer, indices: Sequence[Expr], value: Expr) -> None:
    """Writes one element."""
    T.buffer_store(buffer, value, list(indices))


def settle(value: Expr) -> Expr:
    """``T.Bind`` of a scalar that later expressions see as a leaf.

    TVM's passes replace a bound variable by what it stands for wherever they analyse it: a chain of variables
    that each use the one before several times takes seconds to compile. Memory stops that, and LLVM keeps
    the value in a register all the same.
    """
    buffer = scratch((1,), str(value.ty.dtype))
    put(buffer, (0,), value)
    return T.Bind(buffer[0])


def prefetch(buffer: Buffer, indices: Sequence[Expr]) -> None:
    """Asks for the cache line of an element that is read soon; beyond the end of memory it does nothing."""
    read, near, data = T.int32(0), T.int32(3), T.int32(1)
    address = T.address_of(buffer[tuple(indices)])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, read, near, data))


def vec(dtype: str, lanes: int) -> str:
    """The dtype of a vector."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def splat(value: Expr, lanes: int = LANES) -> Expr:
    """A vector of equal lanes."""
    return T.broadcast(value, lanes) if lanes > 1 else value


def fsplat(value: float, lanes: int = LANES) -> Expr:
    """A float32 constant in every lane."""
    return splat(T.float32(value), lanes)


def isplat(value: int, lanes: int = LANES) -> Expr:
    """An int32 constant in every lane."""
    return splat(T.int32(value), lanes)


def times(a: Expr, b: Expr, lanes: int = LANES) -> Expr:
    """The float32 product ``a * b``, rounded before anything is added to it.

    LLVM, as TVM sets it up, fuses a product with the sum that follows wherever the CPU has FMA, which
    would give every ISA level numbers of its own. The fence emits no instruction.
    """
    return intrinsic(vec("float32", lanes), "llvm.arithmetic.fence", a * b)


def pinned(value: Expr, dtype: str) -> Expr:
    """The same register of ``dtype``, as something that LLVM sees no meaning in: a sum, a mask or a sort of
    bytes stays as it was written. Emits no instruction."""
    whole = tvm.DataType(dtype)
    floats = f"float32x{whole.bits * whole.lanes // 32}"
    fenced = intrinsic(floats, "llvm.arithmetic.fence", as_type(value, floats))
    return T.Bind(as_type(fenced, dtype))


def as_type(value: Expr, dtype: str) -> Expr:
    """The same bits read as ``dtype``."""
    return T.reinterpret(dtype, value)


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """A vector made of the given lanes of the concatenated vectors."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", lane) for lane in lanes])


def half_to_float(value: Expr, lanes: int) -> Expr:
    """Finite float16 lanes as float32 in integer arithmetic, for CPUs without F16C.

    LLVM would call a function per lane there. Exponents are rebiased by a product, which is exact for
    subnormal halves too.
    """
    wide, single = vec("int32", lanes), vec("float32", lanes)
    bits = T.Bind(T.Cast(wide, as_type(value, vec("uint16", lanes))))
    sign = T.shift_left(T.bitwise_and(bits, isplat(0x8000, lanes)), isplat(16, lanes))
    magnitude = T.shift_left(T.bitwise_and(bits, isplat(0x7FFF, lanes)), isplat(13, lanes))
    scaled = T.Bind(as_type(magnitude, single) * fsplat(2.0**112, lanes))
    return as_type(T.bitwise_or(as_type(scaled, wide), sign), single)


def leading_zeros(value: Expr, dtype: str) -> Expr:
    """Zero bits above the highest set one of a scalar of ``dtype``; all of them for 0."""
    return intrinsic(dtype, "llvm.ctlz", value, tirx.IntImm("bool", 0))


def intrinsic(dtype: str, name: str, *args: Expr) -> Expr:
    """A pure LLVM intrinsic; an unknown name is an error (TVM would emit intrinsic 0)."""
    from tvm.target import codegen

    if codegen.llvm_lookup_intrinsic_id(name) == 0:
        raise ValueError(f"LLVM of this TVM knows no intrinsic {name}")
    return T.call_llvm_pure_intrin(dtype, name, *args)
