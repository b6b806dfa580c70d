# SPDX-License-Identifier: Apache-2.0
"""What packages are made of: an artifact whose every byte was checked, and its tokenizer in plain files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from targets import System, get_target, set_of, system_of, target_names
from targets.spec import TargetSpec
from targets.toolchain import Linker
from tvmq.artifact import Artifact, open_artifact, verify_files
from tvmq.compressed import SUFFIX, read_compressed
from tvmq.errors import InputError
from tvmq.loading import use_of
from tvmq.native.library import require_linker
from tvmq.native.models import has_runtime
from tvmq.store import read_bytes
from tvmq.tokenizer import SOURCE, MarianTokenizer

_LARGEST = 64 << 20
_MARK = re.compile("@([a-z]+)@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An artifact to be packaged.

    Attributes:
        artifact: all its files have the manifest's hashes.
        use: what it does.
        levels: its ISA levels, lowest first.
    """

    artifact: Artifact
    use: Literal["translate", "encode"]
    levels: tuple[TargetSpec, ...]

    @property
    def name(self) -> str:
        """The artifact's name without the custom ending."""
        return self.artifact.path.name.removesuffix(".tvmq")

    def compiler(self) -> Linker:
        """What compiles C for the artifact's machine; MissingToolError where there is nothing."""
        return require_linker(self.levels[0])

    def example_ids(self) -> str:
        """Token ids that the model takes: a few words and the end token."""
        if self.use == "encode":
            return "4 5 6"
        end = self.artifact.manifest.generation.get("eos_token_id", 0)
        return f"4 5 6 {end}"


def open_source(path: Path, system: System) -> Source:
    """Checks that an artifact can be packaged for an operating system, and every byte of it.

    Raises:
        InputError: no artifact, one for another system, or without the native runtime.
        VerificationError: a file differs from the manifest.
    """
    artifact = open_artifact(path)
    use = use_of(artifact)
    if use == "module" or not has_runtime(artifact):
        raise InputError(f"{path}: holds no native program, only Python runs it (compile a model folder)")
    levels = _levels(artifact)
    found = system_of(artifact.manifest.target)
    if found != system:
        wanted = set_of("aarch64" if system == "android" else levels[0].architecture, system)
        here = set_of(levels[0].architecture, found)
        raise InputError(
            f"{path}: compiled for {here}; --{system} takes an artifact of compile --target {wanted}"
        )
    verify_files(artifact, artifact.manifest.files)
    return Source(artifact=artifact, use=use, levels=levels)


def _levels(artifact: Artifact) -> tuple[TargetSpec, ...]:
    names = [level.name for level in artifact.manifest.isa_levels]
    unknown = [name for name in names if name not in target_names()]
    if unknown:
        raise InputError(f"{artifact.path}: unknown ISA level {unknown[0]} (upgrade tvmq)")
    system = system_of(artifact.manifest.target)
    return tuple(get_target(name).on(system) for name in names)


def tokenizer_files(source: Source) -> dict[str, bytes]:
    """Name -> bytes of the tokenizer's files as other programs read them.

    Of a translation model also ``pieces.txt``: line n is the piece with token id n - 1, or empty.
    """
    folder = source.artifact.path / "tokenizer"
    files = {}
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        if source.use == "translate" and place.name not in (SOURCE, SOURCE + SUFFIX):
            continue
        packed = place.name.endswith(SUFFIX)
        files[place.name.removesuffix(SUFFIX)] = (
            read_compressed(place) if packed else read_bytes(place, _LARGEST)
        )
    if source.use == "translate" and files:
        files["pieces.txt"] = _pieces(MarianTokenizer.open(folder))
    return files


def _pieces(tokenizer: MarianTokenizer) -> bytes:
    words = tokenizer.vocabulary
    pieces = (words.piece(token) or "" for token in range(words.highest + 1))
    lines = ("" if "\n" in piece else piece for piece in pieces)
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def filled(folder: Path, values: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """(relative name, bytes) of every file below ``folder``, with each ``@word@`` replaced by its value."""
    for place in sorted(folder.rglob("*")):
        if place.is_file():
            text = place.read_text(encoding="utf-8")
            done = _MARK.sub(lambda match: values.get(match[1], match[0]), text)
            yield place.relative_to(folder).as_posix(), done.encode("utf-8")
