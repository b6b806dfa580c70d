# SPDX-License-Identifier: Apache-2.0
"""Compiles the C sources of the native runtime, once per compiler and process."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from targets.spec import TargetSpec
from targets.toolchain import (
    Linker,
    compile_options,
    find_linker,
    link_libraries,
    link_options,
    linker_advice,
)
from tvmq.errors import MissingToolError

LIBRARY = "lib/libtvmq.so"
HEADER = "include/tvmq.h"
"""Where an artifact holds the runtime and its interface."""
FOLDER = Path(__file__).parent
_COMPILE = ("-std=c11", "-O2", "-fPIC", "-g0", "-fvisibility=hidden", "-ffp-contract=off")
_SHARED = ("-shared", "-s", "-Wl,--build-id=none", "-Wl,-z,defs")


def require_linker(target: TargetSpec) -> Linker:
    """What links code of ``target``; MissingToolError where there is nothing."""
    try:
        linker = find_linker(target)
    except ValueError as error:
        raise MissingToolError(str(error)) from error
    if linker is None:
        raise MissingToolError(linker_advice(target))
    return linker


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
        shared_library(compiler, output, sources(), what="the native runtime")
        return output.read_bytes()


def shared_library(
    compiler: Linker, output: Path, files: Sequence[Path], *words: str | Path, what: str
) -> None:
    """Compiles C files into a stripped shared library with ``output``'s name, whose symbols are hidden.

    Args:
        compiler: for the machine that it is for.
        output: the library to write.
        files: of C.
        words: further options and libraries.
        what: its name in messages.

    Raises:
        MissingToolError: the compiler cannot make it; its first complaint is in the message.
    """
    options = [*_COMPILE, *_SHARED, f"-Wl,-soname,{output.name}", *_includes(compiler, what)]
    ends = _ask(link_libraries, compiler, what)
    named = [*map(str, [*files, *words]), "-o", str(output)]
    run_compiler(compiler, [*compiler.command, *options, *link_options(compiler), *named, *ends], what)


@cache
def static_library(compiler: Linker) -> bytes:
    """The runtime as ``libtvmq.a``, for programs that hold it; MissingToolError as above."""
    what = "the native runtime"
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for file in sources():
            objects.append(f"{folder}/{file.stem}.o")
            command = [*compiler.command, *_COMPILE, *_includes(compiler, what), "-c", str(file)]
            run_compiler(compiler, [*command, "-o", objects[-1]], what)
        archive = Path(folder) / "libtvmq.a"
        run_compiler(compiler, [*compiler.archiver, "rcsD", str(archive), *objects], what)
        return archive.read_bytes()


def _includes(compiler: Linker, what: str) -> list[str]:
    return [f"-I{FOLDER / 'include'}", *_ask(compile_options, compiler, what)]


def _ask(options: Callable[[Linker], tuple[str, ...]], compiler: Linker, what: str) -> tuple[str, ...]:
    """Options that it takes the compiler to find out."""
    try:
        return options(compiler)
    except subprocess.CalledProcessError as error:
        raise _unable(compiler, what, error.stderr) from error


def run_compiler(compiler: Linker, command: Sequence[str], what: str) -> None:
    """Runs a command of a compiler that makes ``what``; MissingToolError with its first complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise _unable(compiler, what, f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise _unable(compiler, what, done.stderr)


def _unable(compiler: Linker, what: str, complaint: str) -> MissingToolError:
    first = next(iter(complaint.strip().splitlines()), "no message")
    return MissingToolError(f"{compiler.name} cannot compile {what}: {first} (repair it)")
