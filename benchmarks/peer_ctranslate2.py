# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 through its own converter for transformers models.

Its Marian loader starts the decoder from a zero embedding. That is true for models converted from
Marian; a model whose ``<pad>`` row was trained would lose its first words. ``_StartTokenLoader`` is
the same loader with that row kept (and ``<pad>`` never produced); the computation is unchanged.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from .engines import Setup

QUANTIZATION = {"int8": "int8", "fp32": "float32"}
MAX_LENGTH = 255
BANNED = -1e9


def convert(setup: Setup, compute: str) -> Path:
    """Convert the checkpoint with TransformersConverter unless it was done before."""
    output = setup.converted(f"ctranslate2-{compute}")
    if not (output / "model.bin").exists():
        from ctranslate2.converters import transformers
        from transformers import logging as hf_logging

        output.parent.mkdir(parents=True, exist_ok=True)
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        loaders: dict[str, Any] = transformers._MODEL_LOADERS
        original = loaders["MarianConfig"]
        loaders["MarianConfig"] = _start_token_loader()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                converter = transformers.TransformersConverter(str(setup.model))
                converter.convert(str(output), quantization=QUANTIZATION[compute], force=True)
        finally:
            loaders["MarianConfig"] = original
    return output


def _start_token_loader() -> Any:
    from ctranslate2.converters.transformers import BartLoader, MarianMTLoader

    class _StartTokenLoader(MarianMTLoader):
        def get_model_spec(self, model: Any) -> Any:
            model.config.normalize_before = False
            model.config.normalize_embedding = False
            model.final_logits_bias[0, model.config.pad_token_id] = BANNED
            return BartLoader.get_model_spec(self, model)

        def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
            return BartLoader.get_vocabulary(self, model, tokenizer)

        def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
            super().set_config(config, model, tokenizer)
            config.decoder_start_token = tokenizer.pad_token

        def set_decoder(self, spec: Any, decoder: Any) -> None:
            super().set_decoder(spec, decoder)
            spec.start_from_zero_embedding = False

    return _StartTokenLoader()


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
