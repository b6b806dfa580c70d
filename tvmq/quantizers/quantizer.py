# SPDX-License-Identifier: Apache-2.0
"""What every quantizer is, and the part all of them share: checks, row chunks, threads, storage.

A quantizer supplies a ``Solver`` for a batch of rows; ``RowQuantizer`` cuts the matrix into row chunks of a
fixed size (so that the result does not depend on the thread count), runs the solver on them in threads
(NumPy releases the GIL) and gathers ``BitPlanes``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from relay_passes.bit_plan import ScaleDtype
from schedules.outliers import Outliers
from schedules.packing import BitPlanes
from schedules.pow2 import POW2, pow2_scales, pow2_values, scale_storage
from tvmq.outliers import NOTHING, Taken, choose_outliers, halves, take_out

Floats = NDArray[np.float64]

CHUNK_WEIGHTS = 1 << 17
"""Weights per chunk: 512 KB of float32 and its temporaries stay in the second-level cache."""


class Quantizer(Protocol):
    """A method that turns a float matrix into binary planes."""

    def quantize(
        self,
        weight: NDArray[np.floating],
        *,
        bits: int,
        group_size: int | None,
        offset: bool,
        scale_dtype: ScaleDtype,
        outliers: float = 0.0,
        moments: NDArray[np.floating] | None = None,
    ) -> BitPlanes:
        """Quantize ``weight`` [n, k] to ``bits`` (1..8) planes.

        ``group_size`` columns share their scales (None: the whole row). ``scale_dtype`` is what the
        scales are stored in; the codes are chosen for the stored, rounded scales. ``outliers`` percent of the
        weights are taken out before, see ``tvmq.outliers``. ``moments`` [k, k] are E[x x^T] of the
        inputs, from ``tvmq.calibration``; codes that go by the weight alone do not depend on them.

        Raises:
            ValueError: empty, non-2-D or non-finite weight, impossible bits, group size or outliers, or
                scales that ``scale_dtype`` cannot hold.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a matrix [n, k] is turned into; ``group`` divides k."""

    n: int
    k: int
    bits: int
    group: int
    offset: bool
    scale_dtype: ScaleDtype

    @property
    def groups(self) -> int:
        return self.k // self.group


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedRows:
    """Codes and scales of r rows.

    Attributes:
        codes: bool, True means +1; bits x r x k values in this order, in any shape.
        params: scales, largest first, then the offset where there is one, as ``stored`` rounds them;
            bits (+ 1) x r x groups values in this order.
        values: float32[m], the outliers where they are not what was asked for.
    """

    codes: NDArray[np.bool_]
    params: Floats
    values: NDArray[np.float32] | None = None


Solver = Callable[[NDArray[np.float32], Taken], SolvedRows]
"""Solves float32[r, k] rows independently of one another.

