# SPDX-License-Identifier: Apache-2.0
"""Greedy binary codes (Chung et al. 2020; Guo et al. 2017): plane by plane on the residual.

b_i = sign(r_{i-1}), alpha_i = mean |r_{i-1}|, r_i = r_{i-1} - alpha_i b_i. With an offset the
residual starts at w - mean(w).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import ScaleDtype
from schedules.packing import BitPlanes

from .quantizer import SolvedGroups, quantize_rows, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """The paper's quantizer. ``threads`` None uses every core."""

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


def _solve(groups: NDArray[np.float32], bits: int, offset: bool, scale_dtype: ScaleDtype) -> SolvedGroups:
    codes = np.empty((bits, *groups.shape), np.bool_)
    scales = np.empty((bits, len(groups)), scale_dtype)
    offsets = stored(groups.mean(1, dtype=np.float64), scale_dtype) if offset else None
    residual = groups.copy() if offsets is None else groups - offsets.astype(np.float32)[:, None]
    for plane in range(bits):
        np.greater_equal(residual, 0, out=codes[plane])
        scales[plane] = stored(np.abs(residual).mean(1, dtype=np.float64), scale_dtype)
        alpha = scales[plane].astype(np.float32)[:, None]
        residual -= np.where(codes[plane], alpha, -alpha)
    return SolvedGroups(codes=codes, scales=scales, offsets=offsets)
