# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are read as safetensors reads them; defects are in tests/attacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError

MODEL = Path(__file__).parents[2] / "models" / "nmt-en-de"
HEADER = "id\tpiece\tcount_src\tcount_tgt\n"


def make(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "marian"}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_default_model_equals_the_safetensors_library() -> None:
    checkpoint = Checkpoint.open(MODEL)
    expected = {k: v for p in sorted(MODEL.glob("*.safetensors")) for k, v in load_file(p).items()}
    assert checkpoint.names() == sorted(expected)
    assert len(expected) == 254
    assert checkpoint.config["model_type"] == "marian"
    assert checkpoint.generation["num_beams"] == 4
    for name in list(expected)[::25]:
        tensor = checkpoint.tensor(name)
        assert tensor.dtype == np.float32
        assert checkpoint.shape(name) == tensor.shape
        np.testing.assert_array_equal(tensor, expected[name].astype(np.float32))


def test_default_model_is_what_the_repository_promises() -> None:
    shards = sorted(MODEL.glob("*.safetensors"))
    assert all(p.stat().st_size < 40_000_000 for p in shards)
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for p in shards for v in load_file(p).values())
    for name in ("dev.tsv", "test.tsv"):
        lines = (MODEL / "sample" / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        assert len(lines) == 300
        assert all(len(line.split("\t")) == 2 and all(line.split("\t")) for line in lines)


def test_every_float_dtype(tmp_path: Path) -> None:
    values = np.array([[0.0, -1.5, 65504.0], [2.0**-24, 3.140625, -0.0]])
    folder = make(
        tmp_path,
        {
            "f16": values.astype(np.float16),
            "f32": values.astype(np.float32),
            "f64": values,
            "scalar": np.float32(3)[...],
            "empty": np.zeros((0, 4), np.float32),
        },
    )
    checkpoint = Checkpoint.open(folder)
    np.testing.assert_array_equal(checkpoint.tensor("f16"), values.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(checkpoint.tensor("f32"), values.astype(np.float32))
    np.testing.assert_array_equal(checkpoint.tensor("f64"), values.astype(np.float32))
    assert checkpoint.tensor("scalar").shape == ()
    assert checkpoint.tensor("scalar") == 3
    assert checkpoint.tensor("empty").shape == (0, 4)


def test_bf16(tmp_path: Path) -> None:
    make(tmp_path, {"x": np.zeros(1, np.float32)})
    header = b'{"w":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}'
    bits = np.array([0x3F80, 0xC000, 0x0001, 0x7F7F], "<u2")
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    expected = np.array([1.0, -2.0, 9.1835e-41, 3.3895314e38], np.float32)
    np.testing.assert_allclose(Checkpoint.open(tmp_path).tensor("w"), expected, rtol=1e-3)


def test_tensor_is_a_private_copy(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, {"w": np.ones(4, np.float32)}))
    checkpoint.tensor("w")[:] = 7
    assert checkpoint.tensor("w").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, np.nan, np.nan], np.float16),
        np.array([1, np.inf, -np.inf], np.float32),
        np.array([1, 1e300, -1e300]),
    ],
)
def test_values_that_are_not_finite(tmp_path: Path, values: np.ndarray) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, {"a.weight": values, "b": np.ones(2, np.float32)}))
    with pytest.raises(InputError, match=r"model.safetensors: tensor 'a.weight' holds 2 values .*not finite"):
        checkpoint.tensor("a.weight")
    assert checkpoint.tensor("b").tolist() == [1, 1]


def test_tensor_that_is_no_float(tmp_path: Path) -> None:
    tensors = {"ids": np.arange(3), "bytes": np.zeros(3, np.uint8), "mask": np.ones(2, np.bool_)}
    checkpoint = Checkpoint.open(make(tmp_path, tensors))
    assert checkpoint.shape("ids") == (3,)
    with pytest.raises(InputError, match="tensor 'ids' has the unsupported dtype I64"):
        checkpoint.tensor("ids")
    with pytest.raises(InputError, match="tensor 'bytes' has dtype U8, expected F16, BF16, F32 or F64"):
        checkpoint.tensor("bytes")
    with pytest.raises(InputError, match="'mask' has the unsupported dtype BOOL"):
        checkpoint.tensor("mask")


