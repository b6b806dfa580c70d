# SPDX-License-Identifier: Apache-2.0
"""What links a level's code, and what runs it where the machine itself cannot.

Looked for in this order: a C compiler of the machine for its own architecture, a cross gcc, the ``ziglang``
package (``python -m ziglang cc``, which brings headers and libraries of its own).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .detect import host_architecture
from .spec import TargetSpec

NATIVE = ("cc", "gcc", "clang")
ZIG_GLIBC = "2.17"
"""The oldest C library that zig links for: that of the oldest 64-bit Arm distributions in use."""
EMULATED_CPUS = {"arm64_v8": "cortex-a53", "arm64_dotprod": "cortex-a76", "arm64_i8mm": "max"}
"""Models of qemu that have a level's features and not those of the level above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linker:
    """A command that takes a C compiler's options.

    Attributes:
        name: what a person calls it.
        command: the program and the options that choose the machine it links for.
    """

    name: str
    command: tuple[str, ...]


def find_linker(spec: TargetSpec) -> Linker | None:
    """The first C compiler on this machine that links for ``spec``; None where there is none."""
    names = NATIVE if spec.architecture == host_architecture() else (cross_compiler(spec.architecture),)
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return Linker(name=name, command=(path,))
    if find_spec("ziglang") is not None:
        machine = f"{spec.architecture}-linux-gnu.{ZIG_GLIBC}"
        return Linker(name="ziglang", command=(sys.executable, "-m", "ziglang", "cc", "-target", machine))
    return None


def cross_compiler(architecture: str) -> str:
    """The usual name of gcc for another architecture."""
    return f"{architecture}-linux-gnu-gcc"


def linker_advice(spec: TargetSpec) -> str:
    """What was looked for and what to install, in a line, where ``find_linker`` found nothing."""
    if spec.architecture == host_architecture():
        return f"no C compiler to link with (looked for {', '.join(NATIVE)}); install gcc or clang"
    gcc = cross_compiler(spec.architecture)
    package = gcc_package(spec.architecture)
    return (
        f"nothing links {spec.architecture} code for {spec.name} (looked for {gcc} and ziglang); "
        f"install {package} (Debian's name) or pip install 'tvmq[cross]'"
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
