# SPDX-License-Identifier: Apache-2.0
"""Compile a kernel for one ISA level and call it on guarded memory; made-up binary-coded weights.

Arguments lie in 64-byte aligned memory between bytes that must not change and that read as NaN, so a
kernel that writes or uses values outside its buffers fails the test.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from schedules.outliers import Outliers, outlier_count, pack_outliers
from schedules.packing import BitPlanes, pack_exponents, pack_keys, pack_offsets, pack_scales
from schedules.pow2 import pow2_scales, scale_storage
from targets import detect_host, get_target, host_architecture, target_names
from targets.spec import TargetSpec
from targets.toolchain import find_emulator, find_linker
from tvmq.build import linking

GUARD = 64


def level_spec(name: str) -> TargetSpec:
    """An ISA level, or the plain kernels on the lowest of them."""
    if name == "portable":
        return replace(get_target("x86_64_v2"), name="portable", kernel_isa="portable")
    return get_target(name)


LEVELS = [pytest.param(name, marks=pytest.mark.isa(name)) for name in target_names()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the levels of other architectures, keeps those of tests (or cases) that are marked ``emulated``.

    An emulator takes ten to a hundred times as long. ``emulated("arm64_v8")`` keeps that level only, for
    kernels that the levels share.
    """
    own = host_architecture()
    foreign = {name for name in target_names() if get_target(name).architecture != own}

    def wanted(item: pytest.Item) -> bool:
        levels = {level for marker in item.iter_markers("isa") for level in marker.args} & foreign
        marker = item.get_closest_marker("emulated")
        return not levels or (marker is not None and levels <= set(marker.args or foreign))

    items[:] = filter(wanted, items)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> TargetSpec:
    """Every ISA level that this CPU runs; in tests marked ``emulated`` those of other architectures too."""
    return level_spec(request.param)


@pytest.fixture(params=[pytest.param("portable", marks=pytest.mark.isa("x86_64_v2")), *LEVELS])
def kernel_level(request: pytest.FixtureRequest) -> TargetSpec:
    """Every set of table product intrinsics that this CPU runs."""
    return level_spec(request.param)


@pytest.fixture(scope="session")
def host_levels() -> list[TargetSpec]:
    """All levels that this CPU runs, for tests that compare them."""
    return [level_spec(name) for name in ["portable", *reversed(detect_host())]]


@pytest.fixture(scope="session")
def emulated_levels() -> list[TargetSpec]:
    """All levels of other architectures; skips where something is missing to run them."""
    found = [get_target(name) for name in target_names()]
    found = [spec for spec in found if spec.architecture != host_architecture()]
    for spec in found:
        if find_emulator(spec) is None or find_linker(spec) is None:
            pytest.skip(f"{spec.name} needs an emulator and a cross compiler")
    return found


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
    """A compiled PrimFunc: ``run`` takes arrays and gives them back as they are afterwards.

    ``function`` is the loaded kernel itself, where it is one of this machine.
    """

    run: Callable[[list[NDArray]], list[NDArray]]
    function: Any = None

    def __call__(self, inputs: list[NDArray], *outputs: tuple[tuple[int, ...], DTypeLike]) -> list[NDArray]:
        """Runs on copies of ``inputs``; gives back the outputs, then the inputs as they are afterwards."""
        given = [np.ascontiguousarray(a) for a in inputs]
        arrays = self.run(given + [np.full(shape, 77, dtype) for shape, dtype in outputs])
        return arrays[len(inputs) :] + arrays[: len(inputs)]


def run_here(function: Any, arrays: list[NDArray]) -> list[NDArray]:
    """Calls a loaded kernel on guarded copies of ``arrays``."""
    from tvm.runtime import from_dlpack

    guarded = [Guarded(array) for array in arrays]
    function(*(from_dlpack(g.array) for g in guarded))
    assert all(g.intact() for g in guarded), "wrote outside a buffer"
    return [g.array for g in guarded]


class Emulator:
    """A process of another architecture that runs kernels, ``kernel_server.c``; its buffers are guarded."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._libraries = 0

    def load(self, library: Path) -> Callable[[list[NDArray]], list[NDArray]]:
        """The kernel of a library."""
        path = str(library).encode()
        self._ask(b"L" + struct.pack("<I", len(path)) + path)
        self._libraries += 1
        return partial(self._run, self._libraries - 1)

    def _run(self, library: int, arrays: list[NDArray]) -> list[NDArray]:
        self._ask(b"C" + struct.pack("<II", library, len(arrays)) + b"".join(map(_packed, arrays)))
        found = [np.frombuffer(self._read(a.nbytes), a.dtype).reshape(a.shape) for a in arrays]
        return [array.copy() for array in found]

    def _ask(self, request: bytes) -> None:
        """Sends a request; AssertionError with what went wrong."""
        self._in.write(request)
        self._in.flush()
        (status,) = struct.unpack("<i", self._read(4))
        if status:
            (size,) = struct.unpack("<I", self._read(4))
            raise AssertionError(self._read(size).decode())

    def _read(self, size: int) -> bytes:
        data = self._out.read(size)
        if len(data) != size:
            raise AssertionError(f"the emulator died with code {self._process.wait()}")
        return data

    def close(self) -> None:
        self._in.close()
        self._process.wait(timeout=60)


def _packed(array: NDArray) -> bytes:
    code = {"i": 0, "u": 1, "f": 2}[array.dtype.kind]
    head = struct.pack("<BBH", code, 8 * array.dtype.itemsize, array.ndim)
    shape = struct.pack(f"<{array.ndim}qQ", *array.shape, array.nbytes)
    return head + shape + array.tobytes()


Build = Callable[[Any, TargetSpec], Kernel]


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[TargetSpec], Emulator]]:
    """``emulator(level)``: a process on a CPU model that has the level's features and no more."""
    running: dict[str, Emulator] = {}

    def start(target: TargetSpec) -> Emulator:
        if target.name not in running:
            command, linker = find_emulator(target), find_linker(target)
            assert command is not None
            assert linker is not None
            server = tmp_path_factory.mktemp("emulator") / "kernel-server"
            source = Path(__file__).with_name("kernel_server.c")
            subprocess.run([*linker.command, "-rdynamic", source, "-o", server, "-ldl"], check=True)
            running[target.name] = Emulator([*command, str(server)])
        return running[target.name]

    yield start
    for process in running.values():
        process.close()


@pytest.fixture(scope="session")
def build(
    emulator: Callable[[TargetSpec], Emulator], tmp_path_factory: pytest.TempPathFactory
) -> Build:
    """``build(prim_func, target)``; equal functions are compiled once a session."""
    import tvm
    from tvm_ffi import structural_equal, structural_hash

    cache: dict[tuple[str, int], list[tuple[Any, Kernel]]] = {}
    folder = tmp_path_factory.mktemp("kernels")

    def compiled(function: Any, target: TargetSpec) -> Kernel:
        foreign = target.architecture != host_architecture()
        key = target.name if foreign else target.cpu
        known = cache.setdefault((key, structural_hash(function)), [])
        for other, kernel in known:
            if structural_equal(function, other):
                return kernel
        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        done = tvm.compile(module, target=target.to_tvm())
        if foreign:
            library = folder / f"{sum(map(len, cache.values()))}.so"
            done.export_library(str(library), fcompile=linking(target))
            kernel = Kernel(emulator(target).load(library))
        else:
            kernel = Kernel(partial(run_here, done["kernel"]), done["kernel"])
        known.append((function, kernel))
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
