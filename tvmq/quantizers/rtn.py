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
from schedules.pow2 import POW2
from tvmq.outliers import Taken

from .quantizer import Floats, Form, RowQuantizer, SolvedRows, Solver, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundToNearest(RowQuantizer):
    """Uniform levels between each group's extremes (with an offset) or symmetric around zero."""

    def solver(self, form: Form, moments: NDArray[np.floating] | None) -> Solver:
        """ValueError for pow2: few evenly spaced levels of 7 bits end where the weights do."""
        if form.scale_dtype == POW2:
            raise ValueError("rtn codes have no pow2 scales (take alternating, greedy or hessian codes)")

        def solve(rows: NDArray[np.float32], taken: Taken) -> SolvedRows:
            return _solve(rows.reshape(-1, form.group), form)

        return solve


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
        scale_dtype: float16 or float32; exact where step / 2 and the offset are exact in it.

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
        scales=_powers(half_step, bits, scale_dtype).astype(scale_dtype),
        offsets=stored(offsets, scale_dtype).astype(scale_dtype),
        shape=(n, k),
        group_size=k // step.shape[1],
    )


def _solve(groups: NDArray[np.float32], form: Form) -> SolvedRows:
    top = (1 << form.bits) - 1
    low, high = groups.min(1).astype(np.float64), groups.max(1).astype(np.float64)
    if not form.offset:
        high = np.maximum(-low, high)
        low = -high
    half_step = stored((high - low) / top / 2, form.scale_dtype)
    centre = stored((high + low) / 2, form.scale_dtype)
    inverse = np.zeros(len(groups), np.float64)
    np.divide(0.5, half_step, out=inverse, where=half_step > 0)
    position = (groups - centre[:, None]) * inverse[:, None] + top / 2
    codes = np.clip(np.rint(position), 0, top).astype(np.uint8)
    scales = _powers(half_step, form.bits, form.scale_dtype)
    return SolvedRows(
        codes=_bits_of(codes, form.bits),
        params=np.concatenate([scales, centre[None]]) if form.offset else scales,
    )


def _bits_of(codes: NDArray[np.uint8], bits: int) -> NDArray[np.bool_]:
    """bool[bits, ...]: the most significant bit first, as its scale is the largest."""
    return np.stack([(codes >> plane) & 1 for plane in reversed(range(bits))]).astype(np.bool_)


def _powers(half_step: Floats, bits: int, scale_dtype: ScaleDtype) -> Floats:
    # Powers of two times the rounded half step: exact, so the levels stay evenly spaced.
    return stored(np.stack([half_step * 2.0**plane for plane in reversed(range(bits))]), scale_dtype)
