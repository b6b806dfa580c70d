# SPDX-License-Identifier: Apache-2.0
"""``build_c``: programs over the native runtime's sources; ``seal``: any contents, with right hashes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from targets import detect_host, get_target
from tvmq.build import require_linker
from tvmq.native import library

HERE = Path(__file__).parent
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
INCLUDES = (f"-I{library.FOLDER / 'include'}", f"-I{library.FOLDER / 'src'}")
LIBRARIES = ("-lm", "-lpthread", "-ldl")


@pytest.fixture(scope="session")
def build_c() -> Callable[..., None]:
    """``build_c(output, "x.c", "-O1", sanitizer="thread")``: of this folder, with the runtime's sources.

    ``files`` are other C files than those of the runtime.
    """

    def build(
        output: Path,
        source: str | Path,
        *words: str,
        sanitizer: str = "",
        files: Iterable[Path] | None = None,
    ) -> None:
        compiler = require_linker(get_target(detect_host()[0])).command
        flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g"] if sanitizer else []
        sources = [HERE / source, *(library.sources() if files is None else files)]
        command = [*compiler, *WARNINGS, *flags, *INCLUDES, *map(str, sources), *words, "-o", str(output)]
        done = subprocess.run([*command, *LIBRARIES], capture_output=True, text=True, check=False)
        if done.returncode and sanitizer and re.search(r"cannot find|unsupported", done.stderr):
            pytest.skip("the C compiler has no such sanitizer")
        assert done.returncode == 0, done.stderr

    return build


@pytest.fixture(scope="session")
def seal() -> Callable[..., None]:
    """``seal(artifact, "lib/x.so", data)`` or ``seal(artifact, edit=lambda manifest: ...)``."""

    def write(
        artifact: Path, name: str = "", data: bytes = b"", *, edit: Callable[[Any], object] = lambda _: None
    ) -> None:
        path = artifact / "manifest.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        if name:
            (artifact / name).unlink()  # another file, should this process have mapped the one before
            (artifact / name).write_bytes(data)
            document["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit(document)
        document["digest"] = ""
        document["digest"] = hashlib.sha256(_canonical(document)).hexdigest()
        path.write_bytes(_canonical(document))

    return write


def _canonical(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
