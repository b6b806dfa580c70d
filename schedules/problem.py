# SPDX-License-Identifier: Apache-2.0
"""A workload with made-up data: the kernels to compile, arrays to run them on, and what must come out.

Weights and activations are random; the reference is computed on some of the rows and tokens, which all
kernels treat alike, so that large products are checked within a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import dequant_gemm as dequant
from . import float_gemm as plain
from . import lut_gemm as lut
from .dequant_spec import DequantSpec
from .level_packing import LIMIT, LevelPlanes, pack_level_keys, pack_levels, pack_row_exponents
from .lut_table import lut_table
from .lut_table import reference as table_reference
from .packing import BitPlanes, ColumnLayout, pack_exponents, pack_keys, pack_offsets, pack_scales
from .pow2 import POW2, pow2_scales
from .schedule import AnySchedule, DequantSchedule, Schedule, rule
from .segment import Segment
from .workload import Workload

CHECKED_ROWS = 192
CHECKED_TOKENS = 6
MOST_BYTES = 1 << 31
"""Largest array of a product that is tried."""

Outputs = Mapping[str, NDArray]


class WrongResult(ValueError):
    """A kernel does not give what its reference gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Kernels and data of one workload.

    Attributes:
        kernels: name -> PrimFunc.
        calls: kernel -> names of its arguments in order.
        stages: kernels of one product in the order in which they run.
        arrays: all arguments by name.
        weights: names of the stored weights: what is read once per call.
        outputs: names of the results.
        check: raises WrongResult unless the outputs are right.
    """

    kernels: Mapping[str, Any]
    calls: Mapping[str, tuple[str, ...]]
    stages: tuple[str, ...]
    arrays: Mapping[str, NDArray]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    check: Callable[[Outputs], None]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a call reads, padding included."""
        return sum(self.arrays[name].nbytes for name in self.weights)


