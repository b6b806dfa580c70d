# SPDX-License-Identifier: Apache-2.0
"""A plan for the block-integer mode: the same bits, stored over powers of two, with blocks of activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from relay_passes.integer_body import HEAD
from relay_passes.lower_block_int import matrix_spec
from schedules.block_attention import BlockAttentionSpec
from schedules.block_gather import LEVEL_BITS
from schedules.level_packing import TILE_COLUMNS
from schedules.pow2 import POW2
from schedules.tir import LANES

from .errors import InputError, UsageError
from .families.encoder_layout import EncoderConfig
from .families.family import TABLES, TensorInfo

BLOCK_INT = "block-int"
DEFAULT_PRESET = "8-bit"
"""Bits of the weights where neither a preset nor a mean width is asked for."""
_FLOAT = "stays FP32, which integers cannot be; give it 1 to 8 bits"


def check_encoder(config: EncoderConfig) -> None:
    """InputError for an encoder that the integer kernels cannot compute."""
    for columns in (config.width, config.ffn):
        if columns % LANES:
            raise InputError(
                f"rows of {columns} columns, mode block-int needs multiples of {LANES}; compile with mode "
                "float"
            )
    try:
        BlockAttentionSpec(heads=config.heads, width=config.width, longest=config.max_tokens)
    except ValueError as error:
        raise InputError(f"{error}; compile with mode float") from error


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
            64 columns or do not fit those of the weights.
    """
    if any(entry.outliers for entry in plan.entries()):
        raise UsageError("mode block-int has no outliers beside the planes; leave out --outliers")
    for name, value in (("--group-size", group_size), ("--activation-block", activation_block)):
        _check_columns(name, value)
    shapes = {info.name: info.shape for info in tensors}
    return replace(
        plan,
        mode="block-int",
        source=f"{plan.source}; {BLOCK_INT}",
        blocks=tuple(_matrix(e, shapes[e.tensor], group_size, activation_block) for e in plan.blocks),
        words=tuple(_words(entry) for entry in plan.words),
    )


def check_integer_plan(plan: BitPlan) -> None:
    """ValueError unless the plan's body is stored as the integer kernels read it.

    Plans of ``integer_plan`` are; a plan.json may have been edited.
    """
    for entry in plan.entries():
        if entry.block != HEAD and (fault := _fault(entry)):
            raise ValueError(f"{entry.tensor} {fault}")


def _fault(entry: BlockBits | WordBits) -> str:
    """What mode block-int cannot do with an entry of the body, or ""."""
    bits = {entry.bits} if isinstance(entry, BlockBits) else {bits for _, bits in entry.clusters}
    if FLOAT_BITS in bits:
        return _FLOAT
    if entry.scale_dtype != POW2:
        return f"has scales in {entry.scale_dtype}, mode block-int stores {POW2}"
    if entry.offset:
        return "has an offset, mode block-int stores none"
    if entry.quantizer != _quantizer(entry.quantizer, min(bits)):
        return f"has {entry.quantizer} codes, which have no form over powers of two; take alternating"
    if isinstance(entry, WordBits) or entry.block == TABLES:
        return "" if entry.group_size is None else "has groups, tables in mode block-int have none"
    if entry.activation_block is not None and entry.activation_block % TILE_COLUMNS:
        return (
            f"reads blocks of {entry.activation_block} columns, expected multiples of {TILE_COLUMNS} "
            "(null is the row)"
        )
    return ""


def _check_columns(name: str, columns: int | None) -> None:
    if columns and columns % TILE_COLUMNS:
        raise UsageError(
            f"{name} {columns}: blocks of integers are multiples of {TILE_COLUMNS} columns (0 is the row)"
        )


def _matrix(entry: BlockBits, shape: tuple[int, int], group_size: int | None, block: int | None) -> BlockBits:
    if entry.block == HEAD:
        return entry
    if entry.bits == FLOAT_BITS:
        raise UsageError(f"{entry.tensor} {_FLOAT}")
    columns, wanted = shape[1], entry.group_size if group_size is None else group_size
    if entry.block == TABLES:
        wanted = None
    _check_columns(f"{entry.tensor} in groups of", wanted)
    if block is None:
        block = wanted or None
    grouped = wanted and wanted < columns and columns % wanted == 0 and entry.bits < LEVEL_BITS
    found = replace(
        entry,
        group_size=wanted if grouped else None,
        quantizer=_quantizer(entry.quantizer, entry.bits),
        offset=False,
        scale_dtype=POW2,
    )
    found = found if block is None else replace(found, activation_block=block or None)
    if found.block != TABLES:
        _check_product(found, *shape)
    return found


def _check_product(entry: BlockBits, n: int, k: int) -> None:
    try:
        matrix_spec(entry, n, k, bias=False)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _words(entry: WordBits) -> WordBits:
    quantizer = _quantizer(entry.quantizer, 1)
    return replace(entry, group_size=None, quantizer=quantizer, offset=False, scale_dtype=POW2)


def _quantizer(name: str, bits: int) -> str:
    """Uniform codes below 8 bits have no form over powers of two; the alternating ones do."""
    return "alternating" if name == "rtn" and bits < LEVEL_BITS else name