In the rows, outliers have the mean magnitude of their group, which hardly moves its scales. A solver may go
by what they are, and change their values to whatever suits the other weights.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowQuantizer:
    """A ``Quantizer`` by its solver. ``threads`` None uses every core."""

    threads: int | None = None

    def solver(self, form: Form, moments: NDArray[np.floating] | None) -> Solver:
        """What solves the rows of a matrix of this form; ValueError where nothing can."""
        raise NotImplementedError

    def chunk_rows(self, form: Form) -> int:
        """Rows that are solved together."""
        return max(1, CHUNK_WEIGHTS // form.k)

    def quantize(
        self,
        weight: NDArray[np.floating],
        *,
        bits: int,
        group_size: int | None,
        offset: bool,
        scale_dtype: ScaleDtype,
        outliers: float = 0.0,
        moments: NDArray[np.floating] | None = None,
    ) -> BitPlanes:
        """See ``Quantizer.quantize``."""
        n, k, group = _check_weight(weight, bits, group_size)
        form = Form(n=n, k=k, bits=bits, group=group, offset=offset, scale_dtype=scale_dtype)
        step, result = self.chunk_rows(form), _Result(form)

        def work(solve: Solver, places: NDArray[np.int64], first: int) -> None:
            rows = slice(first, min(first + step, n))
            block, taken = take_out(finite_rows(weight[rows]), places, first * k, group)
            result.put(rows, solve(block, taken), taken)

        # One thread in each matrix product: those of BLAS would wait for one another at every column.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(self.threads or usable_cores()) as pool:
            solve = self.solver(form, moments)
            importance = None if moments is None else np.diag(moments)
            places = choose_outliers(weight, form.bits, form.group, outliers, importance)
            for _ in pool.map(partial(work, solve, places), range(0, n, step)):
                pass
        return result.planes()


def assemble(form: Form, solved: SolvedRows, outliers: Outliers | None = None) -> BitPlanes:
    """All rows of a matrix at once, with outliers as they are stored."""
    result = _Result(form)
    result.put(slice(0, form.n), solved, NOTHING)
    return replace(result.planes(), outliers=outliers)


class _Result:
    """The arrays of a whole matrix, filled by rows."""

    def __init__(self, form: Form) -> None:
        per_group, dtype = (form.n, form.groups), scale_storage(form.scale_dtype)
        self._form = form
        self._codes = np.empty((form.bits, form.n, (form.k + 7) // 8), np.uint8)
        self._scales: NDArray[Any] = np.empty((form.bits, *per_group), dtype)
        self._offsets: NDArray[Any] | None = np.empty(per_group, dtype) if form.offset else None
        self._exponents = np.empty(per_group, np.int8) if form.scale_dtype == POW2 else None
        self._outliers: dict[int, Outliers] = {}

    def put(self, rows: slice, solved: SolvedRows, taken: Taken) -> None:
        form = self._form
        codes = solved.codes.reshape(form.bits, -1, form.k)
        self._codes[:, rows] = np.packbits(codes, axis=2, bitorder="little")
        params: NDArray[Any] = solved.params.reshape(form.bits + form.offset, -1, form.groups)
        if self._exponents is not None:
            params, self._exponents[rows] = pow2_scales(params)
        self._scales[:, rows] = params[: form.bits]
        if self._offsets is not None:
            self._offsets[rows] = params[form.bits]
        if len(taken.places):
            values = taken.values if solved.values is None else solved.values
            missed = values - self._values_at(codes, solved.params, taken.places)
            places = taken.places.astype(np.int64) + rows.start * form.k
            self._outliers[rows.start] = Outliers(places=places, values=halves(missed))

    def _values_at(self, codes: NDArray[np.bool_], params: Floats, places: NDArray[np.intp]) -> Floats:
        """What the planes give at some places of the rows."""
        form = self._form
        signs = codes.reshape(form.bits, -1)[:, places] * 2.0 - 1
        found = params.reshape(form.bits + form.offset, -1)[:, places // form.group]
        total: Floats = (signs * found[: form.bits]).sum(0)
        return total + found[form.bits] if form.offset else total

    def planes(self) -> BitPlanes:
        return BitPlanes(
            planes=self._codes,
            scales=self._scales,
            offsets=self._offsets,
            shape=(self._form.n, self._form.k),
            group_size=self._form.group,
            exponents=self._exponents,
            outliers=self._joined(),
        )

    def _joined(self) -> Outliers | None:
        parts = [self._outliers[first] for first in sorted(self._outliers)]
        if not parts:
            return None
        return Outliers(
            places=np.concatenate([part.places for part in parts]),
            values=np.concatenate([part.values for part in parts]),
        )


def stored(params: NDArray[np.floating], scale_dtype: ScaleDtype) -> Floats:
    """Scales and offset [u, ...] of each group as they are stored; ValueError where they are too large."""
    if scale_dtype == POW2:
        return pow2_values(*pow2_scales(params)).astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = params.astype(scale_dtype)
    if not np.isfinite(rounded).all():
        limit = np.finfo(scale_dtype).max
        raise ValueError(
            f"a scale exceeds {scale_dtype} (largest {limit:g}); use scales in float32 or rescale"
        )
    return rounded.astype(np.float64)


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def finite_rows(weight: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows as float32, contiguous; ValueError where they are not finite."""
    rows = np.ascontiguousarray(weight, np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("the weight holds NaN or infinite values (quantizing needs finite numbers)")
    return rows


def _check_weight(
    weight: NDArray[np.floating], bits: int, group_size: int | None
) -> tuple[int, int, int]:
    """Rows, columns and group size; ValueError, see ``Quantizer.quantize``."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"the weight has shape {weight.shape}; expected a matrix [rows, columns], not empty")
    if not np.issubdtype(weight.dtype, np.floating):
        raise ValueError(f"the weight is {weight.dtype}; expected floating point numbers")
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits cannot be quantized to (expected 1 to 8)")
    n, k = weight.shape
    group = k if group_size is None else group_size
    if group < 1 or k % group:
        raise ValueError(f"group size {group} does not divide {k} columns")
    return n, k, group
