# SPDX-License-Identifier: Apache-2.0
"""A plan for the block-integer mode: the same bits, stored over powers of two, with blocks of activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from relay_passes.integer_body import HEAD
from schedules.block_gather import LEVEL_BITS
from schedules.level_packing import TILE_COLUMNS
from schedules.pow2 import POW2

from .errors import UsageError
from .families.family import TensorInfo

BLOCK_INT = "block-int"
DEFAULT_PRESET = "8-bit"
"""Bits of the weights where neither a preset nor a mean width is asked for."""


def integer_plan(
    plan: BitPlan, tensors: Sequence[TensorInfo], *, group_size: int | None, activation_block: int | None
) -> BitPlan:
    """``plan`` in mode block-int; what belongs to the head keeps its float form.

    Args:
        plan: bits of every tensor.
        tensors: the model's matrices.
        group_size: columns of a weight's row that share scales; None keeps those of ``plan``, 0 is the whole
            row.
        activation_block: columns of activations that share an exponent; None takes the weights' groups, or
            the usual ones where a row has one, 0 is the whole row.

    Raises:
        UsageError: a matrix of the body stays FP32, there are outliers, or blocks that are not whole tiles of
            64 columns.
    """
    if any(entry.outliers for entry in plan.entries()):
        raise UsageError("mode block-int has no outliers beside the planes; leave out --outliers")
    for name, value in (("--group-size", group_size), ("--activation-block", activation_block)):
        _check_columns(name, value)
    columns = {info.name: info.shape[1] for info in tensors}
    return replace(
        plan,
        mode="block-int",
        source=f"{plan.source}; {BLOCK_INT}",
        blocks=tuple(_matrix(e, columns[e.tensor], group_size, activation_block) for e in plan.blocks),
        words=tuple(_words(entry) for entry in plan.words),
    )


def _check_columns(name: str, columns: int | None) -> None:
    if columns and columns % TILE_COLUMNS:
        raise UsageError(
            f"{name} {columns}: blocks of integers are multiples of {TILE_COLUMNS} columns (0 is the row)"
        )


def _matrix(entry: BlockBits, columns: int, group_size: int | None, block: int | None) -> BlockBits:
    if entry.block == HEAD:
        return entry
    if entry.bits == FLOAT_BITS:
        raise UsageError(f"{entry.tensor} stays FP32, which integers cannot be; give it 1 to 8 bits")
    wanted = entry.group_size if group_size is None else group_size
    _check_columns(f"{entry.tensor}: groups of", wanted)
    if block is None:
        block = wanted
    grouped = wanted and wanted < columns and columns % wanted == 0 and entry.bits < LEVEL_BITS
    found = replace(
        entry,
        group_size=wanted if grouped else None,
        quantizer=_quantizer(entry.quantizer, entry.bits),
        offset=False,
        scale_dtype=POW2,
    )
    return found if block is None else replace(found, activation_block=block or None)


def _words(entry: WordBits) -> WordBits:
    quantizer = _quantizer(entry.quantizer, 1)
    return replace(entry, group_size=None, quantizer=quantizer, offset=False, scale_dtype=POW2)


def _quantizer(name: str, bits: int) -> str:
    """Uniform codes below 8 bits have no form over powers of two; the alternating ones do."""
    return "alternating" if name == "rtn" and bits < LEVEL_BITS else name
