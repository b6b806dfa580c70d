# SPDX-License-Identifier: Apache-2.0
"""ISA levels: the registry, what a CPU can run, what the compiler is told."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from targets import (
    detect_host,
    get_target,
    host_architecture,
    host_cpu,
    host_flags,
    levels_of,
    permitted,
    pick_targets,
    refused_host,
    resolve_targets,
    set_of,
    system_of,
    target_names,
)
from targets.detect import runnable
from targets.permission import request_tile_data
from targets.spec import TargetSpec, always, is_neon, vector_isa

ALL = tuple(get_target(name) for name in target_names())
ARCHITECTURES = ("x86_64", "aarch64")
X86, ARM = (levels_of(architecture) for architecture in ARCHITECTURES)


def cpuinfo(folder: Path, text: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(text, encoding="utf-8")
    return path


def test_registry_names_and_ranks() -> None:
    assert [spec.name for spec in ALL] == list(target_names())
    assert [spec.rank for spec in ALL] == sorted({spec.rank for spec in ALL})
    assert X86 + ARM == ALL
    for levels in (X86, ARM):
        for lower, higher in pairwise(levels):
            assert lower.cpu_flags < higher.cpu_flags


def test_unknown_target_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown target 'avx9'; known: host, linux-x86-64, "):
        get_target("avx9")


@pytest.mark.parametrize(
    ("missing", "best"),
    [
        (set(), "x86_64_v4_amx"),
        ({"amx_int8"}, "x86_64_v4_vnni"),
        ({"avx512vbmi"}, "x86_64_v3"),
        ({"fma"}, "x86_64_v2"),
        ({"ssse3"}, None),
    ],
)
def test_runnable_needs_every_flag(missing: set[str], best: str | None) -> None:
    permitted = tuple(replace(spec, permission=always) for spec in ALL)
    found = runnable(permitted, X86[-1].cpu_flags - missing, "x86_64")
    assert [spec.name for spec in found][:1] == ([best] if best else [])
    assert [spec.rank for spec in found] == sorted((spec.rank for spec in found), reverse=True)
    assert runnable(permitted, frozenset(), "x86_64") == []


@pytest.mark.parametrize(
    ("features", "levels"),
    [
        ("fp asimd evtstrm aes crc32", ["arm64_v8"]),
        ("fp asimd atomics asimddp", ["arm64_dotprod", "arm64_v8"]),
        ("fp asimd asimddp i8mm bf16", ["arm64_i8mm", "arm64_dotprod", "arm64_v8"]),
        ("fp asimd i8mm", ["arm64_v8"]),
        ("fp", []),
    ],
)
def test_arm_levels_need_their_features(features: str, levels: list[str]) -> None:
    found = runnable(ALL, frozenset(features.split()), "aarch64")
    assert [spec.name for spec in found] == levels


def test_no_machine_runs_levels_of_another_architecture() -> None:
    everything = frozenset().union(*(spec.cpu_flags for spec in ALL))
    permitted = tuple(replace(spec, permission=always) for spec in ALL)
    assert {spec.architecture for spec in runnable(permitted, everything, "aarch64")} == {"aarch64"}
    assert {spec.architecture for spec in runnable(permitted, everything, "x86_64")} == {"x86_64"}
    assert runnable(permitted, everything, "riscv64") == []


@pytest.mark.parametrize(
    ("machine", "architecture"), [("AMD64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")]
)
def test_architecture_has_one_spelling(
    monkeypatch: pytest.MonkeyPatch, machine: str, architecture: str
) -> None:
    monkeypatch.setattr("targets.detect.platform.machine", lambda: machine)
    assert host_architecture() == architecture


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with every feature under a system that keeps the tile registers."""
    denied = replace(get_target("x86_64_v4_amx"), permission=lambda: False)
    monkeypatch.setattr("targets.x86_64_v4_amx.TARGET", denied)
    monkeypatch.setattr("targets.host_flags", lambda: X86[-1].cpu_flags)
    monkeypatch.setattr("targets.host_architecture", lambda: "x86_64")


def test_a_refused_level_falls_back_to_the_one_below(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    assert detect_host() == ["x86_64_v4_vnni", "x86_64_v3", "x86_64_v2"]
    assert refused_host() == ["x86_64_v4_amx"]
    assert not permitted("x86_64_v4_amx")
    assert permitted("x86_64_v4_vnni")
    assert permitted("another name")


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="Linux on x86-64 only")
@pytest.mark.parametrize(("answer", "granted"), [(0, True), (-1, False)])
def test_permission_is_what_the_system_answers(
    monkeypatch: pytest.MonkeyPatch, answer: int, granted: bool
) -> None:
    asked: list[tuple[int, ...]] = []

    class Library:
        def __init__(self, name: None, use_errno: bool) -> None:
            def syscall(*arguments: ctypes.c_long) -> int:
                asked.append(tuple(argument.value for argument in arguments))
                return answer

            self.syscall = syscall

    monkeypatch.setattr("targets.permission.ctypes.CDLL", Library)
    assert request_tile_data.__wrapped__() == granted
    assert asked == [(158, 0x1023, 18)]


