# SPDX-License-Identifier: Apache-2.0
"""Whole levels with a power of two per row: the 8-bit weights of the block-integer mode.

``weight ~ level * 2**exponent`` with levels in -127..127. Exponents are the least that fit, or one less with
clipping where that is nearer; rows of zeros have the lowest, so that they move no other row down. With the
second moments of the inputs, columns are rounded one after the other by falling moment and errors are pushed
to those that follow (GPTQ, Frantar et al. 2023; in the form of LDLQ, Chee et al. 2023, as in ``hessian``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from schedules.level_packing import LIMIT

BLOCK = 64
DAMPING = 0.01
LOWEST, HIGHEST = -100, 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A matrix as levels int8[n, k] and row exponents int8[n]."""

    levels: NDArray[np.int8]
    exponents: NDArray[np.int8]

    def dequantize(self) -> NDArray[np.float32]:
        """float32[n, k]."""
        return np.ldexp(self.levels.astype(np.float32), self.exponents.astype(np.int32)[:, None])


def quantize_levels(
    weight: NDArray[np.floating],
    moments: NDArray[np.floating] | None = None,
    least: NDArray[np.integer] | None = None,
) -> Levels:
    """Rounds a matrix [n, k] to levels.

    Args:
        weight: finite.
        moments: [k, k], E[x x^T] of the inputs; None rounds every weight by itself.
        least: int[n], exponents that rows have at least (their biases need them).

    Raises:
        ValueError: weights that are not finite, exponents beyond 127, moments that are not positive.
    """
    w = np.asarray(weight, np.float64)
    if not np.isfinite(w).all():
        raise ValueError("the weight holds NaN or infinite values (quantizing needs finite numbers)")
    exponents = _exponents(w) if least is None else np.maximum(_exponents(w), least)
    if exponents.max(initial=0) > HIGHEST:
        raise ValueError("a weight or bias is too large for 8-bit exponents (rescale the model)")
    scaled = np.ldexp(w, -exponents[:, None])
    levels = _rounded(scaled) if moments is None else _compensated(scaled, moments)
    return Levels(levels=levels.astype(np.int8), exponents=exponents.astype(np.int8))


def _rounded(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(np.rint(scaled), -LIMIT, LIMIT)


def _exponents(w: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64[n]: the exponent of each row, of two, that rounds it best."""
    peak = np.abs(w).max(axis=1, initial=0)
    fits = np.where(peak > 0, np.maximum(np.frexp(peak / LIMIT)[1].astype(np.int64), LOWEST), LOWEST)
    fits -= (fits > LOWEST) & (np.ldexp(LIMIT + 0.5, fits - 1) > peak)
    errors = [_error(w, fits), _error(w, fits - 1)]
    return fits - ((errors[1] < errors[0]) & (fits > LOWEST))


def _error(w: NDArray[np.float64], exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    scaled = np.ldexp(w, -exponents[:, None])
    return ((np.ldexp(_rounded(scaled), exponents[:, None]) - w) ** 2).sum(axis=1)


def _compensated(scaled: NDArray[np.float64], moments: NDArray[np.floating]) -> NDArray[np.float64]:
    """Levels chosen one column after the other."""
    k = scaled.shape[1]
    if moments.shape != (k, k) or not np.isfinite(moments).all():
        raise ValueError(f"the moments are {moments.shape}; {k} columns need finite {(k, k)}")
    diagonal = np.diag(moments).astype(np.float64)
    order = np.argsort(-diagonal, kind="stable")
    damped = moments[np.ix_(order, order)].astype(np.float64)
    damped[np.arange(k), np.arange(k)] += DAMPING * diagonal.mean() or 1.0
    try:
        factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        raise ValueError("the moments are not positive definite (calibrate again)") from None
    pushed = factor / np.diag(factor)
    result = np.empty_like(scaled)
    with threadpool_limits(1, "blas"):
        result[:, order] = _sweep(np.ascontiguousarray(scaled[:, order]), pushed)
    return result


def _sweep(w: NDArray[np.float64], pushed: NDArray[np.float64]) -> NDArray[np.float64]:
    """level(w_j + sum_{i<j} error_i pushed_ij), in blocks of columns; errors are w - level."""
    n, k = w.shape
    levels, errors = np.empty((n, k)), np.zeros((n, k))
    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        wanted = w[:, first:last] + errors[:, :first] @ pushed[:first, first:last]
        for j in range(first, last):
            target = wanted[:, j - first] + errors[:, first:j] @ pushed[first:j, j]
            levels[:, j] = _rounded(target)
            errors[:, j] = w[:, j] - levels[:, j]
    return levels
