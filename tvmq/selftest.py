# SPDX-License-Identifier: Apache-2.0
"""selftest.json of a translation model: a short input and what the compiled model answered.

Recorded at compile time, compared at load: a library that runs but computes something else (a wrong ISA
level, a damaged weight that still hashes) is refused with a sentence instead of translating nonsense.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .artifact import Artifact, staged_artifact
from .errors import VerificationError
from .loading import SELF_TEST
from .manifest import Manifest
from .store import read_json_object
from .translation import TranslationModel

SOURCE_TOKENS = 6
WATCHED = 8
TOLERANCE = 0.05
"""Of a log-probability: ISA levels may round float sums differently, never by this much."""
_MAX_BYTES = 1 << 16


def record(staging: Path, manifest: Manifest, level: str | None) -> None:
    """Runs the freshly built library of ``level`` and stores its answer (an empty one if None)."""
    document: dict[str, object] = {"source": [], "ids": [], "logp": []}
    if level is not None:
        eos = int(manifest.generation["eos_token_id"])  # type: ignore[arg-type]
        words = int(manifest.architecture["source_vocab"])
        source = [(7 * i + 11) % words for i in range(SOURCE_TOKENS)] + [eos]
        model = TranslationModel(staged_artifact(staging, manifest), f"lib/{level}.so")
        logp, ids = _first_step(model, source)
        document = {"source": source, "ids": ids, "logp": [round(value, 4) for value in logp]}
    (staging / SELF_TEST).write_text(json.dumps(document) + "\n", encoding="utf-8")


def check(artifact: Artifact, model: TranslationModel, isa: str) -> None:
    """Compares the loaded model with the recorded answer.

    Raises:
        VerificationError: the answers differ.
    """
    document = read_json_object(artifact.file(SELF_TEST), _MAX_BYTES, error=VerificationError)
    source = document.get("source")
    if not source:
        return
    words = int(artifact.manifest.architecture["source_vocab"])
    if min(source) < 0 or max(source) >= words:
        raise VerificationError(f"{artifact.path}: the self-test names words that the model does not have")
    expected = dict(zip(document["ids"], document["logp"], strict=True))
    logp, ids = _first_step(model, source)
    known = [(expected[i], value) for i, value in zip(ids, logp, strict=True) if i in expected]
    if len(known) < WATCHED // 2 or any(abs(a - b) > TOLERANCE for a, b in known):
        raise VerificationError(
            f"{artifact.path}: the self-test failed at ISA level {isa}: the library computes other values "
            "than when it was compiled (compile the model again on this machine, or try another --isa)"
        )


def _first_step(model: TranslationModel, source: list[int]) -> tuple[list[float], list[int]]:
    """Log-probabilities and ids of the best words after the start token."""
    row = np.zeros(1, np.int32)
    token = np.array([model.start_id], np.int32)
    count = min(WATCHED, model.vocabulary - 1)
    logp, ids = model.begin([source], rows=1, steps=2).step(token, row, row, count)
    return logp[0].tolist(), ids[0].tolist()
