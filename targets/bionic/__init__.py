# SPDX-License-Identifier: Apache-2.0
"""Stands in for Android's headers and C libraries where a compiler comes without them.

``bionic.h`` declares what C code may use. From it come a folder of standard headers and, for the linker,
libraries that have Android's names and these functions and hold nothing: what is linked with them needs
``libc.so``, ``libm.so`` and ``libdl.so`` of the phone, without version names and without start files.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

HEADER = Path(__file__).with_name("bionic.h")
LIBRARIES = ("libc.so", "libm.so", "libdl.so")
NAMES = (
    "dirent.h", "dlfcn.h", "elf.h", "errno.h", "fcntl.h", "limits.h", "link.h", "math.h", "pthread.h",
    "sched.h", "stdint.h", "stdio.h", "stdlib.h", "string.h", "sys/auxv.h", "sys/mman.h", "sys/stat.h",
    "sys/types.h", "time.h", "unistd.h",
)  # fmt: skip
"""Standard headers that are ``bionic.h``; those that need no library are the compiler's own."""
_SECTION = re.compile(r"^/\* == (\w+\.so) == \*/$", re.MULTILINE)
_FUNCTION = re.compile(r"^\w[^(;]*?\b(\w+)\(.*;$", re.MULTILINE)
_VARIABLE = re.compile(r"^extern [^(;]*?\b(\w+);$", re.MULTILINE)


def symbols(library: str) -> tuple[list[str], list[str]]:
    """(functions, variables) of one of ``LIBRARIES`` that ``bionic.h`` declares."""
    parts = _SECTION.split(HEADER.read_text(encoding="utf-8"))
    body = dict(zip(parts[1::2], parts[2::2], strict=True))[library]
    return _FUNCTION.findall(body), _VARIABLE.findall(body)


@cache
def include_folder() -> str:
    """A folder of standard headers, which lives as long as the process."""
    folder = _kept_folder()
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f'#include "{HEADER}"\n', encoding="utf-8")
    return str(folder)


@cache
def stub_libraries(command: tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of libraries to link with, made by a C compiler; they live as long as the process.

    Args:
        command: the compiler.
        options: that it is always given when it links for Android.

    Raises:
        subprocess.CalledProcessError: the compiler cannot make them.
    """
    folder = _kept_folder()
    return tuple(_stub(folder, name, [*command, *options]) for name in LIBRARIES)


def _stub(folder: Path, name: str, command: Sequence[str]) -> str:
    functions, variables = symbols(name)
    lines = [f"void {function}(void) {{}}" for function in functions]
    lines += [f"void *{variable};" for variable in variables]
    source, output = folder / f"{name}.c", folder / name
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = ("-shared", "-fPIC", "-w", "-O1", "-fno-builtin", f"-Wl,-soname,{name}")
    done = [*command, *plain, "-o", str(output), str(source)]
    subprocess.run(done, capture_output=True, text=True, check=True)
    return str(output)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _kept_folder() -> Path:
    """An empty folder that goes when the process ends."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tvmq-bionic-"))
    return Path(_FOLDERS[-1].name)
