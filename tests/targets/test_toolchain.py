# SPDX-License-Identifier: Apache-2.0
"""Which linker and which emulator a level gets, and what a person is told where there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from targets import get_target, levels_of
from targets.toolchain import (
    EMULATED_CPUS,
    NDK,
    compile_options,
    find_emulator,
    find_linker,
    link_libraries,
    link_options,
    linker_advice,
)

ARM = get_target("arm64_v8")
X86 = get_target("x86_64_v2")


ANDROID = ARM.on("android")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is all of PATH, on an x86-64 machine without ziglang."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(NDK, raising=False)
    monkeypatch.setattr("targets.toolchain.host_architecture", lambda: "x86_64")
    monkeypatch.setattr("targets.toolchain.find_spec", lambda name: None)
    return tmp_path


def add(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_a_machine_links_its_own_code_with_any_compiler(tools: Path) -> None:
    assert find_linker(X86) is None
    assert "no C compiler to link with (looked for cc, gcc, clang); install gcc" in linker_advice(X86)
    clang = add(tools, "clang")
    found = find_linker(X86)
    assert found is not None
    assert (found.name, found.command) == ("clang", (clang,))
    assert find_linker(ARM) is None, "a compiler for this machine links nothing else"


def test_another_architecture_takes_the_cross_compiler(tools: Path) -> None:
    advice = linker_advice(ARM)
    assert "install gcc-aarch64-linux-gnu (Debian's name) or pip install 'tvmq[cross]'" in advice
    assert "\n" not in advice
    gcc = add(tools, "aarch64-linux-gnu-gcc")
    found = find_linker(ARM)
    assert found is not None
    assert found.command == (gcc,)


def test_ziglang_is_the_last_resort(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.toolchain.find_spec", lambda name: SimpleNamespace(name=name))
    for spec in (ARM, X86):
        found = find_linker(spec)
        assert found is not None
        assert found.command[:4] == (sys.executable, "-m", "ziglang", "cc")
        assert found.command[4:] == ("-target", f"{spec.architecture}-linux-gnu.2.17")
    add(tools, "aarch64-linux-gnu-gcc")
    found = find_linker(ARM)
    assert found is not None
    assert found.name == "aarch64-linux-gnu-gcc"


def test_on_arm_the_roles_are_exchanged(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.toolchain.host_architecture", lambda: "aarch64")
    gcc = add(tools, "gcc")
    found = find_linker(ARM)
    assert found is not None
    assert found.command == (gcc,)
    assert "install gcc-x86-64-linux-gnu" in linker_advice(X86)


def test_every_arm_level_has_an_emulated_cpu(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(EMULATED_CPUS) == {spec.name for spec in levels_of("aarch64")}
    assert find_emulator(ARM) is None
    qemu = add(tools, "qemu-aarch64")
    monkeypatch.setattr("targets.toolchain.Path.is_dir", lambda path: True)
    command = find_emulator(ARM)
    assert command == (qemu, "-L", "/usr/aarch64-linux-gnu", "-cpu", "cortex-a53")
    monkeypatch.setattr("targets.toolchain.Path.is_dir", lambda path: False)
    assert find_emulator(ARM) is None


def ndk(folder: Path) -> Path:
    """A folder that has the compilers where Android's NDK has them."""
    tools = folder / "toolchains" / "llvm" / "prebuilt" / "linux-x86_64" / "bin"
    tools.mkdir(parents=True)
    for name in ("clang", "llvm-ar"):
        add(tools, name)
    return tools


def test_android_takes_the_ndk_then_a_cross_compiler_then_zig(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_linker(ANDROID) is None
    advice = linker_advice(ANDROID)
    assert f"(looked for {NDK}, aarch64-linux-gnu-gcc and ziglang); install gcc-aarch64-linux-gnu" in advice
    monkeypatch.setattr("targets.toolchain.find_spec", lambda name: SimpleNamespace(name=name))
    zig = find_linker(ANDROID)
    assert zig is not None
    assert (zig.name, zig.bare, zig.android) == ("ziglang", True, True)
    assert zig.command[-2:] == ("-target", "aarch64-linux-android")
    gcc = add(tools, "aarch64-linux-gnu-gcc")
    cross = find_linker(ANDROID)
    assert cross is not None
    assert (cross.command, cross.archiver) == ((gcc,), ("aarch64-linux-gnu-ar",))
    assert cross.bare
    plain = find_linker(ARM)
    assert plain is not None
    assert not plain.bare, "glibc has its own headers"
    clang = ndk(tools / "ndk") / "clang"
    monkeypatch.setenv(NDK, str(tools / "ndk"))
    found = find_linker(ANDROID)
    assert found is not None
    assert (found.name, found.bare) == ("Android NDK", False)
    assert found.command == (str(clang), "--target=aarch64-linux-android24")
    assert found.archiver == (str(clang.with_name("llvm-ar")),)
    assert find_linker(ARM) == find_linker(ARM.on("linux")), "the NDK is for Android alone"
    assert compile_options(found) == ()
    assert link_libraries(found) == ("-Wl,--as-needed", "-lm", "-ldl")
    assert "-nostdlib" not in link_options(found)
    assert "-Wl,-z,max-page-size=16384" in link_options(found)


def test_an_ndk_that_is_none_is_not_passed_over(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tools, "aarch64-linux-gnu-gcc")
    monkeypatch.setenv(NDK, str(tools))
    with pytest.raises(ValueError, match=r"ANDROID_NDK_HOME is .*, which holds no toolchains.*unset it"):
        find_linker(ANDROID)
    assert find_linker(ARM) is not None
