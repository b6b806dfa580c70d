# SPDX-License-Identifier: Apache-2.0
"""Block floating point: rows of int8 mantissas whose blocks of columns share a power of two.

Meaning: ``value[t, c] = mantissa[t, c] * 2**(exponent[t, c // block] + channel[c])`` with mantissas in
-127..127. The exponents are chosen when a row is made, from its integers alone; the channel exponents are
constants of the model that even out channels of unequal range (0 where there are none). This is the block
shift of BCT (Dong and Chen, arXiv 2304.01483) as far as its abstract tells, and the form of MXINT8.

Products read mantissas alone. What a residual adds later also has a *fine* part, the next 8 bits: the value
is then ``(mantissa + fine / 256) * 2**exponent``, so that rounding for one product stays out of the rest of
the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .level_packing import TILE_COLUMNS, padded_columns
from .lut_table import tree_reduce
from .rounding_shift import psrav, rounding_half, shift_round, vector_shift_round
from .tir import LANES, T, as_type, isplat, leading_zeros, load, put, scratch, settle, shuffle, splat, store

MANTISSA_BITS = 7
"""Bits of a mantissa beside its sign, at most."""
FINE_BITS = 8
"""Bits of the fine part, an int8."""
PACKED = 4
"""Vectors whose mantissas fill one AVX-512 register."""
BLOCK_COLUMNS = 64
"""Columns that share an exponent unless a plan says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """How a row of ``width`` columns is cut into blocks of ``block`` columns (the whole row at most).

    ``bits`` 2 to 8 are those of a mantissa with its sign: magnitudes below 2**(bits - 1).

    Raises:
        ValueError: a width that is no multiple of 16, or blocks that are not whole tiles of 64 columns
            dividing the row, nor the whole row.
    """

    width: int
    block: int
    bits: int = MANTISSA_BITS + 1

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= MANTISSA_BITS + 1:
            raise ValueError(f"mantissas of {self.bits} bits, expected 2 to {MANTISSA_BITS + 1}")
        if self.width < 1 or self.width % LANES:
            raise ValueError(f"rows of {self.width} columns, expected a multiple of {LANES}")
        tiles = self.block > 0 and self.block % TILE_COLUMNS == 0 and self.width % self.block == 0
        if not (tiles or self.block == self.width):
            raise ValueError(
                f"blocks of {self.block} columns do not fit rows of {self.width}: expected a multiple of "
                f"{TILE_COLUMNS} that divides the row, or the whole row"
            )

    @staticmethod
    def of(width: int, block: int | None, bits: int = MANTISSA_BITS + 1) -> BlockLayout:
        """Blocks of ``block`` columns (None: one for the row) where they divide the row, else one block."""
        fits = block is not None and block % TILE_COLUMNS == 0 and width % block == 0
        return BlockLayout(width=width, block=block if fits and block is not None else width, bits=bits)

    @property
    def limit(self) -> int:
        """Largest magnitude of a mantissa."""
        return (1 << (self.bits - 1)) - 1

    @property
    def groups(self) -> int:
        return self.width // self.block

    @property
    def padded(self) -> int:
        """Columns of the mantissas as stored: whole tiles of 64, zeros at the end."""
        return padded_columns(self.width)


