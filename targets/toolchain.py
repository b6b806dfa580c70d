# SPDX-License-Identifier: Apache-2.0
"""What compiles and links for a target, and what runs its code where the machine itself cannot.

Looked for in this order: for Android its NDK, if ``ANDROID_NDK_HOME`` names one; a C compiler of the machine
for its own architecture, a cross gcc; the ``ziglang`` package (``python -m ziglang cc``, which brings headers
and libraries of its own). Those that know nothing of Android get ``bionic`` in place of its headers and
libraries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from . import bionic
from .detect import host_architecture
from .spec import ANDROID_API, TargetSpec

NATIVE = ("cc", "gcc", "clang")
NDK = "ANDROID_NDK_HOME"
ZIG_GLIBC = "2.17"
"""The oldest C library that zig links for: that of the oldest 64-bit Arm distributions in use."""
EMULATED_CPUS = {"arm64_v8": "cortex-a53", "arm64_dotprod": "cortex-a76", "arm64_i8mm": "max"}
"""Models of qemu that have a level's features and not those of the level above."""
_LINUX = ("-Wl,-z,noexecstack",)
_ANDROID = (
    # pages of 16 KB: also the end of what is read-only after relocation must lie on one
    "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=16384", "-Wl,-z,common-page-size=16384", "-Wl,-z,relro",
    "-Wl,-z,now", "-Wl,--hash-style=gnu",
)  # fmt: skip
_BARE = ("-nostdlib",)
_BARE_ZIG = ("-nostdlib", "--rtlib=compiler-rt")
"""Zig calls helpers of its own for atomics; they lie in its library, which needs no other."""
_BARE_GCC = ("-ffixed-x18", "-mno-outline-atomics", "-fno-stack-protector", "-U_FORTIFY_SOURCE")
"""x18 is the platform's on Android; atomics of libgcc would ask glibc for the CPU's features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linker:
    """A command that takes a C compiler's options.

    Attributes:
        name: what a person calls it.
        command: the program and the options that choose the machine it links for.
        archiver: the program that makes static libraries beside it, and its options.
        android: it links for Android.
        bare: it comes without Android's headers and libraries.
    """

    name: str
    command: tuple[str, ...]
    archiver: tuple[str, ...] = ("ar",)
    android: bool = False
    bare: bool = False


def find_linker(spec: TargetSpec) -> Linker | None:
    """The first C compiler on this machine that links for ``spec``; None where there is none.

    Raises:
        ValueError: ``ANDROID_NDK_HOME`` names a folder that is no NDK.
    """
    android = spec.system == "android"
    clang = ndk_clang() if android else None
    if clang is not None:
        target = f"--target={spec.architecture}-linux-android{ANDROID_API}"
        archiver = (str(Path(clang).with_name("llvm-ar")),)
        return Linker(name="Android NDK", command=(clang, target), archiver=archiver, android=True)
    found = find_compiler(spec.architecture)
    if found is not None:
        name, path = found
        ar = cross_tool(spec.architecture, "ar") if name == cross_compiler(spec.architecture) else "ar"
        return Linker(name=name, command=(path,), archiver=(ar,), android=android, bare=android)
    if has_zig():
        zig = (sys.executable, "-m", "ziglang")
        machine = f"{spec.architecture}-linux-" + ("android" if android else f"gnu.{ZIG_GLIBC}")
        command = (*zig, "cc", "-target", machine)
        return Linker(name="ziglang", command=command, archiver=(*zig, "ar"), android=android, bare=android)
    return None


def find_compiler(architecture: str) -> tuple[str, str] | None:
    """(name, path) of the first C compiler that makes code of an architecture for Linux, but for zig."""
    names = NATIVE if architecture == host_architecture() else (cross_compiler(architecture),)
    found = ((name, shutil.which(name)) for name in names)
    return next(((name, path) for name, path in found if path is not None), None)


def has_zig() -> bool:
    """Whether the ziglang package is installed."""
    return find_spec("ziglang") is not None


def ndk_clang() -> str | None:
    """The C compiler of the NDK that ``ANDROID_NDK_HOME`` names; None where it is not set."""
    home = os.environ.get(NDK)
    if not home:
        return None
    found = sorted(Path(home).glob("toolchains/llvm/prebuilt/*/bin/clang"))
    if not found:
        where = "toolchains/llvm/prebuilt/*/bin/clang"
        raise ValueError(f"{NDK} is {home}, which holds no {where} (correct it, or unset it)")
    return str(found[0])


def compile_options(linker: Linker) -> tuple[str, ...]:
    """Options with which ``linker`` compiles C."""
    if not linker.bare:
        return ()
    own = ("-D__ANDROID__", "-isystem", bionic.include_folder())
    if linker.name == "ziglang":
        return ("-nostdlibinc", *own, "-fno-stack-protector")
    return ("-nostdinc", *own, "-isystem", _own_headers(linker.command), *_gcc_options(linker.command))


def link_options(linker: Linker) -> tuple[str, ...]:
    """Options with which ``linker`` makes shared libraries."""
    bare = _BARE_ZIG if linker.name == "ziglang" else _BARE
    return (*(_ANDROID if linker.android else _LINUX), *(bare if linker.bare else ()))


def link_libraries(linker: Linker) -> tuple[str, ...]:
    """The C libraries, to be named behind all code; only those that the code uses are linked.

    Raises:
        subprocess.CalledProcessError: ``linker`` cannot make the libraries that stand in for Android's.
    """
    if linker.bare:
        stubs = bionic.stub_libraries(linker.command, link_options(linker))
        return ("-Wl,--as-needed", *stubs)
    if linker.android:
        return ("-Wl,--as-needed", "-lm", "-ldl")
    return ("-Wl,--as-needed", "-lm", "-lpthread", "-ldl")


@cache
def _own_headers(command: tuple[str, ...]) -> str:
    """The folder of headers that belong to the compiler itself."""
    done = subprocess.run(
        [*command, "-print-file-name=include"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@cache
def _gcc_options(command: tuple[str, ...]) -> tuple[str, ...]:
    """``_BARE_GCC``, as far as the compiler (a clang may be called cc) knows them."""
    test = [*command, *_BARE_GCC, "-Werror", "-fsyntax-only", "-x", "c", "/dev/null"]
    known = subprocess.run(test, capture_output=True, check=False).returncode == 0
    return _BARE_GCC if known else tuple(option for option in _BARE_GCC if option != "-mno-outline-atomics")


def cross_compiler(architecture: str) -> str:
    """The usual name of gcc for another architecture."""
    return cross_tool(architecture, "gcc")


def cross_tool(architecture: str, tool: str) -> str:
    """The usual name of a tool for another architecture."""
    return f"{architecture}-linux-gnu-{tool}"


def linker_advice(spec: TargetSpec) -> str:
    """What was looked for and what to install, in a line, where ``find_linker`` found nothing."""
    native = spec.architecture == host_architecture()
    if native and spec.system == "linux":
        return f"no C compiler to link with (looked for {', '.join(NATIVE)}); install gcc or clang"
    gcc = "gcc" if native else gcc_package(spec.architecture)
    names = [NDK] if spec.system == "android" else []
    looked = ", ".join([*names, *(NATIVE if native else [cross_compiler(spec.architecture)])])
    what = f"{spec.architecture} code" + (" for Android" if spec.system == "android" else "")
    return (
        f"nothing links {what} for {spec.name} (looked for {looked} and ziglang); "
        f"install {gcc} (Debian's name) or pip install 'tvmq[cross]'"
    )


def gcc_package(architecture: str) -> str:
    """Debian's package of the cross gcc."""
    return f"gcc-{architecture.replace('_', '-')}-linux-gnu"


def find_emulator(spec: TargetSpec) -> tuple[str, ...] | None:
    """The command that runs programs of an Arm level under qemu's user emulation; None without one.

    It is linked dynamically against the cross compiler's C library.
    """
    path = shutil.which(f"qemu-{spec.architecture}")
    root = Path(f"/usr/{spec.architecture}-linux-gnu")
    if path is None or not root.is_dir() or spec.name not in EMULATED_CPUS:
        return None
    return (path, "-L", str(root), "-cpu", EMULATED_CPUS[spec.name])
