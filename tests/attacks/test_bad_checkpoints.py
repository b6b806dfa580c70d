# SPDX-License-Identifier: Apache-2.0
"""One crafted bad checkpoint per defect; each is one sentence that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError

BIG = 1 << 61


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint.open(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_the_undamaged_one_opens(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    assert opened.tensor("a").tolist() == [[1, 1], [1, 1]]
    assert opened.tensor("b").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, too short"),
        (b"\x02\0\0\0\0\0\0", "7 bytes, too short"),
        (b"\x09\0\0\0\0\0\0\0{}", r"header claims 9 bytes, but the file has 10 \(truncated"),
        (b"\x01\xe1\xf5\x05\0\0\0\0{}", "header claims 100000001 bytes, expected at most 100000000"),
        (b"\xff" * 8 + b"{}", "header claims 18446744073709551615 bytes"),
        (b"\0" * 8, "header: not valid JSON"),
        (b"PK\x03\x04 a zip archive of a pickle", "header claims"),
        (b"version https://git-lfs.github.com/spec/v1\n", "header claims"),
    ],
)
def test_bad_length(checkpoint: Path, data: bytes, message: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(data)
    refused(checkpoint, message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"not json", "header: not valid JSON"),
        (b'{"a\xff": 1}', "header: not valid UTF-8"),
        (b'{"\\ud800": 1}', "header: not valid UTF-8"),
        (b"[]", "header is not a JSON object"),
        (b"[" * 50_000, "header: nested too deeply"),
        (b'{"a": {"dtype": "F32", "shape": [1e999]}}', "'1e999' is not a number"),
        (b'{"a": {"dtype": "F32", "shape": [NaN]}}', "'NaN' is not a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "header: not valid JSON"),
        (b'{"a": {}, "a": {}}', "the key 'a' occurs twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "the key 'dtype' occurs twice"),
        ({"__metadata__": []}, "__metadata__ in the header must map names to text"),
        ({"__metadata__": {"format": 1}}, "__metadata__ in the header must map names to text"),
        ({"a": 1}, "tensor 'a': expected exactly dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "tensor 'a': expected exactly"),
        ({"a": entry() | {"extra": 1}}, "tensor 'a': expected exactly"),
        ({"a": entry(dtype="F31")}, "tensor 'a': unknown dtype 'F31'"),
        ({"a": entry(dtype=["F32"])}, "tensor 'a': unknown dtype"),
        ({"a": entry(shape=[-2])}, r"tensor 'a': shape '\[-2\]'"),
        ({"a": entry(shape=[True, 2])}, "tensor 'a': shape"),
        ({"a": entry(shape=[2.0])}, "tensor 'a': shape"),
        ({"a": entry(shape="2")}, "tensor 'a': shape '2'"),
        ({"a": entry(shape=[BIG * 4])}, "tensor 'a': shape"),
        ({"a": entry(shape=[1] * 9)}, "tensor 'a': shape .*expected at most 8"),
        ({"a": entry(shape=[BIG, BIG, BIG])}, "tensor 'a': data_offsets hold '8' bytes, but F32"),
        ({"a": entry(shape=[BIG, 0], offsets=[0, 0])}, "16 bytes after the last tensor"),
        ({"a": entry(offsets=[8, 0])}, r"tensor 'a': data_offsets '\[8, 0\]'"),
        ({"a": entry(offsets=[-8, 0])}, "tensor 'a': data_offsets"),
        ({"a": entry(offsets=[0, 4, 8])}, "tensor 'a': data_offsets"),
        ({"a": entry(offsets={"0": 8})}, "tensor 'a': data_offsets"),
        ({"a": entry(shape=[3])}, r"data_offsets hold '8' bytes, but F32 of shape \[3\] needs 12"),
        ({"a": entry(dtype="F16")}, "data_offsets hold '8' bytes, but F16"),
        ({"a": entry(shape=[6], offsets=[0, 24])}, r"tensor 'a' ends at byte \d+, but the file has \d+"),
        ({"a": entry(offsets=[BIG, BIG + 8])}, r"tensor 'a' ends at byte \d+, but the file has"),
        ({"a": entry(shape=[4], offsets=[0, 16]), "b": entry(offsets=[8, 16])}, "tensor 'b' overlaps"),
        ({"a": entry(), "b": entry()}, "tensor 'b' overlaps"),
        ({"a": entry(shape=[1], offsets=[0, 4]), "b": entry(offsets=[8, 16])}, "tensor 'b' leaves a hole"),
        ({"a": entry(offsets=[8, 16])}, "tensor 'a' leaves a hole"),
        ({"a": entry()}, "8 bytes after the last tensor, expected none"),
        ({"a\nerror: forged\x1b[31m" * 99: entry()}, "8 bytes after the last tensor"),
        ({"a\nerror: forged\x1b[31m" * 99: 1}, r"tensor 'a\\nerror: forged\\x1b"),
    ],
)
def test_bad_header(
    checkpoint: Path, raw_safetensors: Callable[..., bytes], header: Any, message: str
) -> None:
    (checkpoint / "model.safetensors").write_bytes(raw_safetensors(header, bytes(16)))
    refused(checkpoint, message)


def test_no_tensor_at_all(checkpoint: Path, raw_safetensors: Callable[..., bytes]) -> None:
    (checkpoint / "model.safetensors").write_bytes(raw_safetensors({}, b""))
    refused(checkpoint, "holds no tensors")


def test_truncated_data(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(checkpoint, r"tensor 'b' ends at byte .*\(truncated")


def test_a_folder_or_a_pipe_is_no_file(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").mkdir()
    refused(checkpoint, "not a regular file")
    (checkpoint / "model.safetensors").rmdir()
    os.mkfifo(checkpoint / "model.safetensors")
    refused(checkpoint, "not a regular file")


@pytest.fixture
def sharded(checkpoint: Path) -> Callable[[object], Path]:
    """Two copies of the tensor file under shard names, and any index over them."""
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").unlink()
    for name in ("one.safetensors", "two.safetensors"):
        (checkpoint / name).write_bytes(data)
    (checkpoint.parent / "outside.safetensors").write_bytes(data)

    def index(weight_map: object) -> Path:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (checkpoint / "model.safetensors.index.json").write_text(text)
        return checkpoint

    return index


def test_good_index(sharded: Callable[[object], Path]) -> None:
    one = {"a": "one.safetensors", "b": "one.safetensors"}
    assert Checkpoint.open(sharded(one)).names() == ["a", "b"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../outside.safetensors"}, "'../outside.safetensors' is not a plain file name"),
        ({"a": "/etc/passwd.safetensors"}, "is not a plain file name"),
        ({"a": "sub/one.safetensors"}, "is not a plain file name"),
        ({"a": "..\\outside.safetensors"}, "is not a plain file name"),
        ({"a": "one\0.safetensors"}, "is not a plain file name"),
        ({"a": "pytorch_model.bin"}, "'pytorch_model.bin' is not a plain file name ending in .safetensors"),
        ({"a": 1}, "'1' is not a plain file name"),
        ({"a": ["one.safetensors"]}, "is not a plain file name"),
        ({"a": "three.safetensors"}, "the shard 'three.safetensors' is missing"),
        ({"a": "x" * 300 + ".safetensors"}, "File name too long"),
        ({"a": "one.safetensors", "c": "one.safetensors"}, "tensor 'c' is not in 'one.safetensors'"),
        ({"a": "one.safetensors"}, "one.safetensors holds tensor 'b' against the index"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "holds tensor 'b' against the index"),
        ({}, "holds no tensors"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ],
)
def test_bad_index(sharded: Callable[[object], Path], weight_map: object, message: str) -> None:
    refused(sharded(weight_map), message)


def test_index_that_is_no_object(sharded: Callable[[object], Path]) -> None:
    folder = sharded({})
    (folder / "model.safetensors.index.json").write_text("[1]")
    refused(folder, "holds a list, expected a JSON object")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x", "a": "y"}}')
    refused(folder, "the key 'a' occurs twice")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_never_loaded(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    refused(checkpoint, rf"only {name} and no model.safetensors; pickles .* never loaded .*save_pretrained")


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "neither model.safetensors nor model.safetensors.index.json found")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "holds a list, expected a JSON object"),
        (b"null", "holds a NoneType, expected a JSON object"),
        (b'{"d_model": \xff}', "not valid UTF-8"),
        (b'{"d_model": NaN}', "'NaN' is not a number"),
        (b'{"d_model": 1, "d_model": 2}', "the key 'd_model' occurs twice"),
        (b'{"a": ' * 20_000, "nested too deeply"),
        (b" " * (5 << 20), "expected at most 4194304"),
    ],
)
def test_bad_json(checkpoint: Path, name: str, data: bytes, message: str) -> None:
    (checkpoint / name).write_bytes(data)
    refused(checkpoint, f"{name}: .*{message}")


def test_missing_folder_or_config(checkpoint: Path) -> None:
    refused(checkpoint / "nowhere", "nothing there, expected a model folder")
    refused(checkpoint / "config.json", "a file, expected a model folder")
    (checkpoint / "config.json").unlink()
    refused(checkpoint, r"config.json: cannot be read \(No such file")
