# SPDX-License-Identifier: Apache-2.0
"""Embedding in integers: the sum of rows of several tables (words, positions, types), each at its own bits.

Meaning: ``y[t] = sum_i level_i[ids_i[t]] * 2**e_i[ids_i[t]]``, brought to the largest of the rows'
exponents with 15 bits below it. Rows are stored one after the other: levels int8 (8 bits), or planes of
one bit a column with int8 alphas a row. A table whose words have bits of their own is stored in segments,
with the storage row of every word. Out-of-range ids read row 0: callers check ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .packing import BitPlanes
from .rounding_shift import clamp_shift, rounding_half, shift_round, vector_shift_round
from .tir import LANES, KernelBuilder, T, as_type, body, isplat, load, put, scratch, shuffle, splat, store

RAISED = 15
"""Bits that levels move up before rows of lower exponents move down to the largest."""
LEVEL_BITS = 8
"""The bit width that means stored levels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSegment:
    """Rows of one bit width: 1 to 7 planes, or 8 for stored levels."""

    rows: int
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTable:
    """One table: its segments in storage order, and the dtype of the map from words to storage rows ("")."""

    segments: tuple[RowSegment, ...]
    rank_dtype: str = ""

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGatherSpec:
    """Tables of equal width whose rows are added."""

    width: int
    tables: tuple[RowTable, ...]

    def __post_init__(self) -> None:
        if self.width % LANES:
            raise ValueError(f"rows of {self.width} columns, expected a multiple of {LANES}")


def pack_row_planes(planes: BitPlanes) -> dict[str, NDArray]:
    """Power-of-two planes with one group a row as rows of bytes: ``bits alphas exponents``.

    Returns: ``bits`` uint8[n, planes, ceil(k / 8)], ``alphas`` int8[n, planes], ``exponents`` int8[n].
    """
    if planes.exponents is None or planes.scales.shape[2] != 1 or planes.offsets is not None:
        raise ValueError("integer rows need power-of-two scales, one group a row, and no offset")
    return {
        "bits": np.ascontiguousarray(planes.planes.transpose(1, 0, 2)),
        "alphas": np.ascontiguousarray(planes.scales[:, :, 0].T),
        "exponents": np.ascontiguousarray(planes.exponents[:, 0]),
    }