def test_no_permission_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.permission.platform.machine", lambda: "aarch64")
    assert not request_tile_data.__wrapped__()


def test_amx_runs_the_vector_kernels_of_the_level_below() -> None:
    amx, below = get_target("x86_64_v4_amx"), get_target("x86_64_v4_vnni")
    assert vector_isa(amx.kernel_isa) == below.kernel_isa == vector_isa(below.kernel_isa)
    assert set(below.llvm_features) < set(amx.llvm_features)
    assert (amx.cpu, amx.triple) == (below.cpu, below.triple)


def test_arm_levels_differ_in_dot_products_only() -> None:
    assert {vector_isa(spec.kernel_isa) for spec in ARM} == {"neon"}
    assert len({spec.kernel_isa for spec in ARM}) == len(ARM)
    assert all(is_neon(spec.kernel_isa) == (spec in ARM) for spec in ALL)


def test_flags_are_read_from_the_system(tmp_path: Path) -> None:
    path = cpuinfo(
        tmp_path, "processor\t: 0\nmodel name\t: A CPU @ 2GHz\nflags\t\t: fpu ssse3 avx2\nflags: other\n"
    )
    assert host_flags(path) == {"fpu", "ssse3", "avx2"}
    assert host_cpu(path) == "A CPU @ 2GHz"
    arm = cpuinfo(tmp_path, "processor : 0\nFeatures : fp asimd\n")
    assert host_flags(arm) == {"fp", "asimd"}
    assert host_cpu(arm) == "unknown"
    cores = "".join(f"processor: {i}\nCPU implementer : 0x41\nCPU part : {part}\n\n"
                    for i, part in enumerate(["0xd05", "0xd05", "0xd0b", "0xfff"]))  # fmt: skip
    assert host_cpu(cpuinfo(tmp_path, cores)) == "Cortex-A55, Cortex-A76, CPU 0x41 part 0xfff"


@pytest.mark.parametrize("text", ["", "nothing here\n"])
def test_unreadable_system_has_no_flags(tmp_path: Path, text: str) -> None:
    path = cpuinfo(tmp_path, text) if text else tmp_path / "missing"
    assert host_flags(path) == frozenset()
    assert host_cpu(path) == "unknown"


def test_resolve() -> None:
    assert resolve_targets("linux-x86-64") == X86
    assert resolve_targets("linux-arm64") == ARM
    assert [spec.name for spec in ARM] == ["arm64_v8", "arm64_dotprod", "arm64_i8mm"]
    assert levels_of("riscv64") == ()
    assert resolve_targets("x86_64_v3") == (get_target("x86_64_v3"),)
    with pytest.raises(ValueError, match="unknown target 'x87'"):
        resolve_targets("x87")


def test_android_has_the_levels_of_its_machine() -> None:
    found = resolve_targets("android-arm64")
    assert [spec.name for spec in found] == [spec.name for spec in ARM]
    assert {spec.system for spec in found} == {"android"}
    assert {spec.triple for spec in found} == {"aarch64-unknown-linux-android24"}
    assert tuple(spec.on("linux") for spec in found) == ARM
    assert set_of("aarch64", "android") == "android-arm64"
    assert [system_of(name) for name in ("android-arm64", "linux-arm64", "host", "other")] == [
        "android", "linux", "linux", "linux",
    ]  # fmt: skip


def test_named_levels_are_of_the_targets_system() -> None:
    (level,) = pick_targets("android-arm64", ["arm64_dotprod"])
    assert level == get_target("arm64_dotprod").on("android")
    assert pick_targets("host", ["arm64_v8"]) == (get_target("arm64_v8"),)
    assert pick_targets("linux-arm64", None) == ARM
    with pytest.raises(ValueError, match="x86_64_v2 is no ISA level of android-arm64"):
        pick_targets("android-arm64", ["arm64_v8", "x86_64_v2"])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (["x86_64_v4_vnni", "x86_64_v3", "x86_64_v2"], ["x86_64_v2", "x86_64_v4_vnni"]),
        (["x86_64_v2"], ["x86_64_v2"]),
        (["arm64_i8mm", "arm64_dotprod", "arm64_v8"], ["arm64_v8", "arm64_i8mm"]),
    ],
)
def test_host_is_the_best_level_and_the_fallback(
    monkeypatch: pytest.MonkeyPatch, host: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr("targets.detect_host", lambda: host)
    assert [spec.name for spec in resolve_targets("host")] == expected


def test_host_without_any_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.detect_host", list)
    with pytest.raises(ValueError, match="runs no known ISA level; name a --target"):
        resolve_targets("host")


def test_detect_host_gives_known_names_best_first() -> None:
    found = detect_host()
    assert set(found) <= set(target_names())
    assert found == sorted(found, key=lambda name: -get_target(name).rank)


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.name)
def test_compiler_target(spec: TargetSpec) -> None:
    target = spec.to_tvm()
    assert target.attrs["mcpu"] == spec.cpu
    assert target.attrs["mtriple"] == spec.triple
    assert list(target.attrs.get("mattr", [])) == [f"+{feature}" for feature in spec.llvm_features]
