# SPDX-License-Identifier: Apache-2.0
"""Activations of linear layers, for the ends of the products. Equal on every ISA level.

``gelu`` is x Phi(x) with the normal distribution function Phi (the erf form), ``gelu_tanh`` its approximation
x sigmoid(2 y) with y = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016, arXiv 1606.08415).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .math import polynomial, vector_exp
from .tir import LANES, T, as_type, fsplat, intrinsic, isplat, times

ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "tanh")
"""Known names; "" leaves values as they are."""
_CUT, _SCALE = 5.5, 0.06611573
"""Phi is taken as 0 and 1 beyond the cut; 1 - Phi(5.5) is 1.9e-8. The scale is 2 / 5.5^2 and a trifle."""
_PHI_TERMS = (
    4.511760283e-4, -1.304429980e-3, 1.289517309e-3, -1.418044161e-3, 3.923265368e-3, -7.464921103e-3,
    1.064750954e-2, -1.478163600e-2, 2.023696593e-2, -2.608477801e-2, 3.208842522e-2, -3.879018537e-2,
    4.773667676e-2, -6.417238938e-2, 1.285519600e-1,
)  # fmt: skip
"""(Phi(x) - 1/2) / x in v = 2 (x / 5.5)^2 - 1, highest power first; Phi is exactly 1 at the cut."""


def activate(name: str, x: Any, lanes: int = LANES) -> Any:
    """The activation ``name`` of a float32 vector."""
    match name:
        case "":
            return x
        case "relu":
            return T.max(x, fsplat(0.0, lanes))
        case "gelu":
            return vector_gelu(x, lanes)
        case "gelu_tanh":
            return vector_gelu_tanh(x, lanes)
        case "tanh":
            return vector_tanh(x, lanes)
        case _:
            raise ValueError(f"unknown activation {name!r}; known: {', '.join(filter(None, ACTIVATIONS))}")


def reference(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """NumPy meaning of :func:`activate`, computed in double precision."""
    wide = x.astype(np.float64)
    match name:
        case "relu":
            wide = np.maximum(wide, 0)
        case "gelu":
            wide = 0.5 * wide * (1 + np.vectorize(math.erf, otypes=[np.float64])(wide / math.sqrt(2)))
        case "gelu_tanh":
            wide = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        case "tanh":
            wide = np.tanh(wide)
    return wide.astype(np.float32)


def vector_gelu(x: Any, lanes: int = LANES) -> Any:
    """x Phi(x) within 8e-7; 0 and x exactly where |x| > 5.5."""
    x = T.Bind(x)
    near = T.Bind(T.min(T.max(x, fsplat(-_CUT, lanes)), fsplat(_CUT, lanes)))
    v = T.Bind(times(near * near, fsplat(_SCALE, lanes), lanes) - fsplat(1.0, lanes))
    phi = times(near, polynomial(_PHI_TERMS, v, lanes), lanes) + fsplat(0.5, lanes)
    return x * phi


def vector_gelu_tanh(x: Any, lanes: int = LANES) -> Any:
    """x sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3), within 1e-6 and 5e-7 |x|."""
    x = T.Bind(x)
    cube = times(times(x * x, fsplat(0.044715, lanes), lanes), x, lanes) + x
    twice = T.Bind(cube * fsplat(2 * math.sqrt(2 / math.pi), lanes))
    small = T.Bind(vector_exp(fsplat(0.0, lanes) - _absolute(twice, lanes), lanes))
    top = T.Select(twice > fsplat(0.0, lanes), fsplat(1.0, lanes), small)
    return x * (top / (small + fsplat(1.0, lanes)))


def vector_tanh(x: Any, lanes: int = LANES) -> Any:
    """tanh(x) = sign(x) (1 - e) / (1 + e), e = exp(-2 |x|), within 2e-7."""
    x = T.Bind(x)
    small = T.Bind(vector_exp(_absolute(x, lanes) * fsplat(-2.0, lanes), lanes))
    size = T.Bind((fsplat(1.0, lanes) - small) / (small + fsplat(1.0, lanes)))
    sign = T.bitwise_and(as_type(x, f"int32x{lanes}"), isplat(-(2**31), lanes))
    return as_type(T.bitwise_or(as_type(size, f"int32x{lanes}"), sign), f"float32x{lanes}")


def _absolute(x: Any, lanes: int) -> Any:
    return intrinsic(f"float32x{lanes}", "llvm.fabs", T.Bind(x))
