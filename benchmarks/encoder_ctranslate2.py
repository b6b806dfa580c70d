# SPDX-License-Identifier: Apache-2.0
"""CTranslate2's BERT encoder; pooling and the classifier, which it lacks, in NumPy.

Settings that were the fastest: its default product (MKL, packed weights, which use AMX), with its own
AVX-512 code for the rest, which it does not choose by itself on Intel CPUs (up to 15 % faster).
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets import host_flags
from tvmq.checkpoint import Checkpoint
from tvmq.pooling import read_pooling

from .encoder_engines import Batch, EncoderSetup
from .peer_ctranslate2 import QUANTIZATION

AVX512 = {"avx512f", "avx512cd", "avx512vl", "avx512bw", "avx512dq"}


def convert(setup: EncoderSetup, compute: str) -> Path:
    """Convert the checkpoint with TransformersConverter unless it was done before."""
    output = setup.converted(f"ctranslate2-{compute}")
    if not (output / "model.bin").exists():
        from ctranslate2.converters import transformers
        from transformers import logging as hf_logging

        output.parent.mkdir(parents=True, exist_ok=True)
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        loaders: dict[str, Any] = transformers._MODEL_LOADERS
        original = loaders["BertConfig"]
        loaders["BertConfig"] = _loader(type(original))
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                converter = transformers.TransformersConverter(str(setup.model))
                converter.convert(str(output), quantization=QUANTIZATION[compute], force=True)
        finally:
            loaders["BertConfig"] = original
    return output


def _loader(kind: Any) -> Any:
    """CTranslate2's loader of BERT, for configs without the key that newer transformers do not write."""

    class _BertLoader(kind):
        def get_model_spec(self, model: Any) -> Any:
            if not hasattr(model.config, "position_embedding_type"):
                model.config.position_embedding_type = "absolute"
            return super().get_model_spec(model)

    return _BertLoader()


class CTranslate2Encoder:
    """ctranslate2.Encoder; it leaves padding out of its products by itself."""

    def __init__(self, setup: EncoderSetup, *, compute: str) -> None:
        if host_flags() >= AVX512:
            os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")  # read when the library first computes
        import ctranslate2

        self._encoder = ctranslate2.Encoder(
            str(convert(setup, compute)), device="cpu", compute_type=QUANTIZATION[compute],
            inter_threads=1, intra_threads=setup.threads,
        )  # fmt: skip
        self._pooling = read_pooling(setup.model)
        self._classifier = _classifier(setup.model) if setup.task == "classify" else None

    def run(self, batch: Batch) -> NDArray[np.float32]:
        found = self._encoder.forward_batch([list(ids) for ids in batch])
        if self._classifier is not None:
            weight, bias = self._classifier
            return np.array(found.pooler_output) @ weight.T + bias
        return self._embeddings(np.array(found.last_hidden_state), batch)

    def _embeddings(self, hidden: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
        if self._pooling.kind == "cls":
            rows = hidden[:, 0]
        else:
            pairs = zip(hidden, batch, strict=True)
            rows = np.stack([tokens[: len(ids)].mean(axis=0) for tokens, ids in pairs])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if self._pooling.normalize else rows


def _classifier(model: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    checkpoint = Checkpoint.open(model)
    return checkpoint.tensor("classifier.weight"), checkpoint.tensor("classifier.bias")
