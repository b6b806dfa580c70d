# SPDX-License-Identifier: Apache-2.0
"""The native runtime behind the Python runtime: what ``translation`` and ``encoding`` do on TVM's VM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmq.artifact import Artifact, verify_files
from tvmq.encoding import Tokenized
from tvmq.search import Candidate, SearchOptions

from .binding import NotLoadableError, Session, open_library
from .library import LIBRARY


def has_runtime(artifact: Artifact) -> bool:
    """Whether an artifact ships the native runtime and a program for every level."""
    manifest = artifact.manifest
    return LIBRARY in manifest.files and all(level.program for level in manifest.isa_levels)


def loads(artifact: Artifact) -> bool:
    """Whether this system loads an artifact's native runtime; VerificationError for a changed one."""
    try:
        _library(artifact)
    except NotLoadableError:
        return False
    return True


def _library(artifact: Artifact) -> Any:
    verify_files(artifact, [LIBRARY])
    return open_library(artifact.file(LIBRARY), artifact.manifest.files[LIBRARY].sha256)


def _open(artifact: Artifact, isa: str, threads: int) -> Session:
    return Session(_library(artifact), artifact.path, isa=isa, threads=threads)


class NativeTranslation:
    """A translation model on the native runtime; it has verified itself and passed its self-test."""

    def __init__(self, artifact: Artifact, isa: str, threads: int) -> None:
        self._session = _open(artifact, isa, threads)

    def search(self, sources: Sequence[Sequence[int]], options: SearchOptions) -> list[list[Candidate]]:
        """As ``TranslationModel.search``."""
        settings = {
            "beams": options.beams,
            "length_penalty": options.length_penalty,
            "early_stopping": options.early_stopping,
            "n_best": options.n_best,
            "max_new_tokens": options.max_new_tokens,
            "forced_length": options.forced_length or 0,
        }
        found = self._session.translate(sources, settings)
        return [[Candidate(tokens, score) for tokens, score in best] for best in found]


class NativeEncoding:
    """An encoder on the native runtime; it has verified itself and passed its self-test."""

    def __init__(self, artifact: Artifact, isa: str, threads: int) -> None:
        self._session = _open(artifact, isa, threads)

    def run(self, function: str, texts: Sequence[Tokenized]) -> NDArray[np.float32]:
        """As ``EncodingModel.run``."""
        return self._session.encode(function, [text.ids for text in texts], [text.types for text in texts])
