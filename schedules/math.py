# SPDX-License-Identifier: Apache-2.0
"""Vector arithmetic shared by the float kernels: exponential, tails, sums in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tir import LANES, T, as_type, fsplat, intrinsic, isplat

EXP_LOWEST = -87.0
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)


def vector_exp(x: Any, lanes: int = LANES) -> Any:
    """exp(x) for x <= 0 within 2 ulp (Cephes' expf); inputs below -87 give exp(-87), about 1e-38."""
    x = T.Bind(T.max(x, fsplat(EXP_LOWEST, lanes)))
    n = T.Bind(intrinsic(f"float32x{lanes}", "llvm.rint", T.Bind(x * fsplat(1.44269504088896341, lanes))))
    r = T.Bind((x - n * fsplat(_LN2_HIGH, lanes)) - n * fsplat(_LN2_LOW, lanes))
    poly: Any = fsplat(_EXP_TERMS[0], lanes)
    for term in _EXP_TERMS[1:]:
        poly = poly * r + fsplat(term, lanes)
    poly = T.Bind((poly * (r * r) + r) + fsplat(1.0, lanes))
    exponent = T.shift_left(T.Cast(f"int32x{lanes}", n), isplat(23, lanes))
    return as_type(as_type(poly, f"int32x{lanes}") + exponent, f"float32x{lanes}")


def for_vectors(width: int, vector: Callable[[Any], None], scalar: Callable[[Any], None]) -> None:
    """Calls ``vector(start)`` for whole vectors of 16 columns, ``scalar(column)`` for the rest."""
    whole = width // LANES
    if whole:
        with T.serial(0, whole) as i:
            vector(i * LANES)
    if width % LANES:
        with T.serial(whole * LANES, width) as column:
            scalar(column)
