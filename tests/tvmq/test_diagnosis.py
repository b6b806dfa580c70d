# SPDX-License-Identifier: Apache-2.0
"""Doctor's rows and the check of pins and package folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvmq import diagnosis, installation
from tvmq.diagnosis import Check, diagnose, healthy
from tvmq.errors import MissingToolError


@pytest.fixture
def fresh_check() -> Iterator[None]:
    installation.check_installation.cache_clear()
    yield
    installation.check_installation.cache_clear()


def row(name: str) -> Check:
    (found,) = [check for check in diagnose() if check.name == name]
    return found


def test_this_machine_is_fit() -> None:
    assert healthy(diagnose())
    assert row("apache-tvm").found == installation.PINS["apache-tvm"]
    assert row("extra test").status == "ok"


@pytest.mark.usefixtures("fresh_check")
def test_another_version_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installation.PINS, "apache-tvm", "9.9")
    found = installation.installed_version("apache-tvm")
    message = f"tvmq needs apache-tvm 9.9, found {found}; run: pip install 'apache-tvm==9.9'"
    with pytest.raises(MissingToolError, match=message):
        installation.check_installation()
    assert row("apache-tvm").status == "missing"
    assert row("apache-tvm").fix == "pip install 'apache-tvm==9.9'"
    assert not healthy(diagnose())


@pytest.mark.usefixtures("fresh_check")
def test_an_absent_pin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "PINS", {"no-such-distribution": "1.0"})
    with pytest.raises(MissingToolError, match=r"tvmq needs no-such-distribution 1\.0, found none; run: pip"):
        installation.check_installation()


@pytest.mark.usefixtures("fresh_check")
def test_a_foreign_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "schedules", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    message = r"the package 'schedules' comes from .*; run: pip uninstall schedules"
    with pytest.raises(MissingToolError, match=message):
        installation.check_installation()
    assert row("package schedules").status == "missing"


def test_a_refused_level_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.refused_host", lambda: ["x86_64_v4_amx"])
    assert row("CPU").found.endswith("; the system refuses x86_64_v4_amx")


def test_tokenizers_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert row("tokenizers").status == "ok"
    monkeypatch.setattr(diagnosis, "installed_version", lambda name: None)
    assert row("sentencepiece").found == "not installed (translation models need it)"
    assert row("tokenizers").fix == "pip install 'tokenizers'"
    assert not healthy(diagnose())


def test_no_compiler_is_a_row_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert row("C compiler").status == "missing"
    assert row("C compiler").fix.startswith("install gcc or clang")


def test_what_links_and_runs_arm_code_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.host_architecture", lambda: "x86_64")
    monkeypatch.setattr("targets.toolchain.host_architecture", lambda: "x86_64")
    monkeypatch.setattr("targets.toolchain.find_spec", lambda name: None)
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, fix in (
        ("linker for linux-arm64", "install gcc-aarch64-linux-gnu, or pip install 'tvmq[cross]'"),
        ("linker for android-arm64", "install gcc-aarch64-linux-gnu, or pip"),
        ("emulator for linux-arm64", "install qemu-user"),
        ("ziglang", "pip install 'tvmq[cross]'"),
        ("JDK", "install default-jdk-headless"),
        ("Android NDK", "to use it, set ANDROID_NDK_HOME"),
    ):
        found = row(name)
        assert found.status == "optional"
        assert found.fix.startswith(fix)
    gcc = tmp_path / "aarch64-linux-gnu-gcc"
    gcc.write_text("#!/bin/sh\n")
    gcc.chmod(0o755)
    assert row("linker for linux-arm64").found == f"aarch64-linux-gnu-gcc ({gcc})"
    android = row("linker for android-arm64").found
    assert android == f"aarch64-linux-gnu-gcc ({gcc}), with tvmq's declarations of Android's C library"
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    assert row("Android NDK").status == row("linker for android-arm64").status == "missing"
    assert "which holds no toolchains/llvm" in row("Android NDK").found
    clang = tmp_path / "toolchains" / "llvm" / "prebuilt" / "any" / "bin" / "clang"
    clang.parent.mkdir(parents=True)
    clang.touch()
    assert row("Android NDK").found == str(clang)
    assert row("linker for android-arm64").found == f"Android NDK ({clang})"
    monkeypatch.setattr("targets.host_architecture", lambda: "aarch64")
    assert row("emulator for linux-arm64").found == "this machine"


def test_a_missing_extra_names_its_command() -> None:
    with pytest.raises(MissingToolError, match=r"run: pip install 'tvmq\[eval\]'"):
        installation.require("no_such_module", "eval")
