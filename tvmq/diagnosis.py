# SPDX-License-Identifier: Apache-2.0
"""What this machine has and lacks for tvmq: the rows of ``tvmq doctor`` and of ``tvmq targets``.

Loads no compiler and no model.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from . import machine
from .installation import PINS, SIBLINGS, foreign_package, installed_version, pip_command

Status = Literal["ok", "optional", "missing"]
OLDEST_PYTHON = (3, 11)
COMPILE_BYTES = 4 << 30
"""Available memory below which compiling a Transformer-base model is likely to swap."""
TOKENIZERS = {"sentencepiece": "translation models", "tokenizers": "encoders"}
CROSS_TARGETS = ("linux-arm64", "android-arm64")
"""``--target`` for machines that are compiled for from elsewhere."""
EXTRAS = {
    "compile": ("torch", "compile a model"),
    "eval": ("sacrebleu", "BLEU and chrF"),
    "bench": ("ctranslate2", "comparison with other runtimes"),
    "test": ("pytest", "run the tests"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row.

    Attributes:
        name: what was looked for.
        status: ``ok``; ``optional`` is absent but only some verbs need it; ``missing`` needs the fix.
        found: version, path or size, in words.
        fix: what to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """One ISA level.

    Attributes:
        name: what ``--target`` and ``--isa`` take.
        triple: LLVM target triple.
        features: what the CPU must report.
        runs_here: this CPU has all of them.
    """

    name: str
    triple: str
    features: tuple[str, ...]
    runs_here: bool


def isa_levels() -> tuple[TargetInfo, ...]:
    """All ISA levels, lowest first."""
    from targets import detect_host, get_target, target_names

    host = detect_host()
    specs = [get_target(name) for name in target_names()]
    return tuple(
        TargetInfo(
            name=spec.name,
            triple=spec.triple,
            features=tuple(sorted(spec.cpu_flags)),
            runs_here=spec.name in host,
        )
        for spec in specs
    )


def diagnose() -> tuple[Check, ...]:
    """All rows, in the order in which a person would fix them."""
    return (
        _python(),
        *(_pinned(name, wanted) for name, wanted in PINS.items()),
        *(_tokenizer(name, models) for name, models in TOKENIZERS.items()),
        *_own_packages(),
        _compiler(),
        _ndk(),
        _zig(),
        *(_cross_linker(target) for target in CROSS_TARGETS),
        _emulator("linux-arm64"),
        _jdk(),
        _cpu(),
        _memory(),
        *(_extra(extra, *facts) for extra, facts in EXTRAS.items()),
    )


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        return Check(name="Python", status="missing", found=found, fix="install Python 3.11 or newer")
    return Check(name="Python", status="ok", found=found)


def _pinned(distribution: str, wanted: str) -> Check:
    found = installed_version(distribution)
    if found == wanted:
        return Check(name=distribution, status="ok", found=wanted)
    fix = pip_command(f"{distribution}=={wanted}")
    return Check(name=distribution, status="missing", found=found or "not installed", fix=fix)


def _tokenizer(distribution: str, models: str) -> Check:
    found = installed_version(distribution)
    if found is None:
        fix = pip_command(distribution)
        return Check(name=distribution, status="missing", found=f"not installed ({models} need it)", fix=fix)
    return Check(name=distribution, status="ok", found=f"{found} ({models})")


def _own_packages() -> Iterator[Check]:
    for name in SIBLINGS:
        origin = foreign_package(name)
        if origin is not None:
            fix = f"pip uninstall {name}"
            yield Check(name=f"package {name}", status="missing", found=str(origin), fix=fix)


def _compiler() -> Check:
    fix = "install gcc or clang; it links what tvmq compiles"
    path = next(filter(None, (shutil.which(name) for name in ("cc", "gcc", "clang"))), None)
    if path is None:
        return Check(name="C compiler", status="missing", found="none on PATH", fix=fix)
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return Check(name="C compiler", status="missing", found=f"{path} does not start", fix=fix)
    return Check(name="C compiler", status="ok", found=f"{done.stdout.splitlines()[0]} ({path})")


def _ndk() -> Check:
    """Android's own compiler, which is not needed but comes first."""
    from targets.toolchain import NDK, ndk_clang

    try:
        clang = ndk_clang()
    except ValueError as error:
        return Check(name="Android NDK", status="missing", found=str(error), fix=f"correct or unset {NDK}")
    if clang is None:
        fix = f"to use it, set {NDK} to its folder"
        return Check(name="Android NDK", status="optional", found=f"none ({NDK} is not set)", fix=fix)
    return Check(name="Android NDK", status="ok", found=clang)


