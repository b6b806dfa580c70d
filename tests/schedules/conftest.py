# SPDX-License-Identifier: Apache-2.0
"""Compile a kernel for one ISA level and call it on guarded memory; made-up binary-coded weights.

Arguments lie in 64-byte aligned memory between bytes that must not change and that read as NaN, so a
kernel that writes or uses values outside its buffers fails the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from schedules.outliers import Outliers, outlier_count, pack_outliers
from schedules.packing import BitPlanes, pack_exponents, pack_keys, pack_offsets, pack_scales
from schedules.pow2 import pow2_scales, scale_storage
from targets import detect_host, get_target, target_names
from targets.spec import TargetSpec

GUARD = 64


def level_spec(name: str) -> TargetSpec:
    """An ISA level, or the plain kernels on the lowest of them."""
    if name == "portable":
        return replace(get_target("x86_64_v2"), name="portable", kernel_isa="portable")
    return get_target(name)


LEVELS = [pytest.param(name, marks=pytest.mark.isa(name)) for name in target_names()]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> TargetSpec:
    """Every ISA level that this CPU runs."""
    return level_spec(request.param)


@pytest.fixture(params=[pytest.param("portable", marks=pytest.mark.isa("x86_64_v2")), *LEVELS])
def kernel_level(request: pytest.FixtureRequest) -> TargetSpec:
    """Every set of table product intrinsics that this CPU runs."""
    return level_spec(request.param)


@pytest.fixture(scope="session")
def host_levels() -> list[TargetSpec]:
    """All levels that this CPU runs, for tests that compare them."""
    return [level_spec(name) for name in ["portable", *reversed(detect_host())]]


class Guarded:
    """A copy of an array in aligned memory with guard bytes around it."""

    def __init__(self, array: NDArray) -> None:
        raw = np.full(array.nbytes + 4 * GUARD, 0xFF, np.uint8)
        start = -raw.ctypes.data % GUARD + GUARD
        self._before, self._after = raw[:start], raw[start + array.nbytes :]
        self.array = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        self.array[...] = array

    def intact(self) -> bool:
        return bool((self._before == 0xFF).all() and (self._after == 0xFF).all())


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled PrimFunc."""

    function: Any

    def __call__(self, inputs: list[NDArray], *outputs: tuple[tuple[int, ...], DTypeLike]) -> list[NDArray]:
        """Runs on copies of ``inputs``; gives back the outputs, then the inputs as they are afterwards."""
        from tvm.runtime import from_dlpack

        guarded = [Guarded(np.ascontiguousarray(a)) for a in inputs]
        guarded += [Guarded(np.full(shape, 77, dtype)) for shape, dtype in outputs]
        self.function(*(from_dlpack(g.array) for g in guarded))
        assert all(g.intact() for g in guarded), "wrote outside a buffer"
        arrays = [g.array for g in guarded]
        return arrays[len(inputs) :] + arrays[: len(inputs)]


Build = Callable[[Any, TargetSpec], Kernel]


@pytest.fixture(scope="session")
def build() -> Build:
    """``build(prim_func, target)``; equal functions are compiled once a session."""
    import tvm
    from tvm_ffi import structural_equal, structural_hash

    cache: dict[tuple[str, int], list[tuple[Any, Kernel]]] = {}

    def compiled(function: Any, target: TargetSpec) -> Kernel:
        known = cache.setdefault((target.cpu, structural_hash(function)), [])
        for other, kernel in known:
            if structural_equal(function, other):
                return kernel
        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        done = tvm.compile(module, target=target.to_tvm())
        known.append((function, Kernel(done["kernel"])))
        return known[-1][1]

    return compiled


@dataclass(frozen=True, slots=True)
class Weights:
    """Random binary-coded weights and the arrays that kernels take."""

    seed: int = 0

    def planes(
        self,
        n: int,
        k: int,
        bits: int,
        group: int,
        *,
        offset: bool = False,
        dtype: str = "float16",
        outliers: float = 0.0,
    ) -> BitPlanes:
        rng = np.random.default_rng([self.seed, n, k, bits])
        raw = rng.integers(0, 2, (bits, n, k), dtype=np.uint8)
        params = rng.uniform(0.01, 1, (bits + offset, n, k // group))
        params[bits:] = rng.standard_normal((int(offset), n, k // group))
        exponents = None
        if dtype == "pow2":
            params, exponents = pow2_scales(params)
        stored = params.astype(scale_storage(dtype))
        count = outlier_count(outliers, n, k)
        places = np.sort(rng.choice(n * k, count, replace=False)).astype(np.int64)
        sparse = Outliers(places=places, values=rng.standard_normal(count).astype(np.float16))
        return BitPlanes(
            planes=np.packbits(raw, axis=2, bitorder="little"),
            scales=stored[:bits],
            offsets=stored[bits] if offset else None,
            shape=(n, k),
            group_size=group,
            exponents=exponents,
            outliers=sparse if count else None,
        )

    @staticmethod
    def arguments(planes: BitPlanes) -> list[NDArray]:
        """What a kernel takes of one segment: keys, scales and, where present, all else."""
        others = [pack_exponents(planes), pack_offsets(planes)]
        if planes.outliers is not None:
            others += pack_outliers(planes.outliers, *planes.shape).values()
        return [pack_keys(planes), pack_scales(planes), *(array for array in others if array is not None)]


@pytest.fixture(scope="session")
def weights() -> Weights:
    return Weights()
