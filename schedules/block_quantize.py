# SPDX-License-Identifier: Apache-2.0
"""Requantization: int32 rows become blocks of int8 mantissas, with GELU on the way where asked for.

Meaning: source columns come in groups with one exponent each per token (a product has one, attention one
per head). Groups within a block are brought to the largest of their exponents, GELU is computed in Q16
(``integer_tables.gelu``), then ``block_format.quantize``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .block_format import BlockLayout, emit_quantize_row, quantize
from .gelu_words import COLUMNS, GeluWords
from .integer_tables import GELU_BITS, GeluTable, gelu, gelu_table, gelu_tanh_table
from .rounding_shift import clamp_shift, move, move_by, rounding_half, shift_round, vector_shift_round
from .tir import LANES, KernelBuilder, T, body, isplat, load, put, scratch, splat, store

BlockActivation = Literal["", "relu", "gelu", "gelu_tanh"]
GELU_TABLES: dict[str, Callable[[], NDArray[np.int32]]] = {
    "gelu": gelu_table,
    "gelu_tanh": gelu_tanh_table,
}
"""Activations that read a table, and what makes it."""


def gelu_form(activation: str) -> BlockActivation:
    """The activation where it reads a table, else ""."""
    match activation:
        case "gelu":
            return "gelu"
        case "gelu_tanh":
            return "gelu_tanh"
        case _:
            return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockQuantizeSpec:
    """One requantization.

    Attributes:
        layout: of the result.
        source_groups: exponents of a source row; more than one are heads of equal width.
        activation: not "" only with one source group.
    """

    layout: BlockLayout
    source_groups: int = 1
    activation: BlockActivation = ""

    def __post_init__(self) -> None:
        if self.layout.width % self.source_groups or (self.source_groups > 1 and self.source_width % LANES):
            raise ValueError(f"{self.source_groups} groups of {self.layout.width} columns do not fit vectors")
        if self.source_groups > 1 and self.activation:
            raise ValueError("an activation needs rows with one exponent")

    @property
    def source_width(self) -> int:
        return self.layout.width // self.source_groups


def reference(
    y: NDArray[np.int32], y_exponents: NDArray[np.int32], spec: BlockQuantizeSpec
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """NumPy meaning of :func:`block_quantize`.

    Args:
        y: int32[m, width].
        y_exponents: int32[m, source_groups].

    Returns:
        mantissas int8[m, padded] and exponents int32[m, groups].
    """
    wide, exponents = y.astype(np.int64), y_exponents.astype(np.int64)
    if spec.source_groups > 1:
        top = exponents.max(axis=1)
        down = np.repeat(top[:, None] - exponents, spec.source_width, axis=1)
        return quantize(shift_round(wide, down), top, spec.layout)
    own = exponents[:, 0]
    if spec.activation in GELU_TABLES:
        wide = gelu(move(wide, (-GELU_BITS - own)[:, None]), GELU_TABLES[spec.activation]())
        own = np.full_like(own, -GELU_BITS)
    elif spec.activation == "relu":
        wide = np.maximum(wide, 0)
    return quantize(wide, own, spec.layout)


def block_quantize(spec: BlockQuantizeSpec, isa: str, name: str = "block_quantize") -> Any:
    """PrimFunc (y int32[m, width], y_exponents int32[m, source_groups], [GELU's table int32[64]], outputs
    mantissas int8[m, padded] and exponents int32[m, groups])."""
    kernel = KernelBuilder(name)
    layout = spec.layout
    with kernel.define():
        m = T.int64()
        y = kernel.param("y", (m, layout.width), "int32")
        y_exponents = kernel.param("y_exponents", (m, spec.source_groups), "int32")
        table = kernel.param("gelu", (64,), "int32") if spec.activation in GELU_TABLES else None
        mantissas = kernel.param("mantissas", (m, layout.padded), "int8")
        exponents = kernel.param("exponents", (m, layout.groups), "int32")
        reads = [y, y_exponents, *([] if table is None else [table])]
        with body([mantissas, exponents], reads):
            row = T.alloc_buffer([layout.width], "int32", align=64, layout=None)
            words = GeluWords(table) if table is not None and _in_words(layout, isa) else None
            with T.serial(0, m) as t:
                if spec.source_groups > 1:
                    source, base = _aligned(spec, y, y_exponents, row, t)
                else:
                    source, base = _activated(spec, y, y_exponents, (table, words), row, t, isa)
                emit_quantize_row(layout, source, base, mantissas, exponents, t, isa=isa)
    return kernel.result


def _activated(
    spec: BlockQuantizeSpec,
    y: Any,
    y_exponents: Any,
    tables: tuple[Any, GeluWords | None],
    row: Any,
    t: Any,
    isa: str,
) -> tuple[Any, Any]:
    """Where the quantizer reads one token's columns, and their exponent."""
    own = T.Bind(y_exponents[t, 0])
    match spec.activation:
        case "relu":
            return lambda c: T.max(load(y, (t, c), LANES), isplat(0)), own
        case "gelu" | "gelu_tanh":
            table, words = tables
            source, shift = (lambda c: load(y, (t, c), LANES)), T.Bind(T.int32(-GELU_BITS) - own)
            if words is None:
                _gelu_row(GeluTable(table, isa), source, row, spec.layout.width, shift)
            else:
                with T.If(T.Not(words.row(source, row, spec.layout.width, shift))), T.Then():
                    _gelu_row(GeluTable(table, isa), source, row, spec.layout.width, shift)
            return lambda c: load(row, (c,), LANES), T.int32(-GELU_BITS)
        case _:
            return lambda c: load(y, (t, c), LANES), own


def _in_words(layout: BlockLayout, isa: str) -> bool:
    return isa in ("avx512_vbmi", "amx") and layout.width % COLUMNS == 0


def _gelu_row(compute: GeluTable, source: Any, row: Any, width: int, shift: Any) -> None:
    moved = move_by(shift)
    with T.serial(0, width // LANES) as v:
        store(row, (v * LANES,), compute(moved(source(v * LANES))), LANES)


def _aligned(spec: BlockQuantizeSpec, y: Any, y_exponents: Any, row: Any, t: Any) -> tuple[Any, Any]:
    """The row with all groups brought to the largest exponent."""
    top = scratch((1,), "int32")
    put(top, (0,), y_exponents[t, 0])
    with T.serial(1, spec.source_groups) as g:
        put(top, (0,), T.max(top[0], y_exponents[t, g]))
    largest = T.Bind(top[0])
    with T.serial(0, spec.source_groups) as g:
        shift = T.Bind(splat(T.Bind(clamp_shift(largest - y_exponents[t, g]))))
        half = T.Bind(rounding_half(shift, LANES))
        with T.serial(0, spec.source_width // LANES) as v:
            c = T.Bind(g * spec.source_width + v * LANES)
            store(row, (c,), vector_shift_round(load(y, (t, c), LANES), shift, half), LANES)
    return lambda c: load(row, (c,), LANES), largest


__all__ = ["GELU_TABLES", "BlockActivation", "BlockQuantizeSpec", "block_quantize", "gelu_form", "reference"]