def _zig() -> Check:
    from targets.toolchain import has_zig

    if has_zig():
        return Check(name="ziglang", status="ok", found=installed_version("ziglang") or "installed")
    found = "not installed (links for other machines where there is no cross gcc)"
    return Check(name="ziglang", status="optional", found=found, fix=pip_command("tvmq[cross]"))


def _cross_linker(target: str) -> Check:
    """What links for a target."""
    from targets import resolve_targets
    from targets.toolchain import find_linker, gcc_package

    spec = resolve_targets(target)[0]
    name = f"linker for {target}"
    try:
        linker = find_linker(spec)
    except ValueError as error:
        return Check(name=name, status="missing", found=str(error), fix="see Android NDK")
    if linker is not None:
        what = ", with tvmq's declarations of Android's C library" if linker.bare else ""
        return Check(name=name, status="ok", found=f"{linker.name} ({linker.command[0]}){what}")
    fix = f"install {gcc_package(spec.architecture)}, or {pip_command('tvmq[cross]')}"
    return Check(name=name, status="optional", found=f"none (--target {target} needs one)", fix=fix)


def _emulator(target: str) -> Check:
    """What runs the levels of another architecture: only tests need it."""
    from targets import host_architecture, resolve_targets
    from targets.toolchain import find_emulator

    spec = resolve_targets(target)[0]
    name = f"emulator for {target}"
    if spec.architecture == host_architecture():
        return Check(name=name, status="ok", found="this machine")
    command = find_emulator(spec)
    if command is None:
        fix = "install qemu-user and libc6-dev-arm64-cross (Debian's names)"
        return Check(name=name, status="optional", found="none (only tests use it)", fix=fix)
    return Check(name=name, status="ok", found=command[0])


def _jdk() -> Check:
    """What compiles and runs Java: only tests of the glue for Android need it."""
    paths = [shutil.which(name) for name in ("javac", "java")]
    if None in paths:
        fix = "install default-jdk-headless (Debian's name)"
        return Check(name="JDK", status="optional", found="none (only tests use it)", fix=fix)
    return Check(name="JDK", status="ok", found=str(paths[0]))


def _cpu() -> Check:
    from targets import detect_host, host_cpu, refused_host

    levels = detect_host()
    found = f"{host_cpu()}, {machine.usable_cores()} cores, {', '.join(levels) or 'no known ISA level'}"
    found += "".join(f"; the system refuses {name}" for name in refused_host())
    if levels:
        return Check(name="CPU", status="ok", found=found)
    return Check(name="CPU", status="optional", found=found, fix="compile with --target for another machine")


def _memory() -> Check:
    total, available = machine.memory_bytes()
    if total is None or available is None:
        return Check(name="memory", status="ok", found="unknown")
    found = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available"
    if available < COMPILE_BYTES:
        return Check(name="memory", status="optional", found=found, fix="free some before compiling a model")
    return Check(name="memory", status="ok", found=found)


def _extra(extra: str, module: str, purpose: str) -> Check:
    name = f"extra {extra}"
    if importlib.util.find_spec(module) is None:
        return Check(
            name=name,
            status="optional",
            found=f"no {module} ({purpose})",
            fix=pip_command(f"tvmq[{extra}]"),
        )
    return Check(name=name, status="ok", found=f"{module} {installed_version(module) or ''} ({purpose})")


def healthy(checks: tuple[Check, ...]) -> bool:
    """Nothing that every verb needs is missing."""
    return all(check.status != "missing" for check in checks)
