# SPDX-License-Identifier: Apache-2.0
"""From the integer sums of a product to its output: group shifts, bias, the common exponent, activation.

Emits what ``dequant_gemm.reference`` says after the dot products, in vectors of 16 rows of one token.
"""

from __future__ import annotations

from typing import Any

from .dequant_spec import Buffers, DequantSpec, Tokens
from .level_packing import PANEL_ROWS
from .packing import BLOCK_ROWS
from .rounding_shift import VectorMove, clamp_shifts, rounding_half, vector_shift_round
from .tir import T, isplat, load, put, scratch, splat, store


class Finish:
    """Emits the end of a product for some vectors of 16 rows of one block."""

    def __init__(
        self, spec: DequantSpec, buffers: Buffers, tokens: Tokens, panel: Any, vectors: range
    ) -> None:
        """``vectors`` count from the first row of ``panel``; those beyond its 32 rows are its neighbour's."""
        self._spec, self._b, self._tokens = spec, buffers, tokens
        self._block, first = T.floordiv(panel, 2), PANEL_ROWS * T.floormod(panel, 2)
        self._rows = [first + 16 * v for v in vectors]
        self._shifts, self._biases = [], []

    def bind(self) -> None:
        """Loads what all tokens share; call where its uses can see it."""
        for row in self._rows:
            raw = T.Cast("int32x16", load(self._b.row_shifts, (self._block, row), 16))
            shifts = T.Bind(clamp_shifts(raw, 16))
            self._shifts.append((shifts, T.Bind(rounding_half(shifts, 16))))
            if self._spec.bias:
                self._biases.append(T.Bind(load(self._b.bias, (self._block, row), 16)))

    def add_group(self, token: Any, group: Any, values: list[Any], before: list[Any]) -> list[Any]:
        """``before`` plus a group's sums brought down to the exponent of a token of the piece."""
        if self._tokens.shifts is not None:
            shift = T.Bind(splat(self._tokens.shifts[token, group]))
            return [old + T.shift_right(value, shift) for value, old in zip(values, before, strict=True)]
        row = self._tokens.first + token
        x_shift: Any = T.int32(0)
        if self._spec.x_groups > 1:
            # The output's exponents are written first.
            x_shift = T.Bind(self._b.y_exponents[row] - self._b.top[0] - self._b.x_exponents[row, group])
        added = []
        for at, value, old in zip(self._rows, values, before, strict=True):
            shifts = splat(x_shift)
            if self._spec.w_groups > 1:
                raw = load(self._b.group_shifts, (self._block, group, at), 16)
                shifts = shifts + T.Cast("int32x16", raw)
            added.append(old + T.shift_right(value, clamp_shifts(shifts, 16)))
        return added

    def token(self, token: Any, values: list[Any]) -> None:
        """Stores the outputs of one token of the piece."""
        moved = VectorMove(self._tokens.moves, token) if self._spec.bias else None
        for v, value in enumerate(values):
            value = value if moved is None else value + moved(self._biases[v])
            value = vector_shift_round(value, *self._shifts[v])
            value = T.max(value, isplat(0)) if self._spec.activation == "relu" else value
            self._store(self._tokens.first + token, self._rows[v], value)

    def _store(self, token: Any, row: Any, value: Any) -> None:
        n, first = self._spec.n, self._block * BLOCK_ROWS + row
        if n % BLOCK_ROWS == 0:
            store(self._b.y, (token, first), value, 16)
            return
        with T.If(first + 16 <= n):
            with T.Then():
                store(self._b.y, (token, first), value, 16)
            with T.Else():
                spare = scratch((16,), "int32")
                store(spare, (0,), value, 16)
                with T.serial(0, 16) as lane, T.If(first + lane < n), T.Then():
                    put(self._b.y, (token, first + lane), spare[lane])
