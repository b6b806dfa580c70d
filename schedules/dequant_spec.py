# SPDX-License-Identifier: Apache-2.0
"""The structure of an integer product (``dequant_gemm``) and the buffers that its kernels take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .level_packing import PANEL_ROWS, TILE_BYTES, TILE_COLUMNS, check_groups, padded_columns
from .packing import BLOCK_ROWS, STEP_COLUMNS, row_blocks
from .schedule import CHUNK_STEPS, DEQUANT_RULE, DequantSchedule
from .tir import KernelBuilder, T

STORED_LEVELS = 8
"""``bits`` of weights that are stored as levels."""
MOST_TOKENS = 256
"""Tokens that a product takes at once; more come in pieces."""
PARALLEL_WEIGHTS = 1 << 19
"""Weights from which on the panels of a product are spread over threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantSpec:
    """One integer product: the structure only, no model's names, so that equal layers share code.

    Attributes:
        n: output rows.
        k: columns.
        bits: planes of a weight, 1 to 7; 8 are stored levels.
        groups: column groups of equal size; more than one need multiples of 64 columns.
        x_groups: exponents of a token, 1 or ``groups``.
        w_groups: alphas and down-shifts of a row, 1 (no down-shifts) or ``groups``.
        bias: whether a bias is added.
        bias_shift: the bias of row n is ``bias[n] * 2**(e[n] + bias_shift)``.
        activation: "" or "relu".
    """

    n: int
    k: int
    bits: int
    groups: int = 1
    x_groups: int = 1
    w_groups: int = 1
    bias: bool = False
    bias_shift: int = 0
    activation: Literal["", "relu"] = ""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= STORED_LEVELS:
            raise ValueError(f"{self.bits} bits a weight, expected 1 to 7 planes or 8 for stored levels")
        check_groups(self.k, self.groups)
        if {self.x_groups, self.w_groups} - {1, self.groups}:
            raise ValueError(f"{self.x_groups} and {self.w_groups} groups, expected 1 or {self.groups}")

    @property
    def planes(self) -> bool:
        """Whether weights are binary planes (else stored levels)."""
        return self.bits < STORED_LEVELS

    @property
    def padded_k(self) -> int:
        return padded_columns(self.k)

    @property
    def blocks(self) -> int:
        """Blocks of 64 rows."""
        return row_blocks(self.n)

    @property
    def panels(self) -> int:
        """Panels of 32 rows that hold an output row."""
        return -(-self.n // PANEL_ROWS)

    @property
    def tile_steps(self) -> int:
        """Tiles of 64 columns of one group."""
        return self.padded_k // self.groups // TILE_COLUMNS

    @property
    def key_steps(self) -> int:
        """Steps of 32 columns that the keys of one group hold."""
        return -(-(self.k // self.groups) // STEP_COLUMNS)


@dataclass(frozen=True, slots=True)
class Chunks:
    """Pieces of the columns that a panel is multiplied in: column groups, or parts of one long group.

    A part is short enough for a panel of it to stay in the first-level cache.

    Attributes:
        count: number of chunks.
        steps: steps of 64 columns in each; the last part of a group may have fewer.
        all_steps: steps of all chunks.
        grouped: whether chunks are column groups.
    """

    count: int
    steps: int
    all_steps: int
    grouped: bool

    @staticmethod
    def of(spec: DequantSpec, most: int = CHUNK_STEPS) -> Chunks:
        all_steps = spec.groups * spec.tile_steps
        if spec.groups > 1:
            return Chunks(spec.groups, spec.tile_steps, all_steps, True)
        count = -(-all_steps // most)
        return Chunks(count, -(-all_steps // count), all_steps, False)

    @property
    def uneven(self) -> bool:
        return self.count * self.steps != self.all_steps

    def length(self, chunk: Any) -> Any:
        """Steps of a chunk."""
        if not self.uneven:
            return T.int64(self.steps)
        return T.min(T.int64(self.steps), self.all_steps - chunk * self.steps)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A piece of the tokens: ``count`` of them (1 to 256) from ``first`` on, and how their biases move.

    ``moves`` is a table of ``rounding_shift.store_move``, one row a token of the piece; None without bias.
    ``shifts`` int32[256, groups] holds how far each group's sums of a token move down; None where a token
    has one exponent, or rows have shifts of their own.
    """

    first: Any
    count: Any
    moves: Any
    shifts: Any


def worth_threads(spec: DequantSpec, schedule: DequantSchedule = DEQUANT_RULE) -> bool:
    """Whether the panels are spread over threads."""
    worth = spec.n * spec.k >= PARALLEL_WEIGHTS if schedule.spread is None else schedule.spread
    return worth and spec.panels > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """The parameters of a product, in their order; see ``dequant_gemm``.

    ``weights`` are keys and alphas, or levels. Absent ones are None.
    """

    x: Any
    x_exponents: Any
    weights: tuple[Any, ...]
    group_shifts: Any
    bias: Any
    row_shifts: Any
    top: Any
    y: Any
    y_exponents: Any

    @staticmethod
    def declare(kernel: KernelBuilder, spec: DequantSpec, m: Any) -> Buffers:
        blocks, rows = spec.blocks, (spec.blocks, BLOCK_ROWS)
        x = kernel.param("x", (m, spec.padded_k), "int8")
        x_exponents = kernel.param("x_exponents", (m, spec.x_groups), "int32")
        if spec.planes:
            keys = (blocks, spec.bits, spec.groups * spec.key_steps, 4, 64)
            alphas = (blocks, spec.bits, spec.w_groups, BLOCK_ROWS)
            weights = (kernel.param("keys", keys, "uint8"), kernel.param("alphas", alphas, "int8"))
        else:
            levels = (2 * blocks, spec.padded_k // TILE_COLUMNS, 2, TILE_BYTES)
            weights = (kernel.param("levels", levels, "int8"),)
        shifts = None
        if spec.w_groups > 1:
            shifts = kernel.param("group_shifts", (blocks, spec.w_groups, BLOCK_ROWS), "uint8")
        return Buffers(
            x=x,
            x_exponents=x_exponents,
            weights=weights,
            group_shifts=shifts,
            bias=kernel.param("bias", rows, "int32") if spec.bias else None,
            row_shifts=kernel.param("row_shifts", rows, "uint8"),
            top=kernel.param("top_exponent", (1,), "int32"),
            y=kernel.param("y", (m, spec.n), "int32"),
            y_exponents=kernel.param("y_exponents", (m,), "int32"),
        )

    @property
    def reads(self) -> list[Any]:
        """What a kernel reads."""
        found = [self.x, self.x_exponents, *self.weights]
        found += [self.group_shifts, self.bias, self.row_shifts, self.top]
        return [buffer for buffer in found if buffer is not None]
