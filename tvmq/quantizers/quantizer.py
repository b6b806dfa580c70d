# SPDX-License-Identifier: Apache-2.0
"""What every quantizer is, and the part all of them share: checks, groups, row chunks, threads.

A quantizer supplies a solver for a batch of groups; ``quantize_rows`` cuts the matrix into row
chunks of a fixed size (so that the result does not depend on the thread count), runs the solver
on them in threads (NumPy releases the GIL) and gathers ``BitPlanes``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import ScaleDtype
from schedules.packing import BitPlanes

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
        moments: NDArray[np.floating] | None = None,
    ) -> BitPlanes:
        """Quantize ``weight`` [n, k] to ``bits`` (1..8) planes.

        ``group_size`` columns share their scales (None: the whole row). ``scale_dtype`` is what the
        scales are stored in; the codes are chosen for the stored, rounded scales. ``moments`` [k, k] are
        E[x x^T] of the inputs, from ``tvmq.calibration``; quantizers that go by the weight alone ignore them.

        Raises:
            ValueError: empty, non-2-D or non-finite weight, impossible bits or group size, or scales
                that ``scale_dtype`` cannot hold.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedGroups:
    """Codes and scales of a batch of G groups of m columns.

    Attributes:
        codes: bool[bits, G, m], True means +1.
        scales: [bits, G] in the stored dtype, largest first.
        offsets: [G] in the stored dtype, or None.
    """

    codes: NDArray[np.bool_]
    scales: NDArray[np.floating]
    offsets: NDArray[np.floating] | None


Solver = Callable[[NDArray[np.float32]], SolvedGroups]
"""Solves float32[G, m] groups independently of one another."""


def quantize_rows(
    weight: NDArray[np.floating],
    solver: Solver,
    *,
    bits: int,
    group_size: int | None,
    offset: bool,
    scale_dtype: ScaleDtype,
    threads: int | None,
) -> BitPlanes:
    """Run ``solver`` over all groups of ``weight`` [n, k]; see ``Quantizer.quantize``."""
    n, k, group = check_weight(weight, bits, group_size)
    planes = np.empty((bits, n, (k + 7) // 8), np.uint8)
    scales = np.empty((bits, n, k // group), scale_dtype)
    offsets = np.empty((n, k // group), scale_dtype) if offset else None
    step = max(1, CHUNK_WEIGHTS // k)

    def work(first: int) -> None:
        rows = slice(first, min(first + step, n))
        solved = solver(finite_rows(weight[rows]).reshape(-1, group))
        planes[:, rows] = np.packbits(solved.codes.reshape(bits, -1, k), axis=2, bitorder="little")
        scales[:, rows] = solved.scales.reshape(bits, -1, k // group)
        if offsets is not None and solved.offsets is not None:
            offsets[rows] = solved.offsets.reshape(-1, k // group)

    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        for _ in pool.map(work, range(0, n, step)):
            pass
    return BitPlanes(planes=planes, scales=scales, offsets=offsets, shape=(n, k), group_size=group)


def stored(values: NDArray[np.floating], scale_dtype: ScaleDtype) -> NDArray[np.floating]:
    """``values`` as they are stored; ValueError where ``scale_dtype`` overflows."""
    with np.errstate(over="ignore"):
        rounded = values.astype(scale_dtype)
    if not np.isfinite(rounded).all():
        limit = np.finfo(scale_dtype).max
        raise ValueError(
            f"a scale exceeds {scale_dtype} (largest {limit:g}); use scales in float32 or rescale"
        )
    return rounded


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


def check_weight(
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
