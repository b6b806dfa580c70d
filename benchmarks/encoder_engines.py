# SPDX-License-Identifier: Apache-2.0
"""What every measured encoder engine offers, and the registry that builds one by name.

An engine is converted once per checkpoint into the work folder (``prepare``), loaded (``build``) and then
turns token ids into one row a text: its embedding, or its logits where the model has a classifier.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .engines import Setup, total_bytes

ENGINES = (
    "tvmq",
    "openvino-int8",
    "openvino-bf16",
    "openvino-fp32",
    "onnxruntime-int8",
    "onnxruntime-fp32",
    "ctranslate2-int8",
    "ctranslate2-fp32",
    "pytorch-int8",
    "pytorch-fp32",
)
DEFAULT_ENGINES = tuple(name for name in ENGINES if name != "openvino-bf16")

Task = Literal["embed", "classify"]
Batch = Sequence[Sequence[int]]
"""Token ids of several texts, special tokens included."""


class EncoderEngine(Protocol):
    """One loaded encoder."""

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """A row for every text: float32[texts, width], or logits float32[texts, labels]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSetup(Setup):
    """Where an engine finds its encoder, what it computes, and what it may know beforehand.

    Attributes:
        calibration: texts as token ids, for engines that quantize activations beforehand.
        shapes: (texts, tokens) of batches that will come often; an engine may specialise for them.
    """

    calibration: tuple[tuple[int, ...], ...] = ()
    shapes: tuple[tuple[int, int], ...] = ()

    @property
    def task(self) -> Task:
        """``classify`` where the checkpoint has a classifier of texts, else ``embed``."""
        return "classify" if self._architecture.endswith("ForSequenceClassification") else "embed"

    @property
    def padding(self) -> int:
        """Id of the padding token."""
        return int(str(self.config.get("pad_token_id") or 0))

    @property
    def _architecture(self) -> str:
        found = self.config.get("architectures")
        return str(found[0]) if isinstance(found, list) and found else ""

    def calibrated(self, name: str) -> Path:
        """``converted`` for an engine whose conversion also depends on the calibration texts."""
        digest = hashlib.sha256(json.dumps(self.calibration).encode())
        return self.converted(f"{name}-{digest.hexdigest()[:8]}")


def build(name: str, setup: EncoderSetup) -> EncoderEngine:
    """Convert (once) and load the engine ``name``."""
    match name:
        case "tvmq":
            from .encoder_tvmq import TvmqEncoder

            return TvmqEncoder(setup)
        case "openvino-int8" | "openvino-bf16" | "openvino-fp32":
            from .encoder_openvino import OpenVinoEncoder

            return OpenVinoEncoder(setup, precision=name.split("-")[1])
        case "onnxruntime-int8" | "onnxruntime-fp32":
            from .encoder_onnxruntime import OnnxRuntimeEncoder

            return OnnxRuntimeEncoder(setup, precision=name.split("-")[1])
        case "ctranslate2-int8" | "ctranslate2-fp32":
            from .encoder_ctranslate2 import CTranslate2Encoder

            return CTranslate2Encoder(setup, compute=name.split("-")[1])
        case "pytorch-int8" | "pytorch-fp32":
            from .encoder_pytorch import PyTorchEncoder

            return PyTorchEncoder(setup, int8=name.endswith("int8"))
        case _:
            raise ValueError(f"unknown engine {name!r} (known: {', '.join(ENGINES)})")


def prepare(name: str, setup: EncoderSetup) -> Path | None:
    """Convert the checkpoint for the engine ``name`` if that was not done before; where it lies then."""
    match name.partition("-")[0]:
        case "openvino":
            from .encoder_openvino import convert

            return convert(setup, name.split("-")[1])
        case "onnxruntime":
            from .encoder_onnxruntime import convert

            return convert(setup, name.split("-")[1])
        case "ctranslate2":
            from .encoder_ctranslate2 import convert

            return convert(setup, name.split("-")[1])
        case _:
            return None


def import_engine(name: str) -> None:
    """Import the libraries of the engine ``name`` without loading a model (the memory baseline)."""
    match name.partition("-")[0]:
        case "tvmq":
            from tvmq.encoder import load_libraries

            load_libraries()
        case "openvino":
            import openvino  # noqa: F401
        case "onnxruntime":
            import onnxruntime  # noqa: F401
        case "ctranslate2":
            import ctranslate2  # noqa: F401
        case _:
            import torch  # noqa: F401
            from transformers import BertModel  # noqa: F401


def disk_bytes(name: str, setup: EncoderSetup) -> int:
    """Bytes of the files the engine ``name`` needs to encode ids (tokenizers not counted for peers)."""
    if name == "tvmq":
        return total_bytes(setup.artifact.rglob("*")) if setup.artifact else 0
    folder = prepare(name, setup)
    return total_bytes(folder.rglob("*") if folder else setup.model.glob("*.safetensors"))


def pad(batch: Batch, padding: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, both int64[texts, longest]."""
    lengths = np.array([len(ids) for ids in batch])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, padding, np.int64)
    tokens[mask] = np.concatenate([np.asarray(ids, np.int64) for ids in batch])
    return tokens, mask.astype(np.int64)
