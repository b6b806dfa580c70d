# SPDX-License-Identifier: Apache-2.0
"""The folder that ships: written by compile, opened by the runtime, checked without loading any code.

``open_artifact`` trusts nothing but costs little (manifest, paths, sizes); ``verify`` hashes every file.
The manifest's fields are in ``manifest``, the weights' format is in ``tensor_file``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from numpy.typing import NDArray

from .errors import InputError, VerificationError
from .generated import complete
from .manifest import (
    FILE_NAME,
    SCHEMA,
    Bits,
    BlockSize,
    FileInfo,
    IsaLevel,
    Manifest,
    Model,
    RowBits,
    Versions,
    Weights,
    read_manifest,
    write_manifest,
)
from .store import sha256_file, show
from .tensor_file import open_weights, write_weights

__all__ = [
    "SCHEMA", "Artifact", "Bits", "BlockSize", "FileCheck", "FileInfo", "IsaLevel", "Manifest", "Model",
    "RowBits", "VerifyResult", "Versions", "Weights", "inspect", "open_artifact", "open_weights",
    "staged_artifact", "verify", "verify_files", "write_artifact", "write_manifest", "write_weights",
]  # fmt: skip

_MAX_FILES = 20_000
_LINK = "a link; an artifact holds none (copy it with cp -L)"
_LIBRARY = re.compile(r"\.(so|dylib|dll)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A folder whose manifest, paths and file sizes were checked; file contents were not."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The place of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise VerificationError(f"{self.path}: {show(name)} is not listed in {FILE_NAME} (compile again)")
        return self.path / name

    def weights(self, ready: Mapping[str, NDArray[Any]] | None = None) -> dict[str, NDArray[Any]]:
        """Read-only mapped views of the stored weights, and the computed ones; all that functions take.

        Vectors stored in half precision come as float32; what is in ``ready`` is not computed.
        VerificationError for damaged or missing tensors.
        """
        stored = open_weights(self.file(self.manifest.weights.file), error=VerificationError)
        try:
            tensors = complete(stored, self.manifest.weights.generated, ready)
        except ValueError as exc:
            raise VerificationError(f"{self.path}: {exc} (compile the model again)") from exc
        for function, names in self.manifest.weights.parameters.items():
            for name in names:
                if name not in tensors:
                    raise VerificationError(
                        f"{self.path}: {show(function)} takes tensor {show(name)}, "
                        f"which {self.manifest.weights.file} does not hold (compile the model again)"
                    )
        return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """The verdict on one file; ``problem`` is "" where size and hash are right."""

    path: str
    size: int
    ok: bool
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """The verdict on every listed file."""

    ok: bool
    files: tuple[FileCheck, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that ``tvmq verify --json`` prints."""
        return msgspec.json.decode(msgspec.json.encode(self))


def write_artifact(staging: Path, manifest: Manifest) -> Manifest:
    """Lists every file in a staging folder with size and hash, and writes manifest.json beside them.

    Args:
        staging: the folder that ``store.atomic_dir`` yields, complete but for the manifest.
        manifest: everything but ``files``, which is replaced.

    Raises:
        ValueError: a library or the weights that the manifest names are not there.
    """
    names = sorted(name for name in _walk(staging) if name != FILE_NAME)
    files = {
        name: FileInfo(size=(staging / name).stat().st_size, sha256=sha256_file(staging / name))
        for name in names
    }
    complete = msgspec.structs.replace(manifest, files=files)
    missing = [name for name in _named(complete) if name not in files]
    if missing:
        raise ValueError(f"the manifest names {missing[0]!r}, which is not in {staging}")
    return write_manifest(staging, complete)


def staged_artifact(staging: Path, manifest: Manifest) -> Artifact:
    """An artifact that is not written yet, for reading back its weights and libraries."""
    names = [manifest.weights.file, *(level.library for level in manifest.isa_levels)]
    files = dict.fromkeys(names, FileInfo(size=0, sha256="0" * 64))
    return Artifact(path=staging, manifest=msgspec.structs.replace(manifest, files=files))


def open_artifact(path: Path | str) -> Artifact:
    """Checks the manifest, and that every listed file is there with its size, inside the folder.

    Raises:
        InputError: there is no artifact at ``path``.
        VerificationError: the artifact is damaged, was changed, or is of another version.
    """
    artifact = _read(Path(path))
    for name, info in artifact.manifest.files.items():
        problem = _size_problem(artifact.path, name, info)
        if problem:
            raise VerificationError(f"{artifact.path / name}: {problem} (compile or copy the artifact again)")
    return artifact


