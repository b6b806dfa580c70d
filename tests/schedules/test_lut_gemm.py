# SPDX-License-Identifier: Apache-2.0
"""The table product equals its NumPy meaning: integers exactly, floats within rounding, on every ISA.

One kernel serves several segments (up to eight, of 1 to 130 rows and 1 to 8 bits), so that few compiles
cover the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.intrin_exact import exact_sum
from schedules.intrin_x86 import tile_sum
from schedules.lut_gemm import LutSpec, Segment, integer_reference, lut_gemm, reference, worth_threads
from schedules.lut_table import Tables
from schedules.lut_table import reference as table_reference
from schedules.packing import BitPlanes

Shape = tuple[int, int]
GRID: list[Shape] = [(100, 1), (1, 2), (15, 3), (16, 4), (63, 5), (64, 6), (65, 7), (130, 8)]
"""Rows and bits of the segments of one product."""
FEW: list[Shape] = [(65, 3), (1, 2), (128, 8)]
TOKENS = (1, 2, 3, 4, 5, 7, 20)
FAST: list[Any] = [
    (10, 10, "int8", GRID),
    pytest.param(96, 48, "int8", FEW, marks=pytest.mark.emulated("arm64_v8")),
    (520, 520, "int8", FEW),
    (512, 128, "int8", FEW),
    pytest.param(96, 48, "exact", FEW, marks=pytest.mark.emulated("arm64_v8")),
    (520, 520, "exact", FEW),
]
SLOW = [(4, 4), (32, 32), (96, 32), (96, 96), (512, 512), (520, 40), (640, 320), (2048, 2048), (2048, 64)]


@dataclass(frozen=True, slots=True)
class Case:
    """A product with all its inputs but the activations."""

    weights: Any
    spec: LutSpec
    planes: list[BitPlanes]
    biases: list[NDArray[np.float32] | None]

    def arguments(self, x: NDArray, tables: tuple[NDArray, ...], *, unit: bool = False) -> list[NDArray]:
        """Kernel inputs; ``unit`` makes every scale 1 and every offset and bias 0."""
        table, scale, sums = tables
        arrays: list[NDArray] = [table, np.ones_like(scale) if unit else scale, sums]
        arrays += [x] if self.spec.outliers else []
        for planes in self.planes:
            keys, *others = self.weights.arguments(planes)
            arrays.append(keys)
            if unit:
                others = [np.ones_like(others[0]), *(np.zeros_like(o) for o in others[1:])]
            arrays += others
        return arrays + [b * 0 if unit else b for b in self.biases if b is not None]

    def outputs(self, m: int) -> list[tuple[tuple[int, int], str]]:
        return [((m, n), "float32") for n in self.spec.outputs]


def make_case(
    weights: Any, k: int, group: int, tables: Tables, shapes: list[Shape], outliers: float = 0.0
) -> Case:
    """Segments over three outputs, with and without offsets, biases, relu; all scale types.

    All segments but the second have ``outliers`` percent of outliers.
    """
    rng = np.random.default_rng(k)
    outputs = [0, 0, 0]
    segments, planes = [], []
    for index, (rows, bits) in enumerate(shapes):
        output = min(index, 2)
        offset, dtype = index % 2 == 0, ("float16", "float32", "pow2")[index % 3]
        sparse = 0.0 if index == 1 else outliers
        planes.append(weights.planes(rows, k, bits, group, offset=offset, dtype=dtype, outliers=sparse))
        segments.append(
            Segment(
                rows=rows, bits=bits, group_size=group, offset=offset, scale_dtype=dtype,
                output=output, start=outputs[output], outliers=planes[-1].outliers is not None,
            )
        )  # fmt: skip
        outputs[output] += rows
    spec = LutSpec(
        k=k, outputs=tuple(outputs), segments=tuple(segments), bias=(True, False, True),
        activation=("relu", "", ""), tables=tables,
    )  # fmt: skip
    biases = [
        rng.standard_normal(n).astype(np.float32) if bias else None
        for n, bias in zip(outputs, spec.bias, strict=True)
    ]
    return Case(weights, spec, planes, biases)


def assert_integers(kernel: Any, case: Case, m: int) -> None:
    """With unit scales the outputs are the integer sums of the tables, below 2^24, hence exact."""
    spec = case.spec
    rng = np.random.default_rng(m)
    x = rng.standard_normal((m, spec.k)).astype(np.float32)
    if spec.tables == "exact":
        x = np.rint(4 * x).astype(np.float32)
    table, scale, sums = table_reference(x, spec.table_layout, spec.tables)
    expected = [np.zeros((m, n)) for n in spec.outputs]
    for segment, planes in zip(spec.segments, case.planes, strict=True):
        total = integer_reference(table, planes, spec.layout(segment)).sum(axis=(1, 3))
        expected[segment.output][:, segment.start : segment.start + segment.rows] = total
    expected[0] = np.maximum(expected[0], 0)
    found = kernel(case.arguments(x, (table, scale, sums), unit=True), *case.outputs(m))
    for y, wanted in zip(found, expected, strict=False):
        assert np.array_equal(y, wanted)


def assert_floats(kernel: Any, case: Case, x: NDArray[np.float32]) -> None:
    table, scale, sums = table_reference(x, case.spec.table_layout, case.spec.tables)
    arguments = case.arguments(x, (table, scale, sums))
    found = kernel(arguments, *case.outputs(x.shape[0]))
    expected = reference(x, case.planes, case.spec, case.biases)
    largest = np.abs(np.concatenate(expected, axis=1)).max(axis=1, keepdims=True)
    for y, wanted in zip(found, expected, strict=False):
        np.testing.assert_allclose(y / largest, wanted / largest, rtol=1e-5, atol=2e-6)
    for after, before in zip(found[len(case.spec.outputs) :], arguments, strict=True):
        assert np.array_equal(after, before), "changed an input"


def check(build: Any, level: Any, case: Case) -> None:
    kernel = build(lut_gemm(case.spec, level.kernel_isa), level)
    k = case.spec.k
    rng = np.random.default_rng(k)
    for m in TOKENS:
        assert_integers(kernel, case, m)
        assert_floats(kernel, case, rng.standard_normal((m, k)).astype(np.float32))
    odd = rng.standard_normal((5, k)).astype(np.float32)
    odd[0] = 0
    odd[1] *= np.float32(1e30)
    odd[2] *= np.float32(1e-42)
    odd[3, k // 2] = 1e6
    assert_floats(kernel, case, odd)


@pytest.mark.parametrize(("k", "group", "tables", "shapes"), FAST)
def test_equals_reference(
    build: Any, kernel_level: Any, weights: Any, k: int, group: int, tables: Tables, shapes: list[Shape]
) -> None:
    check(build, kernel_level, make_case(weights, k, group, tables, shapes))


@pytest.mark.parametrize(
    ("k", "group", "tables"), [(10, 10, "int8"), (520, 520, "exact"), (2048, 128, "int8")]
)
def test_outliers_are_added(
    build: Any, kernel_level: Any, weights: Any, k: int, group: int, tables: Tables
) -> None:
    """Tiles of 64 and of 32 rows; with exact tables the whole of W x comes out."""
    case = make_case(weights, k, group, tables, FEW, outliers=2.0)
    assert [segment.outliers for segment in case.spec.segments] == [True, False, True]
    check(build, kernel_level, case)
    if tables == "exact":
        x = np.random.default_rng(4).standard_normal((3, k)).astype(np.float32)
        found = reference(x, case.planes, replace(case.spec, activation=("", "", "")), [None] * 3)
        for y, planes in zip(found, case.planes, strict=True):
            np.testing.assert_allclose(y, x @ planes.dequantize().T, rtol=1e-4, atol=1e-3)


def test_damaged_outliers_stay_within_bounds(build: Any, kernel_level: Any, weights: Any) -> None:
    """The memory around every buffer is guarded."""
    case = make_case(weights, 96, 48, "int8", FEW, outliers=2.0)
    x = np.random.default_rng(5).standard_normal((2, 96)).astype(np.float32)
    tables = table_reference(x, case.spec.table_layout, "int8")
    kernel = build(lut_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    arguments = case.arguments(x, tables)
    for array in arguments[4:]:
        if array.dtype == np.int32:  # starts
            array[:] = np.resize([5, -7, 2**31 - 1, -(2**31)], array.shape)
        elif array.dtype == np.uint16:
            array[:] = 0xFFFF
    kernel(arguments, *case.outputs(2))


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["int8", "exact"])
@pytest.mark.parametrize(("k", "group"), SLOW)
def test_equals_reference_everywhere(
    build: Any, kernel_level: Any, weights: Any, k: int, group: int, tables: Tables
) -> None:
    check(build, kernel_level, make_case(weights, k, group, tables, GRID))


def test_exact_sums_add_groups_in_ascending_order(build: Any, kernel_level: Any, weights: Any) -> None:
    case = make_case(weights, 520, 520, "exact", FEW)
    x = np.random.default_rng(1).standard_normal((2, 520)).astype(np.float32)
    table, scale, sums = table_reference(x, case.spec.table_layout, "exact")
    kernel = build(lut_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    y = kernel(case.arguments(x, (table, scale, sums), unit=True), *case.outputs(2))[1]
    assert y.shape == (2, 1)
    expected = np.zeros((2, 1), np.float32)
    for plane in range(2):
        bits = np.unpackbits(case.planes[1].planes[plane, 0], count=520, bitorder="little")
        keys = np.packbits(case.spec.table_layout.pad(bits).reshape(-1, 4), axis=1, bitorder="little")[:, 0]
        entries = table[:, np.arange(keys.shape[0]), keys]
        expected[:, 0] += np.add.accumulate(entries, axis=1, dtype=np.float32)[:, -1]
    assert np.array_equal(y, expected)


def test_not_finite_scales_stay_in_their_token(build: Any, kernel_level: Any, weights: Any) -> None:
    case = make_case(weights, 96, 48, "int8", FEW)
    x = np.random.default_rng(2).standard_normal((5, 96)).astype(np.float32)
    table, scale, sums = table_reference(x, case.spec.table_layout, "int8")
    kernel = build(lut_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    clean = kernel(case.arguments(x, (table, scale, sums)), *case.outputs(5))[:3]
    scale[2], sums[2] = np.nan, np.inf
    others = np.arange(5) != 2
    for a, b in zip(clean, kernel(case.arguments(x, (table, scale, sums)), *case.outputs(5)), strict=False):
        assert np.array_equal(a[others], b[others])


def test_subnormal_and_largest_half_scales(build: Any, kernel_level: Any, weights: Any) -> None:
    """Levels without F16C convert halves by integer arithmetic."""
    case = make_case(weights, 96, 48, "int8", FEW)
    x = np.random.default_rng(3).standard_normal((1, 96)).astype(np.float32)
    extremes = np.array([6e-8, -6e-8, 6.1e-5, 6e-5, 65504, -65504, 0, -0.0, 1, 0.333], np.float16)
    for planes in case.planes:
        if planes.scales.dtype == np.float16:
            planes.scales[...] = np.resize(extremes, planes.scales.shape)
    kernel = build(lut_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    table, scale, sums = table_reference(x, case.spec.table_layout, "int8")
    found = kernel(case.arguments(x, (table, scale, sums)), *case.outputs(1))
    expected = reference(x, case.planes, case.spec, case.biases)
    for y, wanted in zip(found, expected, strict=False):
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "tanh"])
def test_activations(build: Any, kernel_level: Any, weights: Any, activation: str) -> None:
    """After bias, on whole tiles and on the rows that are left over."""
    case = make_case(weights, 96, 48, "int8", [(83, 2)])
    spec = replace(case.spec, outputs=(83,), bias=(True,), activation=(activation,))
    case = replace(case, spec=spec, biases=case.biases[:1])
    x = np.random.default_rng(3).standard_normal((5, 96)).astype(np.float32)
    table, scale, sums = table_reference(x, case.spec.table_layout, "int8")
    kernel = build(lut_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    (y, *_) = kernel(case.arguments(x, (table, scale, sums)), *case.outputs(5))
    wanted = reference(x, case.planes, case.spec, case.biases)[0]
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("rows", "bits", "threads"), [(2048, 2, False), (64, 8, False), (4096, 2, True), (32768, 1, True)]
)
def test_threads_only_for_large_work(rows: int, bits: int, threads: bool) -> None:
    """Waking a thread costs microseconds, as long as reading 256 KB of keys."""
    segment = Segment(
        rows=rows, bits=bits, group_size=512, offset=False, scale_dtype="float16", output=0, start=0
    )
    spec = LutSpec(k=512, outputs=(rows,), segments=(segment,), bias=(False,), activation=("",))
    assert worth_threads(spec, segment) == threads
    assert ("parallel" in lut_gemm(spec, "avx2").script()) == threads


def test_segments_must_agree_on_columns() -> None:
    def segment(group: int) -> Segment:
        return Segment(
            rows=1, bits=1, group_size=group, offset=False, scale_dtype="float16", output=0, start=0
        )

    def spec(*groups: int) -> LutSpec:
        return LutSpec(
            k=96, outputs=(2,), segments=tuple(segment(g) for g in groups), bias=(False,), activation=("",)
        )

    assert spec(48, 48).table_layout.padded_k == 128
    with pytest.raises(ValueError, match="segments of one table product need one column layout"):
        _ = spec(48, 96).table_layout


@pytest.mark.parametrize("factory", [tile_sum, exact_sum])
def test_unknown_isa(factory: Any) -> None:
    with pytest.raises(
        ValueError, match="no table kernel for 'sve'; known: avx512_vbmi, avx2, ssse3, neon, portable"
    ):
        factory("sve")
