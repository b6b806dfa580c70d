# SPDX-License-Identifier: Apache-2.0
"""A flat list of kernel calls per function, as text: what the native runtime walks.

One line is one fact, words are separated by single spaces (``src/program.c`` reads the same)::

    tvmq-program 1
    kernel NAME                        kernels and weights are numbered from 0
    weight DTYPE SHAPE NAME
    function NAME                      everything below counts anew in each function
    extent dim INPUT AXIS              extent e0: taken from an input
    extent sub e0 1                    extent e1: add, sub, mul, div, mod, min, max of two sizes
    input DTYPE SHAPE NAME             DTYPE "shape": numbers instead of a tensor
    output DTYPE SHAPE                 provided by the caller, as inputs are
    pool UNITS FACTORS                 scratch memory of UNITS x the product of FACTORS bytes
    tensor PLACE NUMBER OFFSET DTYPE SHAPE     PLACE: input, weight, output or pool
    call KERNEL TENSOR TENSOR ...
    end

SHAPE and FACTORS are sizes joined by ``x`` (``e0x512``), ``-`` for none. A tensor in a pool begins at OFFSET
x the product of the pool's factors; OFFSET is 0 elsewhere. All divisions round down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

VERSION: Final = 1
ALIGNMENT = 64
MAX_BYTES = 4 << 20
"""Of a program; neither written nor believed beyond."""
MAX_SIZE = 1 << 31
MAX_FUNCTIONS = 256
ITEM_BYTES = {
    "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8,
}  # fmt: skip
MAX_DIMENSIONS = 8

Operation = Literal["add", "sub", "mul", "div", "mod", "min", "max"]
OPERATIONS = get_args(Operation)
Place = Literal["input", "weight", "output", "pool"]
PLACES = get_args(Place)
_WORD = re.compile(r"[A-Za-z0-9_]{1,128}\Z")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,9})\Z")


@dataclass(frozen=True, slots=True)
class Free:
    """A size that is only known when a function is called: number of its extent."""

    index: int

    def __str__(self) -> str:
        return f"e{self.index}"


Size: TypeAlias = int | Free
Shape: TypeAlias = tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class FromInput:
    """An extent that an input brings."""

    input: int
    axis: int


@dataclass(frozen=True, slots=True)
class Computed:
    """An extent computed from sizes before it."""

    operation: Operation
    left: Size
    right: Size


@dataclass(frozen=True, slots=True)
class Named:
    """A weight, or an input (whose dtype may be ``shape``)."""

    dtype: str
    shape: Shape
    name: str


@dataclass(frozen=True, slots=True)
class Output:
    """A result."""

    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Pool:
    """Scratch memory: bytes per product of the factors."""

    units: int
    factors: Shape


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of an input, a weight, an output or a part of a pool."""

    place: Place
    number: int
    offset: int
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel (its number) and the tensors that it takes; which of them it writes is the kernel's matter."""

    kernel: int
    tensors: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """The calls of one entry, in order."""

    name: str
    extents: tuple[FromInput | Computed, ...]
    inputs: tuple[Named, ...]
    outputs: tuple[Output, ...]
    pools: tuple[Pool, ...]
    tensors: tuple[Tensor, ...]
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What one library computes."""

    kernels: tuple[str, ...]
    weights: tuple[Named, ...]
    functions: tuple[Function, ...]


def encode(program: Program) -> bytes:
    """The file's bytes; ValueError for a program that ``decode`` would refuse."""
    lines = [f"tvmq-program {VERSION}"]
    lines += [f"kernel {name}" for name in program.kernels]
    lines += [f"weight {w.dtype} {_shape(w.shape)} {w.name}" for w in program.weights]
    for function in program.functions:
        lines += _function_lines(function)
    data = "\n".join([*lines, "end", ""]).encode("utf-8")
    if decode(data) != program:
        raise ValueError("a name holds a line break")
    return data


def decode(data: bytes) -> Program:
    """Reads ``encode``'s bytes; ValueError in a few words for anything else."""
    return _Reader(data).program()


def _function_lines(function: Function) -> list[str]:
    lines = [f"function {function.name}"]
    for extent in function.extents:
        if isinstance(extent, FromInput):
            lines.append(f"extent dim {extent.input} {extent.axis}")
        else:
            lines.append(f"extent {extent.operation} {extent.left} {extent.right}")
    lines += [f"input {i.dtype} {_shape(i.shape)} {i.name}" for i in function.inputs]
    lines += [f"output {o.dtype} {_shape(o.shape)}" for o in function.outputs]
    lines += [f"pool {p.units} {_shape(p.factors)}" for p in function.pools]
    lines += [f"tensor {t.place} {t.number} {t.offset} {t.dtype} {_shape(t.shape)}" for t in function.tensors]
    lines += [f"call {' '.join(map(str, (c.kernel, *c.tensors)))}" for c in function.calls]
    return lines


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "-"


