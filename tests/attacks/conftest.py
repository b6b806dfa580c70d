# SPDX-License-Identifier: Apache-2.0
"""Small valid inputs to damage: a checkpoint and an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmq.artifact import (
    Bits,
    BlockSize,
    IsaLevel,
    Manifest,
    Model,
    RowBits,
    Versions,
    Weights,
    write_artifact,
    write_weights,
)

Header = dict[str, Any]


def safetensors(header: Header | bytes, data: bytes) -> bytes:
    """A safetensors file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "marian", "vocab_size": 2}')
    (folder / "generation_config.json").write_text('{"num_beams": 4}')
    (folder / "token_freq.tsv").write_text("id\tpiece\tcount_src\tcount_tgt\n0\ta\t1\t2\n1\tb\t3\t4\n")
    half = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
    single = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    data = np.ones(4, "<f2").tobytes() + np.ones(2, "<f4").tobytes()
    (folder / "model.safetensors").write_bytes(safetensors({"a": half, "b": single}, data))
    return folder


def write_small_artifact(folder: Path) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "v3.so").write_bytes(b"code")
    write_weights(folder / "weights.safetensors", {"a": np.arange(3, dtype=np.uint8)})
    manifest = Manifest(
        versions=Versions(tool="1", tvm="2", llvm="3"),
        family="marian",
        model=Model(name="m", sha256="a" * 64, licence="l", revision="r"),
        plan_sha256="b" * 64,
        tables="int8",
        target="t",
        isa_levels=(IsaLevel(name="v3", library="lib/v3.so", features=("avx2",), kernels=("lut",)),),
        weights=Weights(file="weights.safetensors", parameters={"f": ("a",)}),
        architecture={"vocab": 2},
        generation={"num_beams": 4},
        bits=Bits(
            bits_per_weight=8,
            size_bytes=3,
            fp32_bytes=12,
            ratio=4,
            blocks=(BlockSize(name="Emb", bits=8, params=3),),
            word_bits=(RowBits(rows=3, bits=8),),
        ),
    )
    write_artifact(folder, manifest)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_small_artifact(tmp_path / "a.tvmq")


@pytest.fixture(scope="session")
def pristine_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture(scope="session")
def pristine_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_artifact(tmp_path_factory.mktemp("pristine") / "a.tvmq")


@pytest.fixture
def raw_safetensors() -> Callable[[Header | bytes, bytes], bytes]:
    return safetensors


@pytest.fixture
def forge(artifact: Path) -> Callable[[Callable[[Any], object]], Path]:
    """Edits the manifest and seals it again with a right digest, as an attacker would."""

    def seal(edit: Callable[[Any], object]) -> Path:
        path = artifact / "manifest.json"
        document = json.loads(path.read_text())
        edit(document)
        document["digest"] = ""
        document["digest"] = hashlib.sha256(_canonical(document)).hexdigest()
        path.write_bytes(_canonical(document))
        return artifact

    return seal


def _canonical(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
