# SPDX-License-Identifier: Apache-2.0
"""Vector arithmetic shared by the float kernels: exponential, logarithm, tails. Equal on every ISA level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .tir import LANES, T, as_type, fsplat, intrinsic, isplat, shuffle, times

EXP_LOWEST = -87.0
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG_TERMS = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SQRT2 = 1.41421356237
_EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)


def vector_exp(x: Any, lanes: int = LANES) -> Any:
    """exp(x) for x <= 0 within 2 ulp (Cephes' expf); inputs below -87 give exp(-87), about 1e-38."""
    x = T.Bind(T.max(x, fsplat(EXP_LOWEST, lanes)))
    n = T.Bind(intrinsic(f"float32x{lanes}", "llvm.rint", T.Bind(x * fsplat(1.44269504088896341, lanes))))
    high, low = (times(n, fsplat(part, lanes), lanes) for part in (_LN2_HIGH, _LN2_LOW))
    r = T.Bind((x - high) - low)
    poly = T.Bind((times(polynomial(_EXP_TERMS, r, lanes), r * r, lanes) + r) + fsplat(1.0, lanes))
    exponent = T.shift_left(T.Cast(f"int32x{lanes}", n), isplat(23, lanes))
    return as_type(as_type(poly, f"int32x{lanes}") + exponent, f"float32x{lanes}")


def vector_log(x: Any, lanes: int = LANES) -> Any:
    """log(x) for normal x > 0 within 2 ulp (Cephes' logf)."""
    bits = T.Bind(as_type(x, f"int32x{lanes}"))
    mantissa = T.bitwise_or(T.bitwise_and(bits, isplat(0x7FFFFF, lanes)), isplat(127 << 23, lanes))
    m = T.Bind(as_type(mantissa, f"float32x{lanes}"))
    large = m > fsplat(_SQRT2, lanes)
    exponent = T.shift_right(bits, isplat(23, lanes)) - isplat(127, lanes)
    e = T.Bind(T.Cast(f"float32x{lanes}", exponent + T.Select(large, isplat(1, lanes), isplat(0, lanes))))
    r = T.Bind(T.Select(large, m * fsplat(0.5, lanes), m) - fsplat(1.0, lanes))
    square = T.Bind(times(r, r, lanes))
    tail = times(polynomial(_LOG_TERMS, r, lanes) * r, square, lanes)
    tail = tail + times(e, fsplat(_LN2_LOW, lanes), lanes)
    tail = tail - times(square, fsplat(0.5, lanes), lanes)
    return (r + tail) + times(e, fsplat(_LN2_HIGH, lanes), lanes)


def first_lane(vector: Any) -> Any:
    """The scalar in lane 0."""
    return shuffle([T.Bind(vector)], [0])


def polynomial(terms: Sequence[float], x: Any, lanes: int) -> Any:
    """Horner's rule, highest power first."""
    value: Any = fsplat(terms[0], lanes)
    for term in terms[1:]:
        value = times(value, x, lanes) + fsplat(term, lanes)
    return value


def for_vectors(width: int, vector: Callable[[Any], None], scalar: Callable[[Any], None]) -> None:
    """Calls ``vector(start)`` for whole vectors of 16 columns, ``scalar(column)`` for the rest."""
    whole = width // LANES
    if whole:
        with T.serial(0, whole) as i:
            vector(i * LANES)
    if width % LANES:
        with T.serial(whole * LANES, width) as column:
            scalar(column)
