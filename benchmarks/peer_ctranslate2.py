# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 through its own converter for transformers models."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from .engines import Setup

QUANTIZATION = {"int8": "int8", "fp32": "float32"}
MAX_LENGTH = 255


def convert(setup: Setup, compute: str) -> Path:
    """Convert the checkpoint with TransformersConverter unless it was done before."""
    output = setup.converted(f"ctranslate2-{compute}")
    if not (output / "model.bin").exists():
        from ctranslate2.converters import TransformersConverter

        output.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stderr(io.StringIO()):
            converter = TransformersConverter(str(setup.model))
            converter.convert(str(output), quantization=QUANTIZATION[compute], force=True)
    return output


class CTranslate2Engine:
    """ctranslate2.Translator on the CPU with its fastest backend."""

    def __init__(self, setup: Setup, *, compute: str) -> None:
        import ctranslate2

        folder = convert(setup, compute)
        self._translator = ctranslate2.Translator(
            str(folder), device="cpu", compute_type=QUANTIZATION[compute],
            inter_threads=1, intra_threads=setup.threads,
        )  # fmt: skip
        vocabulary: dict[str, int] = json.loads((setup.model / "vocab.json").read_text(encoding="utf-8"))
        self._ids = vocabulary
        self._pieces = {index: piece for piece, index in vocabulary.items()}
        self._eos = int(str(setup.config["eos_token_id"]))

    def translate(self, source: list[int], *, beams: int, forced: int | None) -> list[int]:
        results = self._translator.translate_batch(
            [[self._pieces[index] for index in source]],
            beam_size=beams,
            min_decoding_length=forced or 1,
            max_decoding_length=forced or MAX_LENGTH,
        )
        ids = [self._ids[piece] for piece in results[0].hypotheses[0]]
        return ids if forced else [*ids, self._eos]
