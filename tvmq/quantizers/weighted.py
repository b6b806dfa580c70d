# SPDX-License-Identifier: Apache-2.0
"""Alternating codes that count a column's error by how large its input is: the diagonal of H = E[x x^T].

Codes are still the nearest levels; the scales are those of weighted least squares. No error is moved to other
columns, so that it costs little more time than alternating codes; ``hessian`` does better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .alternating import Alternating
from .quantizer import Floats, Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted(Alternating):
    """``damping`` is added to the diagonal, relative to its mean."""

    damping: float = 0.01

    def weights(self, form: Form, moments: NDArray[np.floating] | None) -> Floats:
        """ValueError without ``moments``, or for such as no inputs have."""
        if moments is None:
            raise ValueError("weighted codes need calibration data, and there are none")
        if moments.shape != (form.k, form.k):
            raise ValueError(f"the moments are {moments.shape}; {form.k} columns need {(form.k, form.k)}")
        diagonal = np.diag(moments).astype(np.float64)
        if not np.isfinite(diagonal).all() or diagonal.min() < 0:
            raise ValueError("the moments hold NaN, infinite or negative values (calibrate again)")
        damped = diagonal + (self.damping * diagonal.mean() or 1.0)
        return damped.reshape(form.groups, form.group)
