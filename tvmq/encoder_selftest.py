# SPDX-License-Identifier: Apache-2.0
"""selftest.json of an encoder: two short inputs and some values of what every function made of them.

Recorded at compile time, compared at load: a library that runs but computes something else is refused with
a sentence instead of giving wrong embeddings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact, staged_artifact
from .encoding import EncodingModel
from .errors import VerificationError
from .loading import SELF_TEST
from .manifest import Manifest
from .store import read_json_object

LENGTHS = (5, 3)
WATCHED = 16
"""Values kept of each function's result, spread over it."""
TOLERANCE = 0.02
"""Of a result's largest value: ISA levels may round float sums differently, never by this much."""
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    ids: list[int]
    types: list[int]


def record(staging: Path, manifest: Manifest, level: str | None) -> None:
    """Runs the freshly built library of ``level`` and stores its answers (none if it is None)."""
    texts: list[list[int]] = []
    answers: dict[str, list[float]] = {}
    if level is not None:
        model = EncodingModel(staged_artifact(staging, manifest), f"lib/{level}.so")
        texts = [[(7 * i + 11 * n) % model.vocabulary for i in range(n)] for n in LENGTHS]
        texts = [ids[: model.max_tokens] for ids in texts]
        answers = {name: _watched(_run(model, name, texts)) for name in model.functions}
    document = {"texts": texts, "answers": answers}
    (staging / SELF_TEST).write_text(json.dumps(document) + "\n", encoding="utf-8")


def check(artifact: Artifact, model: EncodingModel, isa: str) -> None:
    """Compares the loaded model with the recorded answers.

    Raises:
        VerificationError: the answers differ.
    """
    document = read_json_object(artifact.file(SELF_TEST), _MAX_BYTES, error=VerificationError)
    texts, answers = document.get("texts"), document.get("answers")
    if not texts:
        return
    if not (isinstance(answers, dict) and answers.keys() <= set(model.functions) and _sound(texts, model)):
        raise VerificationError(f"{artifact.path}: {SELF_TEST} is none of this model (compile it again)")
    for name, wanted in answers.items():
        result = _run(model, name, texts)
        columns = model.width if name == "embed" else len(artifact.manifest.labels)
        if result.shape[1] != columns:
            raise VerificationError(
                f"{artifact.path}: {name} gives {result.shape[1]} columns, the manifest says {columns} "
                "(compile the model again)"
            )
        found = _watched(result)
        largest = max(1e-6, *map(abs, wanted))
        if len(found) != len(wanted) or not np.allclose(found, wanted, rtol=0, atol=TOLERANCE * largest):
            raise VerificationError(
                f"{artifact.path}: the self-test failed at ISA level {isa}: the library computes other "
                "values than when it was compiled (compile the model again on this machine, or try "
                "another --isa)"
            )


def _sound(texts: object, model: EncodingModel) -> bool:
    """Whether ids are words of the model, so that running them is safe."""
    if not isinstance(texts, list):
        return False
    plain = all(isinstance(ids, list) and 0 < len(ids) <= model.max_tokens for ids in texts)
    return plain and all(type(i) is int and 0 <= i < model.vocabulary for ids in texts for i in ids)


def _run(model: EncodingModel, function: str, texts: list[list[int]]) -> NDArray[np.float32]:
    return model.run(function, [_Text(ids=ids, types=[0] * len(ids)) for ids in texts])


def _watched(result: NDArray[np.float32]) -> list[float]:
    flat = result.ravel()
    places = np.linspace(0, flat.size - 1, min(WATCHED, flat.size)).astype(int)
    return [round(float(value), 6) for value in flat[places]]