def reference(
    rows: Sequence[NDArray[np.int8]], exponents: Sequence[NDArray[np.int8]]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """NumPy meaning of :func:`block_gather` once rows were looked up.

    Args:
        rows: per table the levels int8[m, width] of the tokens' rows.
        exponents: per table their exponents int8[m].

    Returns:
        int32[m, width] and exponents int32[m].
    """
    own = np.stack([e.astype(np.int64) for e in exponents])
    top = own.max(axis=0)
    parts = [
        shift_round(level.astype(np.int64) << RAISED, (top - e)[:, None])
        for level, e in zip(rows, own, strict=True)
    ]
    return sum(parts[1:], parts[0]).astype(np.int32), (top - RAISED).astype(np.int32)


def block_gather(spec: BlockGatherSpec, name: str = "block_gather") -> Any:
    """PrimFunc (ids[m] of every table; per table [rank[words]], then per segment exponents int8[rows] and
    levels int8[rows, width], or exponents, bits uint8[rows, planes, width / 8] and alphas int8[rows, planes];
    outputs y int32[m, width] and y_exponents int32[m])."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        ids = [kernel.param(f"ids{i}", (m,), "int32") for i in range(len(spec.tables))]
        tables = [_Table.declare(kernel, table, spec.width, i) for i, table in enumerate(spec.tables)]
        y = kernel.param("y", (m, spec.width), "int32")
        y_exponents = kernel.param("y_exponents", (m,), "int32")
        reads = [*ids, *(buffer for table in tables for buffer in table.buffers)]
        with body([y, y_exponents], reads), T.serial(0, m) as t:
            places = [table.place(words[t]) for table, words in zip(tables, ids, strict=True)]
            own = [T.Bind(table.exponent(place)) for table, place in zip(tables, places, strict=True)]
            top: Any = own[0]
            for exponent in own[1:]:
                top = T.max(top, exponent)
            top = T.Bind(top)
            put(y_exponents, (t,), top - RAISED)
            for index, (table, place) in enumerate(zip(tables, places, strict=True)):
                table.add(place, T.Bind(clamp_shift(top - own[index])), y, t, first=index == 0)
    return kernel.result


@dataclass(frozen=True, slots=True)
class _Table:
    """The parameters of one table, and the code that reads a row of it."""

    spec: RowTable
    width: int
    rank: Any
    segments: tuple[tuple[Any, ...], ...]

    @staticmethod
    def declare(kernel: KernelBuilder, spec: RowTable, width: int, index: int) -> _Table:
        rank = kernel.param(f"rank{index}", (spec.rows,), spec.rank_dtype) if spec.rank_dtype else None
        segments = []
        for i, segment in enumerate(spec.segments):
            name = f"{index}_{i}"
            exponents = kernel.param(f"exponents{name}", (segment.rows,), "int8")
            if segment.bits == LEVEL_BITS:
                levels = kernel.param(f"levels{name}", (segment.rows, width), "int8")
                segments.append((levels, exponents))
            else:
                bits = kernel.param(f"bits{name}", (segment.rows, segment.bits, width // 8), "uint8")
                alphas = kernel.param(f"alphas{name}", (segment.rows, segment.bits), "int8")
                segments.append((bits, alphas, exponents))
        return _Table(spec, width, rank, tuple(segments))

    @property
    def buffers(self) -> list[Any]:
        """All parameters; exponents come first of each segment, as they are declared."""
        found = [] if self.rank is None else [self.rank]
        for segment in self.segments:
            found += [segment[-1], *segment[:-1]]
        return found

    def place(self, word: Any) -> Any:
        """The storage row of a word id."""
        word = T.Bind(T.Cast("int64", word))
        inside = T.And(word >= 0, word < self.spec.rows)
        safe = T.Bind(T.if_then_else(inside, word, T.int64(0)))
        return safe if self.rank is None else T.Bind(T.Cast("int64", self.rank[safe]))

    def exponent(self, place: Any) -> Any:
        """The row's exponent, int32."""
        if len(self.segments) == 1:
            return T.Cast("int32", self.segments[0][-1][place])
        found = scratch((1,), "int32")
        for start, segment, buffers in self._starts():
            with T.If(T.And(place >= start, place < start + segment.rows)), T.Then():
                put(found, (0,), T.Cast("int32", buffers[-1][place - start]))
        return found[0]

    def add(self, place: Any, shift: Any, y: Any, t: Any, *, first: bool) -> None:
        """Adds the row, moved down by ``shift``, to row t of y (or writes it)."""
        for start, segment, buffers in self._starts():
            if len(self.segments) == 1:
                self._add_row(segment, buffers, place, shift, y, t, first)
                continue
            with T.If(T.And(place >= start, place < start + segment.rows)), T.Then():
                self._add_row(segment, buffers, T.Bind(place - start), shift, y, t, first)

    def _starts(self) -> list[tuple[int, RowSegment, tuple[Any, ...]]]:
        found, start = [], 0
        for segment, buffers in zip(self.spec.segments, self.segments, strict=True):
            found.append((start, segment, buffers))
            start += segment.rows
        return found

    def _add_row(
        self,
        segment: RowSegment,
        buffers: tuple[Any, ...],
        row: Any,
        shift: Any,
        y: Any,
        t: Any,
        first: bool,
    ) -> None:
        wide = T.Bind(splat(shift))
        half = T.Bind(rounding_half(wide, LANES))
        with T.serial(0, self.width // LANES) as v:
            c = T.Bind(v * LANES)
            if segment.bits == LEVEL_BITS:
                level = T.Cast("int32x16", load(buffers[0], (row, c), LANES))
            else:
                level = _plane_levels(segment.bits, buffers[0], buffers[1], row, v)
            value = vector_shift_round(T.shift_left(level, isplat(RAISED)), wide, half)
            store(y, (t, c), value if first else load(y, (t, c), LANES) + value, LANES)


def _plane_levels(planes: int, bits: Any, alphas: Any, row: Any, v: Any) -> Any:
    """int32x16: sum of +-alpha over the planes, for 16 columns."""
    lanes = shuffle([T.int32(1 << i) for i in range(LANES)], list(range(LANES)))
    total: Any = None
    for plane in range(planes):
        sixteen = as_type(load(bits, (row, plane, v * 2), 2), "uint16")
        wide = T.Bind(splat(T.Bind(T.Cast("int32", sixteen))))
        alpha = T.Bind(splat(T.Bind(T.Cast("int32", alphas[row, plane]))))
        term = T.Select(T.bitwise_and(wide, lanes) > isplat(0), alpha, isplat(0) - alpha)
        total = term if total is None else total + term
    return total


__all__ = ["BlockGatherSpec", "RowSegment", "RowTable", "block_gather", "pack_row_planes", "reference"]
