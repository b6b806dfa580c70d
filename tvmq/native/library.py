# SPDX-License-Identifier: Apache-2.0
"""Compiles the C sources of the native runtime, once per compiler and process."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from targets.toolchain import Linker
from tvmq.errors import MissingToolError

LIBRARY = "lib/libtvmq.so"
HEADER = "include/tvmq.h"
"""Where an artifact holds the runtime and its interface."""
FOLDER = Path(__file__).parent
_FLAGS = (
    "-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-s",
    "-Wl,--build-id=none", "-Wl,-soname,libtvmq.so", "-Wl,-z,defs", "-Wl,-z,max-page-size=16384",
)  # fmt: skip
_LIBRARIES = ("-lm", "-lpthread", "-ldl")


def sources() -> list[Path]:
    """The C files of the runtime."""
    return sorted((FOLDER / "src").glob("*.c"))


def header() -> bytes:
    """``tvmq.h``."""
    return (FOLDER / "include" / "tvmq.h").read_bytes()


@cache
def runtime_library(compiler: Linker) -> bytes:
    """The shared library for the machine that ``compiler`` links for.

    Raises:
        MissingToolError: the compiler cannot make it; its first complaint is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "libtvmq.so"
        include = f"-I{FOLDER / 'include'}"
        command = [*compiler.command, *_FLAGS, include, *map(str, sources())]
        command += ["-o", str(output), *_LIBRARIES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next(iter(done.stderr.strip().splitlines()), "no message")
            raise MissingToolError(f"{compiler.name} cannot compile the native runtime: {first} (repair it)")
        return output.read_bytes()