def bit_length(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Bits of non-negative integers below 2**52; 0 has none."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def down_shift(peak: NDArray[np.int64], bits: int = MANTISSA_BITS) -> NDArray[np.int64]:
    """NumPy meaning of :func:`emit_down_shift`: the least s with ``shift_round(peak, s) < 2**bits``."""
    shift = np.maximum(bit_length(peak) - bits, 0)
    return shift + (shift_round(peak, shift) >= 1 << bits)


def quantize(
    values: NDArray[np.int64], exponents: NDArray[np.int64], layout: BlockLayout
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """NumPy meaning of :func:`emit_quantize_row`.

    Args:
        values: int[m, width], to be read times 2**exponents.
        exponents: int[m].
        layout: of the result.

    Returns:
        mantissas int8[m, padded], exponents int32[m, groups].
    """
    m = values.shape[0]
    blocks = values.astype(np.int64).reshape(m, layout.groups, layout.block)
    shift = down_shift(np.abs(blocks).max(axis=2), layout.bits - 1)
    mantissas = shift_round(blocks, shift[:, :, None]).reshape(m, layout.width)
    padded = np.pad(mantissas, ((0, 0), (0, layout.padded - layout.width)))
    return padded.astype(np.int8), (exponents[:, None] + shift).astype(np.int32)


def fine_part(
    values: NDArray[np.int64],
    exponents: NDArray[np.int64],
    blocks: tuple[NDArray[np.int8], NDArray[np.int32]],
    layout: BlockLayout,
) -> NDArray[np.int8]:
    """The fine part int8[m, width] of ``blocks``, which :func:`quantize` made of the other arguments."""
    shift = np.repeat(blocks[1] - exponents[:, None], layout.block, axis=1).astype(np.int64)
    rest = values - (blocks[0][:, : layout.width].astype(np.int64) << shift)
    moved = shift_round(rest << np.maximum(FINE_BITS - shift, 0), shift - FINE_BITS)
    return np.minimum(moved, 127).astype(np.int8)


def values_of(
    mantissas: NDArray[np.int8],
    exponents: NDArray[np.int32],
    layout: BlockLayout,
    channels: NDArray[np.int8] | None = None,
    fine: NDArray[np.int8] | None = None,
) -> NDArray[np.float64]:
    """float64[m, width]: what blocks stand for."""
    scales = np.repeat(exponents.astype(np.int64), layout.block, axis=1)
    if channels is not None:
        scales = scales + channels.astype(np.int64)
    values = mantissas[:, : layout.width].astype(np.float64)
    if fine is not None:
        values += fine / (1 << FINE_BITS)
    return np.ldexp(values, scales)


def emit_bit_length(value: Any) -> Any:
    """Bits of an int32 scalar >= 0."""
    return T.int32(32) - leading_zeros(value, "int32")


def emit_down_shift(peak: Any, bits: int = MANTISSA_BITS) -> Any:
    """The shift that brings int32 ``peak`` >= 0 below 2**bits, rounding included."""
    shift = settle(T.max(emit_bit_length(peak) - bits, T.int32(0)))
    half = T.shift_right(T.shift_left(T.int32(1), shift), T.int32(1))
    rounded = T.shift_right(peak + half, shift)
    return settle(shift + T.Cast("int32", rounded >= 1 << bits))


def emit_quantize_row(
    layout: BlockLayout,
    source: Any,
    base: Any,
    mantissas: Any,
    exponents: Any,
    row: Any,
    fine: Any = None,
    isa: str = "",
) -> None:
    """Makes row ``row`` of the blocks from an int32 row.

    Args:
        layout: of the result.
        source: ``source(column)`` is int32x16 from a column on; read twice.
        base: int32 exponent of the source.
        mantissas, exponents: int8[m, padded] and int32[m, groups].
        row: index.
        fine: int8[m, width] for the fine part, or None.
        isa: the kernel ISA; AVX-512 packs four vectors at once.
    """
    vectors = layout.block // LANES
    together = PACKED if isa in ("avx512_vbmi", "amx") and vectors % PACKED == 0 else 1
    with T.serial(0, layout.groups) as g:
        first = T.Bind(g * layout.block)
        shift = emit_down_shift(emit_peak(source, first, vectors), layout.bits - 1)
        put(exponents, (row, g), base + shift)
        wide = T.Bind(splat(shift))
        half = T.Bind(splat(T.Bind(rounding_half(shift, 1))))
        rest = None if fine is None else _Fine(shift)
        with T.serial(0, vectors // together) as v:
            packed = []
            for i in range(together):
                column = T.Bind(first + (v * together + i) * LANES)
                value = T.Bind(source(column))
                raised = value + half
                shifted = psrav(raised, wide) if together > 1 else T.shift_right(raised, wide)
                packed.append(T.Bind(shifted))
                if rest is not None:
                    store(fine, (row, column), rest(value - T.shift_left(packed[-1], wide)), LANES)
            column = T.Bind(first + v * (together * LANES))
            narrow = pack_bytes(packed) if together > 1 else T.Cast("int8x16", packed[0])
            store(mantissas, (row, column), narrow, together * LANES)
    for column in range(layout.width, layout.padded, LANES):
        store(mantissas, (row, column), T.broadcast(T.int8(0), LANES), LANES)


class _Fine:
    """Emits fine parts, ``fine_part``, in blocks that were shifted by the int32 scalar ``shift``."""

    def __init__(self, shift: Any) -> None:
        self._up = T.Bind(splat(T.max(FINE_BITS - shift, T.int32(0))))
        self._down = T.Bind(splat(T.max(shift - FINE_BITS, T.int32(0))))
        self._half = T.Bind(rounding_half(self._down, LANES))

    def __call__(self, rest: Any) -> Any:
        moved = vector_shift_round(T.shift_left(rest, self._up), self._down, self._half)
        return T.Cast("int8x16", T.min(moved, isplat(127)))


def pack_bytes(vectors: list[Any]) -> Any:
    """int8x64 of four int32x16, limited to -128..127, on AVX-512: half of what four conversions cost."""
    pairs = [
        T.call_llvm_pure_intrin("int16x32", "llvm.x86.avx512.packssdw.512", *vectors[i : i + 2])
        for i in (0, 2)
    ]
    packed = T.call_llvm_pure_intrin("int8x64", "llvm.x86.avx512.packsswb.512", *pairs)
    # Lanes of 128 bits hold four columns of each vector.
    order = [PACKED * lane + vector for vector in range(PACKED) for lane in range(PACKED)]
    return as_type(shuffle([T.Bind(as_type(packed, "int32x16"))], order), "int8x64")


def emit_peak(source: Any, first: Any, vectors: int) -> Any:
    """The largest magnitude, int32, of ``vectors`` x 16 columns from ``first`` on."""
    peak = scratch((LANES,), "int32")
    store(peak, (0,), isplat(0), LANES)
    with T.serial(0, vectors) as v:
        value = T.Bind(source(first + v * LANES))
        store(peak, (0,), T.max(load(peak, (0,), LANES), magnitude(value)), LANES)
    return settle(tree_reduce(load(peak, (0,), LANES), LANES, T.max))


def magnitude(value: Any) -> Any:
    """|value| of int32x16."""
    return T.max(value, isplat(0) - value)
