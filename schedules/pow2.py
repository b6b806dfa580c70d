# SPDX-License-Identifier: Apache-2.0
"""Scales with a shared power of two: what a row (and group) stores instead of one float per plane.

alpha_i = m_i 2^e, the mantissas m_i whole numbers with sum |m_i| <= 127, the offset's among them. Every
level of the row, +-m_1 +- .. +-m_q (+ m_z), is then a whole number of 7 bits and a sign, times the same power
of two: products with int8 activations need no float, and q + 1 bytes are stored instead of 2 q.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POW2 = "pow2"
"""The scale dtype of a plan that means this form."""
LIMIT = 127
"""Largest sum of the mantissas' magnitudes: every level fits in int8."""
LOWEST, HIGHEST = -100, 100
"""Exponents in use: scales, levels and their products with activations stay normal in FP32."""


def scale_storage(scale_dtype: str) -> str:
    """The dtype of the arrays that hold scales and offsets of this scale dtype."""
    return "int8" if scale_dtype == POW2 else scale_dtype


def pow2_scales(values: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Scales (and an offset) rounded to whole mantissas over the smallest exponent that holds them.

    The planes of least-squares scales are nearly orthogonal, so that the nearest mantissas are nearly the
    best: they add 0.1 % (2 bits), 0.5 % (3 bits) and 2.5 % (4 bits) to the squared error of alternating codes
    on Gaussian rows of 512.

    Args:
        values: float[u, ...], along the first axis those that share an exponent; finite.

    Returns:
        mantissas int8[u, ...] and exponents int8[...]; values already of this form keep their value.

    Raises:
        ValueError: values beyond 127 times the largest exponent.
    """
    wide = np.asarray(values, np.float64)
    total = np.abs(wide).sum(0)
    # total < 2^f: divided by 2^(f - 8) it may already be rounded to 127, by 2^(f - 6) it surely is below
    exponents = np.maximum(np.frexp(total)[1] - 8, LOWEST) * (total > 0)
    for _ in range(2):
        exponents = exponents + (np.abs(_rounded(wide, exponents)).sum(0) > LIMIT)
    if exponents.max(initial=LOWEST) > HIGHEST or not np.isfinite(total).all():
        raise ValueError(
            f"a scale exceeds pow2 (largest {LIMIT} * 2^{HIGHEST}); use scales in float32 or rescale"
        )
    return _rounded(wide, exponents).astype(np.int8), exponents.astype(np.int8)


def _rounded(values: NDArray[np.float64], exponents: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.rint(np.ldexp(values, -exponents))


def pow2_values(mantissas: NDArray[np.int8], exponents: NDArray[np.int8]) -> NDArray[np.float32]:
    """The scales that mantissas [..., s] over exponents [s] stand for, exactly: float32[..., s]."""
    return np.ldexp(mantissas.astype(np.float32), exponents)


def check_pow2(mantissas: NDArray[np.int8], exponents: NDArray[np.int8]) -> None:
    """ValueError unless ``mantissas`` [u, ...] over ``exponents`` [...] are what ``pow2_scales`` can give."""
    if (np.abs(mantissas.astype(np.int32)).sum(0) > LIMIT).any():
        raise ValueError(f"mantissas of one row add up to more than {LIMIT}")
    if exponents.min(initial=LOWEST) < LOWEST or exponents.max(initial=LOWEST) > HIGHEST:
        raise ValueError(f"exponents must lie between {LOWEST} and {HIGHEST}")