def test_unknown_tensor(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path, {"encoder.weight": np.ones(1, np.float32)}))
    with pytest.raises(InputError, match=r"no tensor named 'encoder.wieght' \(did you mean 'encoder.weight'"):
        checkpoint.tensor("encoder.wieght")
    with pytest.raises(InputError, match=r"no tensor named 'zzz'$"):
        checkpoint.shape("zzz")


def test_hash_covers_config_and_tensors(tmp_path: Path) -> None:
    ones = {"w": np.ones(4, np.float32)}
    first = Checkpoint.open(make(tmp_path / "a", ones)).sha256
    assert len(first) == 64
    assert first == Checkpoint.open(make(tmp_path / "b", ones)).sha256
    other_config = Checkpoint.open(make(tmp_path / "c", ones, {"model_type": "marian", "x": 1}))
    other_tensor = Checkpoint.open(make(tmp_path / "d", {"w": np.zeros(4, np.float32)}))
    assert len({first, other_config.sha256, other_tensor.sha256}) == 3


def test_links_are_followed(tmp_path: Path) -> None:
    real = make(tmp_path / "blobs", {"w": np.ones(4, np.float32)})
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(real / name)
    assert Checkpoint.open(folder).tensor("w").tolist() == [1, 1, 1, 1]


def test_frequencies_of_the_default_model() -> None:
    counts = Checkpoint.open(MODEL).frequencies()
    assert counts is not None
    assert counts.dtype == np.int64
    assert counts.shape == (16_000,)
    assert counts[:3].tolist() == [1963836, 6163, 627550]


def test_frequencies(tmp_path: Path) -> None:
    make(tmp_path, {"w": np.ones(1, np.float32)}, {"vocab_size": 3})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.frequencies() is None
    (tmp_path / "token_freq.tsv").write_text(HEADER + "2\t\u2028\t5\t6\n0\ta\t1\t2\n1\t\x85\t0\t0\n")
    counts = checkpoint.frequencies()
    assert counts is not None
    assert counts.tolist() == [3, 0, 11]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the first line must be"),
        (b"0\ta\t1\t2\n", "the first line must be"),
        (HEADER.encode() + b"0\ta\t1\t2\n", "1 tokens, expected vocab_size 2"),
        (HEADER.encode() + b"0\ta\t1\t2\n0\tb\t1\t2\n", "line 3: id 0 is out of range or occurs twice"),
        (HEADER.encode() + b"0\ta\t1\t2\n2\tb\t1\t2\n", "line 3: id 2 is out of range"),
        (HEADER.encode() + b"0\ta\t1\t2\n1\tb\t-1\t2\n", "line 3: expected id, piece and two counts"),
        (HEADER.encode() + b"0\ta\t1\t2\n1\tb\t1\n", "line 3: expected id, piece and two counts"),
        (HEADER.encode() + b"0\ta\t1\t2\n1\tb\t1\t" + b"9" * 30 + b"\n", "line 3: expected id"),
        (HEADER.encode() + b"0\t\xff\t1\t2\n1\tb\t1\t2\n", "not valid UTF-8"),
    ],
)
def test_bad_frequencies(tmp_path: Path, text: bytes, message: str) -> None:
    make(tmp_path, {"w": np.ones(1, np.float32)}, {"vocab_size": 2})
    (tmp_path / "token_freq.tsv").write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint.open(tmp_path).frequencies()
    assert "token_freq.tsv" in str(caught.value)


def test_needs_neither_torch_nor_safetensors() -> None:
    code = (
        f"import sys; from tvmq.checkpoint import Checkpoint; Checkpoint.open({str(MODEL)!r}); "
        "print([m for m in ('torch', 'transformers', 'tvm', 'safetensors') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
