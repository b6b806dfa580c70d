# SPDX-License-Identifier: Apache-2.0
"""The optional table that a row-producing kernel (norm, attention) writes right after its row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .lut_table import ENTRIES, Tables, emit_row, table_dtype
from .packing import MU, ColumnLayout
from .tir import KernelBuilder


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOutput:
    """Output buffers of a table; empty when no table is asked for."""

    layout: ColumnLayout | None
    tables: Tables
    buffers: tuple[Any, ...]

    @staticmethod
    def declare(kernel: KernelBuilder, m: Any, layout: ColumnLayout | None, tables: Tables) -> TableOutput:
        """Adds the parameters table, scale and sums to ``kernel`` if ``layout`` is given."""
        if layout is None:
            return TableOutput(layout=None, tables=tables, buffers=())
        buffers = tuple(
            kernel.param(name, (m, *shape), dtype) for name, shape, dtype in table_shapes(layout, tables)
        )
        return TableOutput(layout=layout, tables=tables, buffers=buffers)

    def emit(self, y: Any, row: Any) -> None:
        """Writes the tables of row ``row`` of ``y``."""
        if self.layout is not None:
            emit_row(self.layout, self.tables, lambda column: y[row, column], y, row, *self.buffers)


def table_shapes(layout: ColumnLayout, tables: Tables) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape without the row axis, and dtype of a table's three buffers."""
    return [
        ("table", (layout.padded_k // MU, ENTRIES), table_dtype(tables)),
        ("scale", (layout.chunks,), "float32"),
        ("sums", (layout.steps,), "float32"),
    ]
