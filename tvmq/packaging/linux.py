# SPDX-License-Identifier: Apache-2.0
"""``tvmq package --linux``: a tarball with library, header, pkg-config and CMake files, artifact, examples.

The same artifact and the same compiler give the same bytes: names in order, no times, no owners.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from targets import set_of
from tvmq import __version__
from tvmq.errors import UsageError
from tvmq.manifest import FILE_NAME
from tvmq.native.library import FOLDER, HEADER, LIBRARY, static_library
from tvmq.store import atomic_file, refuse_existing

from .source import Source, filled, open_source, tokenizer_files

_PIECES = (
    "; `pieces.txt` has the\npiece of each id, a line each. With SentencePiece (libsentencepiece-dev) text "
    "goes in and comes out:"
)
_TEMPLATES = Path(__file__).parent / "linux"


def package_linux(path: Path, output: Path, *, force: bool = False) -> int:
    """Writes the tarball of an artifact; its size in bytes.

    Args:
        path: artifact for Linux.
        output: file to write; it appears complete or not at all.
        force: replace an existing file.

    Raises:
        TvmqError: the artifact, a tool or the output cannot be used.
    """
    refuse_existing(output, force)
    source = open_source(path, "linux")
    if output.resolve().is_relative_to(path.resolve()) and output.resolve() != path.resolve():
        raise UsageError(f"the output {output} lies inside the input {path} (choose another output)")
    files = linux_files(source)
    folder = f"{source.name}-{set_of(source.levels[0].architecture)}"
    with atomic_file(output) as place, place.open("wb") as plain:
        with gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0) as packed:
            write_tar(packed, {f"{folder}/{name}": data for name, data in files.items()})
        return plain.tell()


def linux_files(source: Source) -> dict[str, bytes | Path]:
    """What the tarball holds, by name: bytes, or the file that has them."""
    artifact = source.artifact
    kept = f"share/tvmq/{artifact.path.name}"
    files: dict[str, bytes | Path] = {
        f"{kept}/{name}": artifact.path / name for name in (FILE_NAME, *artifact.manifest.files)
    }
    files["lib/libtvmq.so"] = artifact.file(LIBRARY)
    files["lib/libtvmq.a"] = static_library(source.compiler())
    files["include/tvmq.h"] = artifact.file(HEADER)
    files["example/example.c"] = FOLDER / "example.c"
    tokenizer = tokenizer_files(source)
    files.update({f"share/tvmq/tokenizer/{name}": data for name, data in tokenizer.items()})
    text = f"build/example_cpp share/tvmq/{artifact.path.name} share/tvmq/tokenizer < text.txt"
    pieces = f"{_PIECES}\n`{text}`" if "pieces.txt" in tokenizer else ""
    values = {
        "version": __version__, "name": source.name, "artifact": artifact.path.name, "pieces": pieces,
        "ids": source.example_ids(), "target": set_of(source.levels[0].architecture),
    }  # fmt: skip
    files.update(filled(_TEMPLATES, values))
    return files


def write_tar(target: gzip.GzipFile, files: Mapping[str, bytes | Path]) -> None:
    """Writes files in the order of their names; folders come first."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted({*folders, *files}):
            member = tarfile.TarInfo(name)
            if name in folders:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
                continue
            data = files[name]
            content = data if isinstance(data, bytes) else data.read_bytes()
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
