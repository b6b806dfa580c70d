# SPDX-License-Identifier: Apache-2.0
"""selftest.json: a short input and what the compiled model answered when it was built.

Recorded at compile time, compared at load: a library that runs but computes something else (a wrong ISA
level, a damaged weight that still hashes) is refused with a sentence instead of translating nonsense.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np

from .artifact import Artifact
from .errors import VerificationError
from .manifest import FileInfo, Manifest
from .store import read_json_object
from .translation import TranslationModel

FILE_NAME = "selftest.json"
SOURCE_TOKENS = 6
WATCHED = 8
TOLERANCE = 0.02
"""Of the logits' range: ISA levels may round float sums differently, never by this much."""
_MAX_BYTES = 1 << 16


def record(staging: Path, manifest: Manifest, level: str | None) -> None:
    """Runs the freshly built library of ``level`` and stores its answer (an empty one if None)."""
    document: dict[str, object] = {"source": [], "ids": [], "logits": [], "range": 0.0}
    if level is not None:
        eos = int(manifest.generation["eos_token_id"])  # type: ignore[arg-type]
        words = int(manifest.architecture["source_vocab"])
        source = [(7 * i + 11) % words for i in range(SOURCE_TOKENS)] + [eos]
        staged = Artifact(path=staging, manifest=_with_files(manifest))
        logits = _logits(TranslationModel(staged, f"lib/{level}.so"), source)
        ids = np.argsort(-logits, kind="stable")[:WATCHED]
        document = {
            "source": source,
            "ids": ids.tolist(),
            "logits": [round(float(v), 5) for v in logits[ids]],
            "range": round(float(np.ptp(logits)), 5),
        }
    (staging / FILE_NAME).write_text(json.dumps(document) + "\n", encoding="utf-8")


def check(artifact: Artifact, model: TranslationModel, isa: str) -> None:
    """Compares the loaded model with the recorded answer.

    Raises:
        VerificationError: the answers differ.
    """
    document = read_json_object(artifact.file(FILE_NAME), _MAX_BYTES, error=VerificationError)
    source = document.get("source")
    if not source:
        return
    words = int(artifact.manifest.architecture["source_vocab"])
    ids, expected = np.asarray(document["ids"]), np.asarray(document["logits"], np.float32)
    if min(source) < 0 or max(source) >= words or ids.min() < 0 or ids.max() >= model.vocabulary:
        raise VerificationError(f"{artifact.path}: the self-test names words that the model does not have")
    found = _logits(model, source)[ids]
    if not np.allclose(found, expected, rtol=0, atol=TOLERANCE * float(document["range"]) + 1e-4):
        raise VerificationError(
            f"{artifact.path}: the self-test failed at ISA level {isa}: the library computes other values "
            "than when it was compiled (compile the model again on this machine, or try another --isa)"
        )


def _with_files(manifest: Manifest) -> Manifest:
    """A manifest that lists the files a staged artifact already has, for reading them back."""
    names = [manifest.weights.file, *(level.library for level in manifest.isa_levels)]
    placeholder = FileInfo(size=0, sha256="0" * 64)
    return msgspec.structs.replace(manifest, files=dict.fromkeys(names, placeholder))


def _logits(model: TranslationModel, source: list[int]) -> np.ndarray:
    """Logits after the start token, float32[V]."""
    row = np.zeros(1, np.int32)
    token = np.array([model.start_id], np.int32)
    return model.begin([source], rows=1, steps=2).logits(token, row, row)[0].copy()
