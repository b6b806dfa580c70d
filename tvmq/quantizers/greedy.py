# SPDX-License-Identifier: Apache-2.0
"""Greedy binary codes (Chung et al. 2020; Guo et al. 2017): plane by plane on the residual.

b_i = sign(r_{i-1}), alpha_i = mean |r_{i-1}|, r_i = r_{i-1} - alpha_i b_i. With an offset the
residual starts at w - mean(w).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvmq.outliers import Taken

from .quantizer import Floats, Form, RowQuantizer, SolvedRows, Solver, stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(RowQuantizer):
    """The paper's quantizer."""

    def solver(self, form: Form, moments: NDArray[np.floating] | None) -> Solver:
        def solve(rows: NDArray[np.float32], taken: Taken) -> SolvedRows:
            groups = rows.reshape(-1, form.group)
            centre = groups.mean(1, dtype=np.float64)[None] if form.offset else np.empty((0, len(groups)))
            scales, _ = _planes(groups, form.bits, None, centre)
            params = stored(np.concatenate([scales, centre]), form.scale_dtype)
            _, codes = _planes(groups, form.bits, params[: form.bits], params[form.bits :])
            return SolvedRows(codes=codes, params=params)

        return solve


def _planes(
    groups: NDArray[np.float32], bits: int, scales: Floats | None, centre: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Scales [bits, G] and codes [bits, G, m] by the residual; with given ``scales`` only the codes."""
    codes = np.empty((bits, *groups.shape), np.bool_)
    found = np.empty((bits, len(groups))) if scales is None else scales
    residual = groups - centre.sum(0).astype(np.float32)[:, None]
    for plane in range(bits):
        np.greater_equal(residual, 0, out=codes[plane])
        if scales is None:
            found[plane] = np.abs(residual).mean(1, dtype=np.float64)
        alpha = found[plane].astype(np.float32)[:, None]
        residual -= np.where(codes[plane], alpha, -alpha)
    return found, codes
