# SPDX-License-Identifier: Apache-2.0
"""ELF facts of everything that is linked, for every target: runtime, glue for Java, a kernel library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tvm
from tvm.script import tirx as T

from targets import resolve_targets
from targets.spec import TargetSpec
from targets.toolchain import Linker, find_linker
from tests.elf_facts import Library, check_library
from tvmq import packaging
from tvmq.build import SONAME, linking
from tvmq.native import library
from tvmq.packaging.android import GLUE, link_glue

TARGETS = ("linux-x86-64", "linux-arm64", "android-arm64")
DECLARED = frozenset(re.findall(r"\b(tvmq_\w+)\(", library.header().decode()))
_NATIVE = Path(packaging.__file__).parent / "android/translator/src/main/java/org/tvmq/Native.java"
NATIVE_METHODS = frozenset(
    f"Java_org_tvmq_Native_{name}"
    for name in re.findall(r"static native \S+ (\w+)\(", _NATIVE.read_text(encoding="utf-8"))
)


@T.prim_func(s_tir=True)
def kernel(A: T.Buffer((64,), "float32"), B: T.Buffer((64,), "float32")) -> None:
    T.func_attr({"tirx.noalias": True})
    for i in range(64):
        with T.sblock("b"):
            vi = T.axis.spatial(64, i)
            B[vi] = T.erf(A[vi]) + A[vi]


@pytest.fixture(params=TARGETS)
def spec(request: pytest.FixtureRequest) -> TargetSpec:
    """The lowest level of a target that something here links for."""
    level = resolve_targets(request.param)[0]
    if find_linker(level) is None:
        pytest.skip(f"nothing links for {request.param} here")
    return level


@pytest.fixture
def compiler(spec: TargetSpec) -> Linker:
    return library.require_linker(spec)


def check(path: Path, spec: TargetSpec, compiler: Linker, *beside: str) -> Library:
    old = spec.system == "linux" and compiler.name == "ziglang"
    return check_library(path, spec.architecture, "linux-2.17" if old else spec.system, *beside)


def test_runtime_and_glue(spec: TargetSpec, compiler: Linker, tmp_path: Path) -> None:
    runtime, glue = tmp_path / "libtvmq.so", tmp_path / GLUE
    runtime.write_bytes(library.runtime_library(compiler))
    found = check(runtime, spec, compiler)
    assert found.exported == DECLARED
    assert found.soname == "libtvmq.so"
    assert runtime.stat().st_size < 140_000
    assert "memfd_create" not in found.imported, "glibc has it from 2.27, bionic from level 30 on"
    link_glue(compiler, glue, runtime)
    found = check(glue, spec, compiler, "libtvmq.so")
    assert found.soname == GLUE
    assert "libtvmq.so" in found.needed
    assert found.exported == NATIVE_METHODS


def test_kernels(spec: TargetSpec, compiler: Linker, tmp_path: Path) -> None:
    path = tmp_path / f"{spec.name}.so"
    executable = tvm.compile(kernel, target=spec.to_tvm())
    executable.export_library(str(path), fcompile=linking(spec))
    found = check(path, spec, compiler)
    assert found.soname == SONAME
    assert all(name.startswith(("__tvm_ffi_", "__TVM")) for name in found.exported)
    assert "__tvm_ffi_main" in found.exported
    assert "erff" in found.imported
    assert found.needed[0].startswith("libm.so"), "what it calls is among what it needs"
    assert path.stat().st_size < 40_000, "not filled up to pages of 64 KB"

