# SPDX-License-Identifier: Apache-2.0
"""Binary codes that minimize the error of the outputs: tr(E H E^T) with E = W - Q and H = E[x x^T].

A first sweep goes through the columns by falling H_jj and takes for each the level nearest to what is left
after all columns before it. With H = V V^T, V upper triangular in that order,

    tr(E H E^T) = sum_j V_jj^2 |E_j + sum_{i<j} E_i V_ij / V_jj|^2,

so it chooses level(W_j + sum_{i<j} E_i V_ij / V_jj): GPTQ (Frantar et al. 2023) in the form of LDLQ (Chee et
al. 2023). Then scales and codes take turns: scales by least squares under H, group after group, and one sweep
of coordinate descent over the codes, level(Q_j + (E H)_j / H_jj). Neither can raise the error but for the
rounding of the scales; the best state of each row is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvmq.outliers import Taken

from .alternating import RIDGE, code_patterns, fit, solve_small
from .quantizer import Floats, Form, RowQuantizer, SolvedRows, Solver, stored

Array = NDArray[np.float32]

BLOCK = 64
"""Columns whose errors are carried on one by one; the blocks before them act by one matrix product."""
CHUNK_ROWS = 512
"""Rows that are solved together: a block of their errors stays in the second-level cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hessian(RowQuantizer):
    """Codes compensated by the second moments of the inputs.

    Attributes:
        damping: added to the diagonal of H, relative to its mean.
        rounds: how often scales and codes take turns after the first sweep.
    """

    damping: float = 0.01
    rounds: int = 3

    def solver(self, form: Form, moments: NDArray[np.floating] | None) -> Solver:
        """ValueError without ``moments``, or for such as no inputs have."""
        if moments is None:
            raise ValueError("hessian codes need calibration data, and there are none")
        metric = _Metric.of(moments, form.k, self.damping)

        def solve(rows: Array, taken: Taken) -> SolvedRows:
            state = _Rows(rows, taken, metric, form)
            state.solve(self.rounds)
            return state.result()

        return solve

    def chunk_rows(self, form: Form) -> int:
        return CHUNK_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metric:
    """H of one matrix in the order in which its columns are visited.

    Attributes:
        order: intp[k], columns by falling H_jj.
        damped: float32[k, k], H + damping mean(diag H) I in that order.
        first: float32[k, k], row j holds V_ij / V_jj for i < j.
        weights: float64[k], V_jj^2 by column of the matrix.
    """

    order: NDArray[np.intp]
    damped: Array
    first: Array
    weights: Floats

    @classmethod
    def of(cls, moments: NDArray[np.floating], k: int, damping: float) -> _Metric:
        if moments.shape != (k, k):
            raise ValueError(f"the moments are {moments.shape}; {k} columns need {(k, k)}")
        if not np.isfinite(moments).all():
            raise ValueError("the moments hold NaN or infinite values (calibrate again)")
        diagonal = np.diag(moments).astype(np.float64)
        order = np.argsort(-diagonal, kind="stable")
        wide = moments[np.ix_(order, order)].astype(np.float64)
        wide[np.arange(k), np.arange(k)] += damping * diagonal.mean() or 1.0
        damped = wide.astype(np.float32)
        try:
            wide = np.linalg.cholesky(wide[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            raise ValueError("the moments are not positive definite (calibrate again)") from None
        diagonal = np.diag(wide).copy()
        wide /= diagonal
        weights = np.empty(k)
        weights[order] = diagonal**2
        return cls(
            order=order, damped=damped, first=np.ascontiguousarray(wide.T, np.float32), weights=weights
        )


class _Rows:
    """Some rows of a matrix while they are solved, transposed: column j is row j of every array here."""

    def __init__(self, weight: Array, taken: Taken, metric: _Metric, form: Form) -> None:
        rows, k = weight.shape
        self.metric, self.form = metric, form
        self.patterns = code_patterns(form.bits, form.offset)
        self.weight: Array = np.ascontiguousarray(weight.T[metric.order])
        self.free = _Free.of(taken, metric.order, rows)
        self.weight[self.free.columns, self.free.rows] = taken.values
        self.group_of = metric.order // form.group
        self.columns = [np.flatnonzero(self.group_of == g) for g in range(form.groups)]
        # [groups, bits (+1), rows], already rounded
        params = fit(
            weight.reshape(-1, form.group),
            form.bits,
            form.offset,
            weights=metric.weights.reshape(-1, form.group),
        )
        self.params = self._stored(params.reshape(len(params), rows, -1).transpose(2, 0, 1))
        self.codes = np.empty((k, rows), np.uint8)
        self.coded = np.empty((k, rows), np.float32)
        self.best_codes, self.best_params = self.codes.copy(), self.params.copy()
        self.best = np.full(rows, np.inf)
        self.best_values = taken.values.copy()

    def solve(self, rounds: int) -> None:
        """First sweep, then ``rounds`` times scales and codes."""
        metric = self.metric
        self._sweep(self.weight.copy(), self.weight, metric.first, np.ones(len(self.weight), np.float32))
        residual: Array = np.matmul(metric.damped, self.weight - self.coded, dtype=np.float32)
        self._keep(residual)
        scale: Array = np.reciprocal(np.diag(metric.damped), dtype=np.float32)
        for _ in range(rounds):
            self._solve_scales(residual)
            self._keep(residual)
            before = self.coded.copy()
            base = np.multiply(residual, scale[:, None], dtype=np.float32) + before
            self._sweep(base, before, metric.damped, scale)
            residual -= metric.damped @ (self.coded - before)
            self._keep(residual)

    def _sweep(self, base: Array, reference: Array, feedback: Array, scale: Array) -> None:
        """Code the columns in order: level(base_j - scale_j sum_{i<j} (Q_i - reference_i) feedback_ji).

        ``base`` is used up.
        """
        k = len(base)
        tables = [_Levels.of(self.patterns, params) for params in self.params]
        passed = np.empty_like(base)
        for start in range(0, k, BLOCK):
            end = min(start + BLOCK, k)
            if start:
                base[start:end] -= (feedback[start:end, :start] @ passed[:start]) * scale[start:end, None]
            for j in range(start, end):
                target = base[j]
                if j > start:
                    target -= (feedback[j, start:j] * scale[j]) @ passed[start:j]
                tables[self.group_of[j]].nearest(target, self.codes[j], self.coded[j])
                free = self.free.of_column(j)
                self.coded[j, free] = target[free]
                np.subtract(self.coded[j], reference[j], out=passed[j])

    def _solve_scales(self, residual: Array) -> None:
        """Scales by least squares under H with the codes as they are, one group after the other.

        For group g with codes B: (B^T H_gg B) d = B^T (E H)_g, alpha += d. ``residual`` is (E H)^T, kept up.
        Outliers stay what they are.
        """
        damped = self.metric.damped
        for g, columns in enumerate(self.columns):
            signs = self._signs(self.codes[columns])
            free = self.free.mask[columns]
            signs[:, free] = 0
            block = damped[np.ix_(columns, columns)]
            weighted = np.stack([block @ sign for sign in signs])
            normal = np.einsum("ukr,vkr->uvr", signs, weighted, dtype=np.float64)
            count = len(signs)
            normal[np.arange(count), np.arange(count)] += RIDGE * np.trace(block)
            step = solve_small(normal, np.einsum("ukr,kr->ur", signs, residual[columns], dtype=np.float64))
            self.params[g] = self._stored(self.params[g] + step)
            table = (self.patterns @ self.params[g]).astype(np.float32)
            coded = np.take_along_axis(table, self.codes[columns].astype(np.intp), 0)
            coded[free] = self.coded[columns][free]
            residual -= damped[:, columns] @ (coded - self.coded[columns])
            self.coded[columns] = coded

    def _signs(self, codes: NDArray[np.uint8]) -> Array:
        """float32[bits (+1), columns, rows] of -1 and +1 of pattern numbers, ones for the offset."""
        bits = self.form.bits
        signs = np.ones((bits + self.form.offset, *codes.shape), np.float32)
        for plane in range(bits):
            np.subtract(((codes >> (bits - 1 - plane)) & 1) * np.float32(2), 1, out=signs[plane])
        return signs

    def _stored(self, params: Floats) -> Floats:
        """``params`` [..., bits (+1), rows] as they are stored."""
        return np.moveaxis(stored(np.moveaxis(params, -2, 0), self.form.scale_dtype), 0, -2)

    def _keep(self, residual: Array) -> None:
        """Remember the rows whose (E H E^T)_rr is lower now; ``residual`` is (E H)^T."""
        error = np.einsum("kr,kr->r", self.weight - self.coded, residual, dtype=np.float64)
        better = error < self.best
        self.best[better] = error[better]
        self.best_codes[:, better] = self.codes[:, better]
        self.best_params[:, :, better] = self.params[:, :, better]
        values = self.coded[self.free.columns, self.free.rows]
        self.best_values = np.where(better[self.free.rows], values, self.best_values)

    def result(self) -> SolvedRows:
        k, rows = self.best_codes.shape
        bits = self.form.bits
        codes = np.empty((rows, k), np.uint8)
        codes[:, self.metric.order] = self.best_codes.T
        params = self.best_params.transpose(1, 2, 0)  # [bits (+1), rows, groups]
        places = np.arange(bits, dtype=np.uint8)[::-1, None, None]
        planes = ((codes >> places) & 1).astype(np.bool_).reshape(bits, rows, self.form.groups, -1)
        planes ^= (params[:bits] < 0)[..., None]
        scales = np.abs(params[:bits])
        order = np.argsort(-scales, axis=0, kind="stable")
        return SolvedRows(
            codes=np.take_along_axis(planes, order[..., None], 0),
            params=np.concatenate([np.take_along_axis(scales, order, 0), params[bits:]]),
            values=self.best_values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Free:
    """Weights that may become anything: in each sweep they take up the errors of the columns before them.

    Attributes:
        columns, rows: intp[m], place of each in the transposed, ordered arrays.
        mask: bool[k, r].
        by_column: their numbers in the order of the columns.
        starts: intp[k + 1], those of column j are by_column[starts[j]:starts[j + 1]].
    """

    columns: NDArray[np.intp]
    rows: NDArray[np.intp]
    mask: NDArray[np.bool_]
    by_column: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, taken: Taken, order: NDArray[np.intp], rows: int) -> _Free:
        k = len(order)
        visited = np.empty(k, np.intp)
        visited[order] = np.arange(k)
        columns, within = visited[taken.places % k], taken.places // k
        mask = np.zeros((k, rows), np.bool_)
        mask[columns, within] = True
        by_column = np.argsort(columns, kind="stable")
        starts = np.searchsorted(columns[by_column], np.arange(k + 1))
        return cls(columns=columns, rows=within, mask=mask, by_column=by_column, starts=starts)

    def of_column(self, j: int) -> NDArray[np.intp]:
        """Rows of the free weights of column j."""
        return self.rows[self.by_column[self.starts[j] : self.starts[j + 1]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Levels:
    """Levels of one group of columns, per row, ascending: flat [levels * rows]."""

    values: Array
    numbers: NDArray[np.uint8]
    middles: Array
    rows: NDArray[np.intp]

    @classmethod
    def of(cls, patterns: Floats, params: Floats) -> _Levels:
        values = patterns @ params
        order = np.argsort(values, axis=0, kind="stable")
        values = np.take_along_axis(values, order, 0)
        return cls(
            values=values.astype(np.float32).ravel(),
            numbers=order.astype(np.uint8).ravel(),
            middles=((values[1:] + values[:-1]) / 2).astype(np.float32),
            rows=np.arange(values.shape[1]),
        )

    def nearest(self, target: Array, numbers: NDArray[np.uint8], values: Array) -> None:
        """Pattern ``numbers`` and ``values`` of the levels nearest to ``target`` [rows], in place."""
        rank = np.add.reduce((target > self.middles).view(np.uint8), axis=0, dtype=np.uint8)
        place = rank.astype(np.intp) * len(self.rows) + self.rows
        np.take(self.values, place, out=values, mode="clip")
        np.take(self.numbers, place, out=numbers, mode="clip")
