# SPDX-License-Identifier: Apache-2.0
"""The integer product equals its NumPy meaning exactly, on every ISA level, hence so do the levels.

Inputs have extreme mantissas in some tokens and rows; outputs lie between guard bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.dequant_gemm import DequantSpec, dequant_gemm, reference, worth_threads
from schedules.dequant_spec import MOST_TOKENS
from schedules.level_packing import (
    LevelPlanes,
    pack_group_shifts,
    pack_level_keys,
    pack_levels,
    pack_row_exponents,
    pack_rows,
)

TOKENS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 50, 65, 70)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A product with its weights."""

    spec: DequantSpec
    weight: LevelPlanes | NDArray[np.int8]
    exponents: NDArray[np.int8]
    shifts: NDArray[np.uint8] | None
    bias: NDArray[np.int32] | None

    @staticmethod
    def make(spec: DequantSpec) -> Case:
        rng = np.random.default_rng([spec.n, spec.k, spec.bits])
        shifts = None
        if spec.w_groups > 1:
            shifts = rng.integers(0, 6, (spec.n, spec.w_groups)).astype(np.uint8)
            shifts[0, 0] = 255
        exponents = rng.integers(-6, 7, spec.n).astype(np.int8)
        exponents[-1] = -20 if spec.bias else -40  # a shift of 31 or more rounds by 2**30
        bias = rng.integers(-(1 << 20), 1 << 20, spec.n).astype(np.int32) if spec.bias else None
        weight = random_weight(rng, spec)
        return Case(spec=spec, weight=weight, exponents=exponents, shifts=shifts, bias=bias)

    def activations(self, m: int) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
        """int8[m, padded_k] with zeros as padding, int32[m, x_groups]."""
        rng = np.random.default_rng(m)
        x = np.zeros((m, self.spec.padded_k), np.int8)
        x[:, : self.spec.k] = rng.integers(-127, 128, (m, self.spec.k))
        x[0, : self.spec.k] = 127
        x[m // 2, : self.spec.k] = -127
        exponents = rng.integers(-9, 9, (m, self.spec.x_groups)).astype(np.int32)
        exponents[-1, 0] -= 60
        return x, exponents

    def arguments(self, x: NDArray, exponents: NDArray) -> list[NDArray]:
        arrays: list[NDArray] = [x, exponents]
        if isinstance(self.weight, LevelPlanes):
            arrays += pack_level_keys(self.weight)
        else:
            arrays.append(pack_levels(self.weight))
        arrays += [] if self.shifts is None else [pack_group_shifts(self.shifts)]
        arrays += [] if self.bias is None else [pack_rows(self.bias)]
        return [*arrays, *pack_row_exponents(self.exponents)]

    def expected(self, x: NDArray, exponents: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        levels = self.weight.levels() if isinstance(self.weight, LevelPlanes) else self.weight
        return reference(x, exponents, levels, self.exponents, self.spec, self.shifts, self.bias)

    def check(self, kernel: Any, m: int) -> None:
        x, exponents = self.activations(m)
        arguments = self.arguments(x, exponents)
        y, e, *after = kernel(arguments, ((m, self.spec.n), "int32"), ((m,), "int32"))
        wanted = self.expected(x, exponents)
        assert np.array_equal(e, wanted[1]), f"{m} tokens"
        assert np.array_equal(y, wanted[0]), f"{m} tokens"
        assert all(np.array_equal(a, b) for a, b in zip(after, arguments, strict=True)), "changed an input"


def random_weight(rng: np.random.Generator, spec: DequantSpec) -> LevelPlanes | NDArray[np.int8]:
    """The first row has the largest level everywhere, the second the lowest."""
    n, k = spec.n, spec.k
    if not spec.planes:
        levels = rng.integers(-127, 128, (n, k)).astype(np.int8)
        levels[0], levels[1] = 127, -127
        return levels
    raw = rng.integers(0, 2, (spec.bits, n, k), dtype=np.uint8)
    raw[:, 0], raw[:, 1] = 1, 0
    most = 127 // spec.bits
    alphas = rng.integers(-most, most + 1, (spec.bits, n, spec.w_groups)).astype(np.int8)
    alphas[:, :2] = most
    alphas[0, :2] = 127 - most * (spec.bits - 1)
    return LevelPlanes(planes=np.packbits(raw, axis=2, bitorder="little"), alphas=alphas, shape=(n, k))


SPECS = [
    pytest.param(DequantSpec(n=36, k=17, bits=8), marks=pytest.mark.emulated),
    DequantSpec(n=36, k=17, bits=2, bias=True, bias_shift=3, activation="relu"),
    DequantSpec(n=1000, k=520, bits=8, bias=True, bias_shift=-7, activation="relu"),
    DequantSpec(n=1000, k=520, bits=3, bias=True),
    DequantSpec(n=130, k=833, bits=5, bias=True, bias_shift=40),
    DequantSpec(n=100, k=1700, bits=8, bias=True, bias_shift=-40),
    DequantSpec(n=70, k=1700, bits=4),
    DequantSpec(n=64, k=384, bits=8, groups=3, x_groups=3, w_groups=3, bias=True),
    pytest.param(
        DequantSpec(n=98, k=384, bits=4, groups=6, x_groups=1, w_groups=6, bias=True, bias_shift=-5),
        marks=pytest.mark.emulated,
    ),
    DequantSpec(n=98, k=384, bits=7, groups=2, x_groups=2, w_groups=1, activation="relu"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.n}x{s.k}-{s.bits}bit-{s.groups}groups")
def test_equals_reference(build: Any, kernel_level: Any, spec: DequantSpec) -> None:
    case = Case.make(spec)
    kernel = build(dequant_gemm(spec, kernel_level.kernel_isa), kernel_level)
    for m in TOKENS:
        case.check(kernel, m)


@pytest.mark.emulated
@pytest.mark.parametrize("bits", range(1, 8))
def test_every_number_of_planes(build: Any, kernel_level: Any, bits: int) -> None:
    case = Case.make(DequantSpec(n=48, k=96, bits=bits))
    kernel = build(dequant_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    for m in (1, 9, 40):
        case.check(kernel, m)


@pytest.mark.parametrize("bits", [2, 8])
def test_many_tokens_come_in_pieces(build: Any, kernel_level: Any, bits: int) -> None:
    case = Case.make(DequantSpec(n=40, k=70, bits=bits, bias=True))
    kernel = build(dequant_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    for m in (MOST_TOKENS, MOST_TOKENS + 1, 2 * MOST_TOKENS + 30):
        case.check(kernel, m)


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("n", "k"), [(768, 768), (1000, 520), (17, 36), (33, 4096), (65, 64), (1, 1)])
def test_equals_reference_everywhere(build: Any, kernel_level: Any, n: int, k: int, bits: int) -> None:
    case = Case.make(DequantSpec(n=max(n, 2), k=k, bits=bits, bias=True, activation="relu"))
    kernel = build(dequant_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    for m in range(1, 71):
        case.check(kernel, m)


def test_threads_do_not_matter(build: Any, level: Any) -> None:
    """Large enough for parallel panels; every run writes the same bytes."""
    from tvmq import vm

    for bits in (3, 8):
        case = Case.make(DequantSpec(n=1100, k=520, bits=bits, bias=True))
        assert worth_threads(case.spec)
        function = dequant_gemm(case.spec, level.kernel_isa)
        assert "parallel" in function.script()
        kernel = build(function, level)
        try:
            for threads in (1, 2):
                vm.set_threads(threads)
                for m in (7, 40):
                    case.check(kernel, m)
        finally:
            vm.set_threads(1)


def before_a_wall(array: NDArray) -> NDArray:
    """Memory for ``array`` that ends where nobody may read."""
    page = mmap.PAGESIZE
    pages = -(-array.nbytes // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    raw = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None).mprotect
    assert protect(ctypes.c_void_p(raw.ctypes.data + pages * page), ctypes.c_size_t(page), 0) == 0
    return raw[pages * page - array.nbytes : pages * page].view(array.dtype).reshape(array.shape)


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
@pytest.mark.parametrize("bits", [3, 8])
def test_reads_nothing_beyond_its_inputs(build: Any, kernel_level: Any, bits: int) -> None:
    """A read beyond the end of an input ends the process."""
    from tvm.runtime import from_dlpack

    from tvmq.vm import aligned

    case = Case.make(DequantSpec(n=36, k=70, bits=bits, bias=True))
    kernel = build(dequant_gemm(case.spec, kernel_level.kernel_isa), kernel_level)
    for m in (1, 2, 7, 17, 40):
        x, exponents = case.activations(m)
        inputs = case.arguments(x, exponents)
        walled = [before_a_wall(a) if a.nbytes % 64 == 0 else aligned(a.shape, a.dtype) for a in inputs]
        for copy, array in zip(walled, inputs, strict=True):
            copy[...] = array
        outputs = [aligned(shape, np.int32) for shape in ((m, 36), (m,))]
        kernel.function(*(from_dlpack(a) for a in [*walled, *outputs]))
        assert np.array_equal(outputs[0], case.expected(x, exponents)[0])


def test_padding_columns_do_not_matter(build: Any, level: Any) -> None:
    """Keys of padding columns mean minus the sum of the alphas; activations of zero hide them."""
    case = Case.make(DequantSpec(n=5, k=33, bits=3))
    kernel = build(dequant_gemm(case.spec, level.kernel_isa), level)
    x, exponents = case.activations(20)
    arguments = case.arguments(x, exponents)
    before = kernel(arguments, ((20, 5), "int32"), ((20,), "int32"))[0]
    # Plane, step, tile, row, byte: the second step holds column 32 alone, in the lowest bit of byte 0.
    arguments[2].reshape(3, 2, 4, 16, 4)[:, 1] |= np.array([0xFE, 0xFF, 0xFF, 0xFF], np.uint8)
    assert np.array_equal(kernel(arguments, ((20, 5), "int32"), ((20,), "int32"))[0], before)


def test_the_reference_refuses_sums_beyond_int32() -> None:
    spec = DequantSpec(n=2, k=140_000, bits=8)
    levels = np.full((2, spec.k), 127, np.int8)
    x = np.zeros((1, spec.padded_k), np.int8)
    x[:, : spec.k] = 127
    with pytest.raises(AssertionError, match="a sum leaves int32"):
        reference(x, np.zeros((1, 1), np.int32), levels, np.zeros(2, np.int8), spec)


def test_bad_specs_are_refused() -> None:
    spec = DequantSpec(n=4, k=128, bits=2)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"{bits} bits a weight, expected 1 to 7 planes or 8"):
            replace(spec, bits=bits)
    with pytest.raises(ValueError, match="128 columns are not 4 groups of a multiple of 64 columns"):
        replace(spec, groups=4)
    with pytest.raises(ValueError, match="3 and 1 groups, expected 1 or 2"):
        replace(spec, groups=2, x_groups=3)
    with pytest.raises(ValueError, match="no dot product for 'sve'; known: avx512_vbmi, avx2"):
        dequant_gemm(replace(spec, bits=8), "sve")
    with pytest.raises(ValueError, match="no expansion for 'sve'; known: "):
        dequant_gemm(spec, "sve")
