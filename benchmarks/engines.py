# SPDX-License-Identifier: Apache-2.0
"""What every measured engine offers, and the registry that builds one by name.

An engine is converted once per checkpoint into the work folder (``prepare``), loaded (``build``) and
then translates token ids to token ids, one sentence at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ENGINES = (
    "tvmq",
    "onnxruntime-2bit",
    "onnxruntime-2bit-lut",
    "onnxruntime-4bit",
    "onnxruntime-fp32",
    "ctranslate2-int8",
    "ctranslate2-fp32",
    "pytorch-int8",
    "pytorch-fp32",
)
DEFAULT_ENGINES = tuple(name for name in ENGINES if name not in {"onnxruntime-2bit-lut", "onnxruntime-fp32"})


class Engine(Protocol):
    """One loaded translation engine."""

    def translate(self, source: list[int], *, beams: int, forced: int | None) -> list[int]:
        """Ids of the best translation of ``source`` (ends with the end token).

        With ``forced`` exactly that many tokens are produced; otherwise the end token stops the search
        and is the last id returned.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where an engine finds its model and how many threads it may use."""

    model: Path
    work: Path
    threads: int = 1
    artifact: Path | None = None

    @property
    def config(self) -> dict[str, object]:
        return json.loads((self.model / "config.json").read_text(encoding="utf-8"))

    def converted(self, name: str) -> Path:
        """Folder of this checkpoint converted for the engine ``name``; changes when the files do."""
        digest = hashlib.sha256()
        for path in sorted(self.model.glob("*.safetensors")):
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return self.work / f"{self.model.name}-{digest.hexdigest()[:8]}" / name


def build(name: str, setup: Setup) -> Engine:
    """Convert (once) and load the engine ``name``."""
    match name:
        case "tvmq":
            from .peer_tvmq import TvmqEngine

            return TvmqEngine(setup)
        case "ctranslate2-int8" | "ctranslate2-fp32":
            from .peer_ctranslate2 import CTranslate2Engine

            return CTranslate2Engine(setup, compute=name.split("-")[1])
        case "onnxruntime-2bit" | "onnxruntime-2bit-lut" | "onnxruntime-4bit" | "onnxruntime-fp32":
            from .peer_onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(setup, precision=name.split("-")[1], lut=name.endswith("-lut"))
        case "pytorch-fp32" | "pytorch-int8":
            from .peer_pytorch import PyTorchEngine

            return PyTorchEngine(setup, int8=name.endswith("int8"))
        case _:
            raise ValueError(f"unknown engine {name!r} (known: {', '.join(ENGINES)})")


def prepare(name: str, setup: Setup) -> None:
    """Convert the checkpoint for the engine ``name`` if that was not done before."""
    match name.partition("-")[0]:
        case "ctranslate2":
            from .peer_ctranslate2 import convert

            convert(setup, name.split("-")[1])
        case "onnxruntime":
            from .peer_onnxruntime import convert

            convert(setup, name.split("-")[1])
        case _:
            pass


def import_engine(name: str) -> None:
    """Import the libraries of the engine ``name`` without loading a model (the memory baseline)."""
    match name.partition("-")[0]:
        case "tvmq":
            from tvmq.runtime import load_libraries

            load_libraries()
        case "ctranslate2":
            import ctranslate2  # noqa: F401
        case "onnxruntime":
            import onnxruntime  # noqa: F401
        case _:
            import torch  # noqa: F401
            from transformers import MarianMTModel  # noqa: F401


def disk_bytes(name: str, setup: Setup) -> int:
    """Bytes of the files the engine ``name`` needs to translate ids (tokenizers not counted for peers)."""
    match name.partition("-")[0]:
        case "tvmq":
            return total_bytes(setup.artifact.rglob("*")) if setup.artifact else 0
        case "pytorch":
            return total_bytes(setup.model.glob("*.safetensors"))
        case _:
            return total_bytes(setup.converted(converted_name(name)).rglob("*"))


def converted_name(name: str) -> str:
    """Folder name of a conversion; engines that differ only at run time share one."""
    return name.removesuffix("-lut")


def total_bytes(paths: Iterable[Path]) -> int:
    """Bytes of the files among ``paths``."""
    return sum(path.stat().st_size for path in paths if path.is_file())
