# SPDX-License-Identifier: Apache-2.0
"""Round to nearest on a uniform grid, written as binary planes without loss.

A uniform code u = s (c - zp), c in 0 .. 2^q - 1, equals sum_i alpha_i b_i + z with
alpha_i = s 2^i / 2, b_i = 2 bit_i(c) - 1 and z = s ((2^q - 1) / 2 - zp): int8 and other uniform
formats are imported exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import ScaleDtype
from schedules.packing import BitPlanes

from .quantizer import SolvedGroups, quantize_rows, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundToNearest:
    """Uniform levels between each group's extremes (with an offset) or symmetric around zero."""

    threads: int | None = None

    def quantize(
        self,
        weight: NDArray[np.floating],
        *,
        bits: int,
        group_size: int | None,
        offset: bool,
        scale_dtype: ScaleDtype,
        moments: NDArray[np.floating] | None = None,
    ) -> BitPlanes:
        """See ``Quantizer.quantize``."""

        def solve(groups: NDArray[np.float32]) -> SolvedGroups:
            return _solve(groups, bits, offset, scale_dtype)

        return quantize_rows(
            weight,
            solve,
            bits=bits,
            group_size=group_size,
            offset=offset,
            scale_dtype=scale_dtype,
            threads=self.threads,
        )


def planes_from_uniform(
    codes: NDArray[np.uint8],
    step: NDArray[np.floating],
    zero_point: NDArray[np.floating],
    *,
    bits: int,
    scale_dtype: ScaleDtype,
) -> BitPlanes:
    """Import a matrix that already is uniform: ``step * (codes - zero_point)``.

    Args:
        codes: uint8[n, k], each below 2^bits.
        step: [n, groups], the distance of two levels.
        zero_point: [n, groups], the code that means zero.
        bits: planes to make, 1..8.
        scale_dtype: exact where step / 2 and the offset are exact in it.

    Raises:
        ValueError: codes outside 0 .. 2^bits - 1, or scales that ``scale_dtype`` cannot hold.
    """
    n, k = codes.shape
    if not 1 <= bits <= 8 or codes.max(initial=0) >= 1 << bits:
        raise ValueError(f"codes reach {codes.max(initial=0)}, which {bits} bits do not hold")
    if step.shape != zero_point.shape or step.shape[0] != n or k % step.shape[1]:
        raise ValueError(
            f"step {step.shape} and zero point {zero_point.shape} do not fit codes {codes.shape}"
        )
    half_step = stored(np.asarray(step, np.float64) / 2, scale_dtype)
    offsets = np.asarray(step, np.float64) * (((1 << bits) - 1) / 2 - zero_point)
    return BitPlanes(
        planes=np.packbits(_bits_of(codes, bits), axis=2, bitorder="little"),
        scales=_powers(half_step, bits, scale_dtype),
        offsets=stored(offsets, scale_dtype),
        shape=(n, k),
        group_size=k // step.shape[1],
    )


def _solve(groups: NDArray[np.float32], bits: int, offset: bool, scale_dtype: ScaleDtype) -> SolvedGroups:
    top = (1 << bits) - 1
    low, high = groups.min(1).astype(np.float64), groups.max(1).astype(np.float64)
    if not offset:
        high = np.maximum(-low, high)
        low = -high
    half_step = stored((high - low) / top / 2, scale_dtype)
    centre = stored((high + low) / 2, scale_dtype)
    inverse = np.zeros(len(groups), np.float64)
    np.divide(0.5, half_step.astype(np.float64), out=inverse, where=half_step > 0)
    position = (groups - centre.astype(np.float64)[:, None]) * inverse[:, None] + top / 2
    codes = np.clip(np.rint(position), 0, top).astype(np.uint8)
    return SolvedGroups(
        codes=_bits_of(codes, bits),
        scales=_powers(half_step, bits, scale_dtype),
        offsets=centre if offset else None,
    )


def _bits_of(codes: NDArray[np.uint8], bits: int) -> NDArray[np.bool_]:
    """bool[bits, ...]: the most significant bit first, as its scale is the largest."""
    return np.stack([(codes >> plane) & 1 for plane in reversed(range(bits))]).astype(np.bool_)


def _powers(half_step: NDArray[np.floating], bits: int, scale_dtype: ScaleDtype) -> NDArray[np.floating]:
    # Powers of two times the rounded half step: exact, so the levels stay evenly spaced.
    wide = half_step.astype(np.float64)
    return stored(np.stack([wide * 2.0**plane for plane in reversed(range(bits))]), scale_dtype)