class _Reader:
    """Parses lines in their fixed order."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes, expected at most {MAX_BYTES}")
        try:
            self._lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise ValueError("not valid UTF-8 text") from None
        self._at = 0
        self._extents = 0

    def program(self) -> Program:
        if self._next() != ["tvmq-program", str(VERSION)]:
            raise ValueError(f"its first line is not tvmq-program {VERSION}")
        self._at += 1
        kernels = [self._word(words, 0) for words in self._all("kernel", 1)]
        weights = [self._named(words) for words in self._all("weight", 3, rest=True)]
        functions: list[Function] = []
        while self._next()[0] == "function":
            if len(functions) == MAX_FUNCTIONS:
                raise self._wrong("too many functions")
            functions.append(self._function(len(kernels), len(weights)))
        if self._lines[self._at :] != ["end", ""]:
            raise self._wrong("an unexpected line")
        return Program(kernels=tuple(kernels), weights=tuple(weights), functions=tuple(functions))

    def _function(self, kernels: int, weights: int) -> Function:
        name = self._word(self._words("function", 1), 0)
        self._at += 1
        self._extents = 0
        extents: list[FromInput | Computed] = []
        for words in self._all("extent", 3):
            extents.append(self._extent(words))
            self._extents += 1
        inputs = [self._named(w, shapes=True) for w in self._all("input", 3, rest=True)]
        for extent in extents:
            if isinstance(extent, FromInput) and not (
                extent.input < len(inputs) and extent.axis < len(inputs[extent.input].shape)
            ):
                raise self._wrong("an extent of no input")
        outputs = [Output(self._dtype(w[0]), self._shape(w[1])) for w in self._all("output", 2)]
        pools = [Pool(self._number(w[0]), self._shape(w[1])) for w in self._all("pool", 2)]
        counts = {"input": len(inputs), "weight": weights, "output": len(outputs), "pool": len(pools)}
        tensors = [self._tensor(words, counts) for words in self._all("tensor", 5)]
        calls = []
        for words in self._all("call", None):
            kernel, *taken = map(self._number, words)
            if kernel >= kernels or not all(t < len(tensors) for t in taken):
                raise self._wrong("a number beyond the kernels or tensors")
            calls.append(Call(kernel, tuple(taken)))
        return Function(
            name=name, extents=tuple(extents), inputs=tuple(inputs), outputs=tuple(outputs),
            pools=tuple(pools), tensors=tuple(tensors), calls=tuple(calls),
        )  # fmt: skip

    def _extent(self, words: list[str]) -> FromInput | Computed:
        if words[0] == "dim":
            return FromInput(self._number(words[1]), self._number(words[2]))
        if words[0] not in OPERATIONS:
            raise self._wrong("an unknown operation")
        return Computed(cast(Operation, words[0]), self._size(words[1]), self._size(words[2]))

    def _tensor(self, words: list[str], counts: dict[str, int]) -> Tensor:
        place, number, offset = words[0], self._number(words[1]), self._number(words[2])
        if place not in PLACES or number >= counts[place] or (offset and place != "pool"):
            raise self._wrong("no such place")
        if offset % ALIGNMENT:
            raise self._wrong(f"an offset that is no multiple of {ALIGNMENT}")
        return Tensor(cast(Place, place), number, offset, self._dtype(words[3]), self._shape(words[4]))

    def _named(self, words: list[str], shapes: bool = False) -> Named:
        dtype = words[0] if shapes and words[0] == "shape" else self._dtype(words[0])
        if not words[2]:
            raise self._wrong("an empty name")
        return Named(dtype, self._shape(words[1]), words[2])

    def _dtype(self, word: str) -> str:
        if word not in ITEM_BYTES:
            raise self._wrong("an unknown dtype")
        return word

    def _shape(self, word: str) -> Shape:
        sizes = () if word == "-" else tuple(self._size(part) for part in word.split("x"))
        if len(sizes) > MAX_DIMENSIONS:
            raise self._wrong("too many dimensions")
        return sizes

    def _size(self, word: str) -> Size:
        if not word.startswith("e"):
            return self._number(word)
        free = Free(self._number(word[1:]))
        if free.index >= self._extents:
            raise self._wrong("an extent that is not known yet")
        return free

    def _number(self, word: str) -> int:
        if not _NUMBER.match(word) or int(word) > MAX_SIZE:
            raise self._wrong("no number up to 2^31")
        return int(word)

    def _word(self, words: list[str], index: int) -> str:
        if not _WORD.match(words[index]):
            raise self._wrong("no plain name")
        return words[index]

    def _all(self, kind: str, count: int | None, rest: bool = False) -> Iterator[list[str]]:
        """The words after ``kind`` of this line and of the following ones that begin with it."""
        while self._next()[0] == kind:
            yield self._words(kind, count, rest)
            self._at += 1

    def _words(self, kind: str, count: int | None, rest: bool = False) -> list[str]:
        line = self._lines[self._at]
        words = line.split(" ", count if rest and count else -1)
        if words[0] != kind or len(words) < 2 or (count is not None and len(words) != count + 1):
            raise self._wrong(f"no {kind}")
        return words[1:]

    def _next(self) -> list[str]:
        if self._at >= len(self._lines):
            raise ValueError("it ends too early")
        return self._lines[self._at].split(" ")

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"line {self._at + 1}: {what}")