def verify_files(artifact: Artifact, names: Iterable[str]) -> None:
    """Hashes the named files; the first that differs from the manifest raises VerificationError."""
    for name in names:
        place = artifact.file(name)
        problem = _problem(artifact.path, name, artifact.manifest.files[name])
        if problem:
            raise VerificationError(f"{place}: {problem} (compile or copy the artifact again)")


def verify(path: Path | str) -> VerifyResult:
    """Hashes every file and checks the header of the weights; loads no code.

    A file that is missing or differs is a result; a manifest that cannot be believed raises
    VerificationError, as in ``open_artifact``.
    """
    artifact = _read(Path(path))
    weights = artifact.manifest.weights.file
    checks: list[FileCheck] = []
    for name, info in artifact.manifest.files.items():
        problem = _problem(artifact.path, name, info)
        if not problem and name == weights:
            problem = _weights_problem(artifact)
        checks.append(FileCheck(path=name, size=info.size, ok=not problem, problem=problem))
    return VerifyResult(ok=all(check.ok for check in checks), files=tuple(checks))


def inspect(path: Path | str) -> dict[str, Any]:
    """What an artifact holds, from its manifest alone: the object that ``tvmq inspect --json`` prints.

    ``bits_per_weight size_bytes fp32_bytes ratio blocks word_bits isa_levels`` and the manifest's
    other fields; ``isa_levels`` is the list of names, ``libraries`` has their details.
    """
    manifest = msgspec.json.decode(msgspec.json.encode(open_artifact(path).manifest))
    levels = manifest.pop("isa_levels")
    parameters = manifest.pop("weights")["parameters"]
    return {
        **manifest.pop("bits"),
        "isa_levels": [level["name"] for level in levels],
        "libraries": levels,
        "functions": list(parameters),
        **manifest,
    }


def _read(path: Path) -> Artifact:
    """The manifest and the checks that need no file's content."""
    try:
        if not path.is_dir() or not (path / FILE_NAME).exists():
            raise InputError(f"{path}: not an artifact (no {FILE_NAME}); make one with `tvmq compile`")
        artifact = Artifact(path=path, manifest=read_manifest(path / FILE_NAME))
        _check_manifest(artifact)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    return artifact


def _check_manifest(artifact: Artifact) -> None:
    path, manifest = artifact.path, artifact.manifest
    for name in manifest.files:
        _check_name(path, name)
    for name in _named(manifest):
        artifact.file(name)
    levels = [level.name for level in manifest.isa_levels]
    if len(set(levels)) != len(levels):
        raise VerificationError(f"{path}: {FILE_NAME} lists one ISA level twice")
    if _is_linked(path, FILE_NAME):
        raise VerificationError(f"{path / FILE_NAME}: {_LINK}")
    for name in _walk(path):
        if _LIBRARY.search(name) and name not in manifest.files:
            raise VerificationError(
                f"{path}: the library {show(name)} is not listed in {FILE_NAME} (remove it)"
            )


def _is_linked(folder: Path, name: str) -> bool:
    """Whether a file or a folder on the way to it is a link."""
    parts = PurePosixPath(name).parts
    return any((folder / Path(*parts[:count])).is_symlink() for count in range(1, len(parts) + 1))


def _named(manifest: Manifest) -> list[str]:
    programs = [level.program for level in manifest.isa_levels if level.program]
    return [*(level.library for level in manifest.isa_levels), *programs, manifest.weights.file]


def _check_name(path: Path, name: str) -> None:
    plain = PurePosixPath(name)
    unsafe = plain.is_absolute() or ".." in plain.parts or str(plain) != name or set(name) & set("\\\0:")
    if unsafe or name in (".", FILE_NAME):
        raise VerificationError(f"{path}: {show(name)} is not a plain path inside the artifact")


def _walk(folder: Path) -> Iterator[str]:
    """Every file below a folder, by its relative path with ``/``; links to folders are not entered."""
    count = 0
    for root, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted(names + links):
            count += 1
            if count > _MAX_FILES:
                raise VerificationError(f"{folder}: more than {_MAX_FILES} files, expected an artifact")
            yield (Path(root) / name).relative_to(folder).as_posix()


def _size_problem(folder: Path, name: str, info: FileInfo) -> str:
    place = folder / name
    try:
        if _is_linked(folder, name):
            return _LINK
        found = place.stat()
    except OSError:
        return "missing"
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file"
    if found.st_size != info.size:
        return f"{found.st_size} bytes, expected {info.size}"
    return ""


def _problem(folder: Path, name: str, info: FileInfo) -> str:
    problem = _size_problem(folder, name, info)
    if problem:
        return problem
    try:
        return "" if sha256_file(folder / name) == info.sha256 else "contents differ (sha256)"
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"


def _weights_problem(artifact: Artifact) -> str:
    try:
        artifact.weights()
    except VerificationError as exc:
        return str(exc)
    return ""
