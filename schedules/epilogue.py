# SPDX-License-Identifier: Apache-2.0
"""The end of a product: 16 finished sums get their bias and activation and are written, whole or in part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .activation import activate
from .tir import LANES, T, load, put, store


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """Where sums go.

    Attributes:
        out: float32[m, n].
        bias: float32[n] or None.
        activation: a name of ``schedules.activation``.
        start: the first column of ``out`` that these sums belong to.
        columns: number of columns from there on; sums beyond are dropped.
        block: sums come in blocks of so many, of which the last may be cut.
    """

    out: Any
    bias: Any
    activation: str
    start: int
    columns: int
    block: int

    def write(self, acc: Any, at: int, row: Any, first: Any) -> None:
        """The 16 sums at ``acc[at]``, which are columns ``start + first`` on of ``row``."""
        if self.columns % self.block == 0:
            self._whole(acc, at, row, first)
            return
        with T.If(first + LANES <= self.columns):
            with T.Then():
                self._whole(acc, at, row, first)
            with T.Else():
                self._part(acc, at, row, first)

    def _whole(self, acc: Any, at: int, row: Any, first: Any) -> None:
        value = load(acc, (at,), LANES)
        if self.bias is not None:
            value = value + load(self.bias, (self.start + first,), LANES)
        store(self.out, (row, self.start + first), activate(self.activation, value), LANES)

    def _part(self, acc: Any, at: int, row: Any, first: Any) -> None:
        if self.bias is not None:
            with T.serial(0, LANES) as lane, T.If(first + lane < self.columns), T.Then():
                put(acc, (at + lane,), acc[at + lane] + self.bias[self.start + first + lane])
        if self.activation:
            store(acc, (at,), activate(self.activation, load(acc, (at,), LANES)), LANES)
        with T.serial(0, LANES) as lane, T.If(first + lane < self.columns), T.Then():
            put(self.out, (row, self.start + first + lane), acc[at + lane])
