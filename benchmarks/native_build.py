# SPDX-License-Identifier: Apache-2.0
"""C programs over the native runtime, compiled for the benchmarks."""

from __future__ import annotations

import subprocess
from pathlib import Path

from targets.spec import TargetSpec
from tvmq.build import require_linker
from tvmq.native import library


def c_program(output: Path, target: TargetSpec, *words: object) -> Path:
    """A program for the architecture of ``target``; ``words`` are its files and options."""
    compiler = require_linker(target).command
    subprocess.run([*compiler, "-std=c11", "-O2", *map(str, words), "-o", str(output)], check=True)
    return output


def linked_with(artifact: Path) -> tuple[str, ...]:
    """Options for programs that use an artifact's own header and runtime library."""
    place = artifact.resolve()
    return (f"-I{place}/include", f"-L{place}/lib", "-ltvmq", f"-Wl,-rpath,{place}/lib", "-lpthread")


def example_program(folder: Path, artifact: Path, target: TargetSpec) -> Path:
    """The example, made once for each architecture, with the artifact's runtime library."""
    output = folder / f"example-{target.architecture}"
    if not output.exists():
        c_program(output, target, library.FOLDER / "example.c", *linked_with(artifact))
    return output
