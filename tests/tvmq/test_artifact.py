# SPDX-License-Identifier: Apache-2.0
"""Artifacts round-trip, verify and describe themselves; defects are in tests/attacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tvmq.artifact import (
    Bits,
    BlockSize,
    FileCheck,
    IsaLevel,
    Manifest,
    Model,
    RowBits,
    Versions,
    Weights,
    inspect,
    open_artifact,
    open_weights,
    verify,
    verify_files,
    write_artifact,
    write_weights,
)
from tvmq.errors import InputError, VerificationError
from tvmq.store import atomic_dir

TENSORS: dict[str, np.ndarray] = {
    "keys": np.arange(70, dtype=np.uint8),
    "scales": np.linspace(-1, 1, 6, dtype=np.float16).reshape(2, 3),
    "order": np.arange(5, dtype=np.int32),
    "bias": np.float32(2.5)[...],
    "nothing": np.zeros((0, 3), np.float32),
    "levels": np.arange(-4, 4, dtype=np.int8),
    "halves": np.arange(3, dtype=np.uint16),
}


def description(**changes: Any) -> Manifest:
    manifest = Manifest(
        versions=Versions(tool="0.1.0", tvm="0.27.0", llvm="20.1"),
        family="marian",
        model=Model(name="nmt", sha256="a" * 64, licence="see LICENSE-NOTE.md", revision="1"),
        plan_sha256="b" * 64,
        tables="int8",
        target="x86_64-linux-gnu",
        isa_levels=(
            IsaLevel(name="x86-64-v4+vnni+vbmi", library="lib/v4.so", features=("avx2",), kernels=("lut",)),
            IsaLevel(name="portable", library="lib/portable.so", features=(), kernels=("lut",)),
        ),
        weights=Weights(file="weights.safetensors", parameters={"decode": ("keys", "scales"), "encode": ()}),
        architecture={"vocab": 16_000, "d_model": 512, "scale": 22.5, "tied": True, "activation": "relu"},
        generation={"num_beams": 4, "forced_eos_token_id": None, "bad_words_ids": [[3]], "ids": [1]},
        bits=Bits(
            bits_per_weight=2.5,
            size_bytes=16,
            fp32_bytes=200,
            ratio=12.5,
            blocks=(BlockSize(name="Emb", bits=2, params=50),),
            word_bits=(RowBits(rows=10, bits=4), RowBits(rows=40, bits=1)),
        ),
    )
    return msgspec.structs.replace(manifest, **changes)


def fill(folder: Path) -> None:
    (folder / "lib").mkdir()
    (folder / "lib" / "v4.so").write_bytes(b"not really code")
    (folder / "lib" / "portable.so").write_bytes(b"nor this")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    write_weights(folder / "weights.safetensors", TENSORS)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    with atomic_dir(tmp_path / "a.tvmq", False) as staging:
        fill(staging)
        write_artifact(staging, description())
    return tmp_path / "a.tvmq"


def test_round_trip(artifact: Path) -> None:
    opened = open_artifact(artifact)
    assert msgspec.structs.replace(opened.manifest, files={}, digest="") == description()
    assert list(opened.manifest.files) == [
        "lib/portable.so",
        "lib/v4.so",
        "tokenizer/vocab.json",
        "weights.safetensors",
    ]
    assert opened.file("lib/v4.so").read_bytes() == b"not really code"
    verify_files(opened, opened.manifest.files)
    result = verify(artifact)
    assert result.ok
    assert result.files[0] == FileCheck(path="lib/portable.so", size=8, ok=True)
    assert json.loads(json.dumps(result.to_json()))["files"][0]["ok"] is True


def test_same_bytes_from_the_same_inputs(artifact: Path, tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "b.tvmq", False) as staging:
        fill(staging)
        write_artifact(staging, description())
    for name in ("manifest.json", "weights.safetensors"):
        assert (artifact / name).read_bytes() == (tmp_path / "b.tvmq" / name).read_bytes()


def test_weights_are_aligned_views(artifact: Path) -> None:
    weights = open_artifact(artifact).weights()
    assert list(weights) == list(TENSORS)
    for name, array in weights.items():
        assert array.dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(array, TENSORS[name])
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_weights_are_valid_safetensors(artifact: Path) -> None:
    found = load_file(artifact / "weights.safetensors")
    assert {name for name in found if not name.startswith("__pad__")} == set(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(found[name], array)


def test_weights_of_strided_arrays_and_of_none(tmp_path: Path) -> None:
    strided = np.arange(12, dtype=np.int32).reshape(3, 4).T[::-1]
    write_weights(tmp_path / "w", {"x": strided, "big": strided.astype(">i4")})
    found = open_weights(tmp_path / "w")
    np.testing.assert_array_equal(found["x"], strided)
    np.testing.assert_array_equal(found["big"], strided)
    write_weights(tmp_path / "none", {})
    assert open_weights(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("name", "array"), [("x", np.zeros(2)), ("x", np.zeros(2, np.int64)), ("__pad__0", np.zeros(2, np.uint8))]
)
def test_weights_that_cannot_be_stored(tmp_path: Path, name: str, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        write_weights(tmp_path / "w", {name: array})


def test_unaligned_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.uint8), "b": np.zeros(3, np.uint8)}, tmp_path / "w")
    with pytest.raises(InputError, match="not aligned to 64 bytes"):
        open_weights(tmp_path / "w")


def test_inspect(artifact: Path) -> None:
    found = inspect(artifact)
    assert json.loads(json.dumps(found)) == found
    assert found["bits_per_weight"] == 2.5
    assert (found["size_bytes"], found["fp32_bytes"], found["ratio"]) == (16, 200, 12.5)
    assert found["blocks"] == [{"name": "Emb", "bits": 2.0, "params": 50}]
    assert found["word_bits"] == [{"rows": 10, "bits": 4}, {"rows": 40, "bits": 1}]
    assert found["isa_levels"] == ["x86-64-v4+vnni+vbmi", "portable"]
    assert found["functions"] == ["decode", "encode"]
    assert found["model"]["licence"] == "see LICENSE-NOTE.md"


def test_verify_reports_every_bad_file(artifact: Path) -> None:
    (artifact / "lib" / "v4.so").write_bytes(b"not really codE")
    (artifact / "tokenizer" / "vocab.json").unlink()
    result = verify(artifact)
    assert not result.ok
    assert {check.path: check.problem for check in result.files if not check.ok} == {
        "lib/v4.so": "contents differ (sha256)",
        "tokenizer/vocab.json": "missing",
    }


def test_open_leaves_contents_to_verify_files(artifact: Path) -> None:
    (artifact / "lib" / "v4.so").write_bytes(b"not really codE")
    opened = open_artifact(artifact)
    verify_files(opened, ["lib/portable.so"])
    with pytest.raises(VerificationError, match=r"v4.so: contents differ \(sha256\)"):
        verify_files(opened, ["lib/v4.so"])
    with pytest.raises(VerificationError, match=r"'lib/v5\.so' is not listed"):
        verify_files(opened, ["lib/v5.so"])


def test_notes_beside_the_listed_files_are_tolerated(artifact: Path) -> None:
    (artifact / "NOTES.txt").write_text("mine")
    assert verify(artifact).ok


@pytest.mark.parametrize(
    "changes",
    [
        {"model": Model(name="x", sha256="short", licence="", revision="")},
        {"isa_levels": ()},
        {"generation": {"temperature": float("nan")}},
        {"weights": Weights(file="absent", parameters={})},
        {"isa_levels": (IsaLevel(name="a b", library="lib/v4.so", features=(), kernels=()),)},
    ],
)
def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    fill(tmp_path)
    with pytest.raises(ValueError, match=r".+"):
        write_artifact(tmp_path, description(**changes))
    assert not (tmp_path / "manifest.json").exists()