def check_memory(workload: Workload) -> None:
    """ValueError where one array of a workload's problem would be larger than ``MOST_BYTES``."""
    n, k, m = workload.n, workload.k, workload.m
    if max(n * k * workload.bits // 8, 4 * n * m, 16 * k * m) > MOST_BYTES:
        raise ValueError(f"a product of {n} x {k} weights and {m} tokens takes more memory than 2 GiB")


def make_problem(workload: Workload, isa: str, schedule: AnySchedule | None = None, seed: int = 0) -> Problem:
    """The problem of a workload on a kernel ISA; equal seeds give equal data whatever the schedule."""
    facts = (workload.n, workload.k, workload.m, workload.bits, workload.group)
    rng = np.random.default_rng([seed, *facts])
    chosen = rule(workload) if schedule is None else schedule
    if workload.op == "dequant":
        assert isinstance(chosen, DequantSchedule)
        return _dequant_problem(workload, isa, chosen, rng)
    assert isinstance(chosen, Schedule)
    if workload.op == "float":
        return _float_problem(workload, chosen, rng)
    return _lut_problem(workload, isa, chosen, rng)


def lut_spec(workload: Workload, rows: int | None = None) -> lut.LutSpec:
    """The product of a table workload, or of some of its rows."""
    scale, _, offset = workload.layout.partition("+")
    segment = Segment(
        rows=rows or workload.n,
        bits=workload.bits,
        group_size=workload.group,
        offset=bool(offset),
        scale_dtype=scale,
        output=0,
        start=0,
    )
    return lut.LutSpec(
        k=workload.k,
        outputs=(segment.rows,),
        segments=(segment,),
        bias=(False,),
        activation=("",),
        tables="exact" if workload.op == "exact" else "int8",
    )


def _lut_problem(workload: Workload, isa: str, schedule: Schedule, rng: np.random.Generator) -> Problem:
    spec = lut_spec(workload)
    planes = _bit_planes(workload, rng)
    x = rng.standard_normal((workload.m, workload.k), np.float32)
    layout = spec.table_layout
    table, scale, sums = (np.zeros_like(a) for a in _table_shapes(workload.m, layout, spec))
    stored = {"keys": pack_keys(planes), "scales": pack_scales(planes)}
    for name, array in (("exponents", pack_exponents(planes)), ("offsets", pack_offsets(planes))):
        if array is not None:
            stored[name] = array
    rows, tokens = _sample(workload.n, CHECKED_ROWS), _sample(workload.m, CHECKED_TOKENS)
    expected = lut.reference(x[tokens], [_rows_of(planes, rows)], lut_spec(workload, len(rows)), [None])[0]

    def check(outputs: Outputs) -> None:
        _check_close(outputs["y"][np.ix_(tokens, rows)], expected)

    tables = ("table", "scale", "sums")
    return Problem(
        kernels={
            "lut_table": lut_table(layout, spec.tables),
            "lut_gemm": lut.lut_gemm(spec, isa, schedules=[schedule]),
        },
        calls={"lut_table": ("x", *tables), "lut_gemm": (*tables, *stored, "y")},
        stages=("lut_table", "lut_gemm"),
        arrays={
            "x": x,
            "table": table,
            "scale": scale,
            "sums": sums,
            **stored,
            "y": np.zeros((workload.m, workload.n), np.float32),
        },
        weights=tuple(stored),
        outputs=("y",),
        check=check,
    )


def _table_shapes(m: int, layout: ColumnLayout, spec: lut.LutSpec) -> tuple[NDArray, ...]:
    one = table_reference(np.zeros((1, layout.k), np.float32), layout, spec.tables)
    return tuple(np.empty((m, *array.shape[1:]), array.dtype) for array in one)


def _bit_planes(workload: Workload, rng: np.random.Generator) -> BitPlanes:
    n, k, bits = workload.n, workload.k, workload.bits
    scale, _, offset = workload.layout.partition("+")
    planes = rng.integers(0, 256, (bits, n, (k + 7) // 8), np.uint8)
    if k % 8:
        planes[..., -1] &= (1 << k % 8) - 1
    params = rng.uniform(0.01, 1, (bits + bool(offset), n, k // workload.group))
    exponents = None
    if scale == POW2:
        params, exponents = pow2_scales(params)
    stored = params.astype(np.int8 if scale == POW2 else np.dtype(scale))
    return BitPlanes(
        planes=planes,
        scales=stored[:bits],
        offsets=stored[bits] if offset else None,
        shape=(n, k),
        group_size=workload.group,
        exponents=exponents,
    )


def _rows_of(planes: BitPlanes, rows: NDArray[np.intp]) -> BitPlanes:
    return BitPlanes(
        planes=planes.planes[:, rows],
        scales=planes.scales[:, rows],
        offsets=None if planes.offsets is None else planes.offsets[rows],
        shape=(len(rows), planes.shape[1]),
        group_size=planes.group_size,
        exponents=None if planes.exponents is None else planes.exponents[rows],
    )


def _dequant_problem(
    workload: Workload, isa: str, schedule: DequantSchedule, rng: np.random.Generator
) -> Problem:
    n, k, m, bits = workload.n, workload.k, workload.m, workload.bits
    groups = k // workload.group
    spec = DequantSpec(n=n, k=k, bits=bits, groups=groups, x_groups=groups)
    x = np.zeros((m, spec.padded_k), np.int8)
    x[:, :k] = rng.integers(-LIMIT, LIMIT + 1, (m, k))
    x_exponents = rng.integers(-9, -4, (m, groups)).astype(np.int32)
    exponents = rng.integers(-3, 4, n).astype(np.int8)
    stored, levels = _level_weights(spec, rng)
    row_shifts, top = pack_row_exponents(exponents)
    rows, tokens = _sample(n, CHECKED_ROWS), _sample(m, CHECKED_TOKENS)
    # The largest exponent is shared by all rows: one that has it is among those that are checked.
    rows = np.union1d(rows, [int(exponents.argmax())])
    part = DequantSpec(n=len(rows), k=k, bits=bits, groups=groups, x_groups=groups)
    expected = dequant.reference(x[tokens], x_exponents[tokens], levels(rows), exponents[rows], part)

    def check(outputs: Outputs) -> None:
        same = np.array_equal(outputs["y_exponents"][tokens], expected[1])
        if not same or not np.array_equal(outputs["y"][np.ix_(tokens, rows)], expected[0]):
            raise WrongResult("integers differ from the reference")

    call = ("x", "x_exponents", *stored, "row_shifts", "top", "y", "y_exponents")
    return Problem(
        kernels={"dequant_gemm": dequant.dequant_gemm(spec, isa, schedule=schedule)},
        calls={"dequant_gemm": call},
        stages=("dequant_gemm",),
        arrays={
            "x": x,
            "x_exponents": x_exponents,
            **stored,
            "row_shifts": row_shifts,
            "top": top,
            "y": np.zeros((m, n), np.int32),
            "y_exponents": np.zeros(m, np.int32),
        },
        weights=(*stored, "row_shifts"),
        outputs=("y", "y_exponents"),
        check=check,
    )


def _level_weights(
    spec: DequantSpec, rng: np.random.Generator
) -> tuple[dict[str, NDArray], Callable[[NDArray[np.intp]], NDArray[np.int8]]]:
    """Stored arrays, and the levels of some rows."""
    n, k, bits = spec.n, spec.k, spec.bits
    if not spec.planes:
        whole = rng.integers(-LIMIT, LIMIT + 1, (n, k), np.int8)
        return {"levels": pack_levels(whole)}, lambda rows: whole[rows]
    planes = rng.integers(0, 256, (bits, n, (k + 7) // 8), np.uint8)
    if k % 8:
        planes[..., -1] &= (1 << k % 8) - 1
    alphas = rng.integers(1, LIMIT // bits + 1, (bits, n, 1)).astype(np.int8)
    keys, packed = pack_level_keys(LevelPlanes(planes=planes, alphas=alphas, shape=(n, k)))

    def levels(rows: NDArray[np.intp]) -> NDArray[np.int8]:
        part = LevelPlanes(planes=planes[:, rows], alphas=alphas[:, rows], shape=(len(rows), k))
        return part.levels()

    return {"keys": keys, "alphas": packed}, levels


def _float_problem(workload: Workload, schedule: Schedule, rng: np.random.Generator) -> Problem:
    spec = plain.FloatSpec(n=workload.n, k=workload.k, bias=False, activation="")
    x = rng.standard_normal((workload.m, workload.k), np.float32)
    weight = rng.standard_normal((workload.n, workload.k), np.float32)
    rows, tokens = _sample(workload.n, CHECKED_ROWS), _sample(workload.m, CHECKED_TOKENS)
    expected = plain.reference(x[tokens], weight[rows], None, spec)

    def check(outputs: Outputs) -> None:
        _check_close(outputs["y"][np.ix_(tokens, rows)], expected)

    return Problem(
        kernels={"float_gemm": plain.float_gemm(spec, schedule=schedule)},
        calls={"float_gemm": ("x", "weight", "y")},
        stages=("float_gemm",),
        arrays={
            "x": x,
            "weight": plain.pack(weight),
            "y": np.zeros((workload.m, workload.n), np.float32),
        },
        weights=("weight",),
        outputs=("y",),
        check=check,
    )


def _sample(count: int, most: int) -> NDArray[np.intp]:
    """At most ``most`` indices below ``count``: the first, the last and some between."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))


def _check_close(found: NDArray, expected: NDArray) -> None:
    """Sums of float32 in another order: differences are small beside the largest sum of their token."""
    largest = np.abs(expected).max(axis=1, keepdims=True) + np.float32(1e-30)
    worst = float(np.abs(found / largest - expected / largest).max())
    if not worst < 2e-5:
        raise WrongResult(f"results are off by {worst:.2g} of the largest, expected 2e-05 at most")
