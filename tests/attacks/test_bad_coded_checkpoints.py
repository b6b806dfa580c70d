# SPDX-License-Identifier: Apache-2.0
"""One crafted defect of a coded checkpoint each: one sentence that names the file, never another error."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits, encode_plan
from schedules.outliers import Outliers
from schedules.packing import BitPlanes, WordPlanes
from tvmq.checkpoint import Checkpoint
from tvmq.coded_checkpoint import write_coded
from tvmq.errors import InputError
from tvmq.tensor_file import TensorFile, is_padding, write_weights

Tensors = dict[str, Any]
BIG = 1 << 61


def planes(bits: int, n: int) -> BitPlanes:
    """[n, 12] in groups of 6; the second byte of a row has 4 spare bits."""
    return BitPlanes(
        planes=np.full((bits, n, 2), (0xA5, 0x05), np.uint8),
        scales=np.ones((bits, n, 2), np.float32),
        offsets=np.zeros((n, 2), np.float32),
        shape=(n, 12),
        group_size=6,
    )


MATRIX = BlockBits(tensor="a", block="x", bits=2, group_size=6, offset=True, scale_dtype="float32")
SHARED = BlockBits(tensor="s", block="x", bits=1, group_size=6, scale_dtype="pow2", outliers=5.0)
KEPT = BlockBits(tensor="kept", block="x", bits=32)
WORDS = WordBits(
    tensor="w", block="y", clusters=((1, 2), (2, 1)), group_size=6, offset=True, scale_dtype="float32"
)
PLAN = BitPlan(schema=1, source="test", blocks=(MATRIX, SHARED, KEPT), words=(WORDS,))


@pytest.fixture
def coded(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "coded"
    words = WordPlanes(order=np.array([2, 0, 1], np.int32), segments=(planes(2, 1), planes(1, 2)))
    mantissas, exponents = np.full((1, 4, 2), 100, np.int8), np.full((4, 2), -9, np.int8)
    shared = replace(planes(1, 4), scales=mantissas, offsets=None, exponents=exponents)
    outliers = Outliers(places=np.array([3, 40]), values=np.ones(2, np.float16))
    shared = replace(shared, outliers=outliers)
    tensors = {"a": planes(2, 4), "s": shared, "w": words}
    floats = {"kept": np.ones((2, 2)), "bias": np.ones(2)}
    write_coded(folder, model=checkpoint, plan=PLAN, planes=tensors, floats=floats, force=False)
    return folder


@pytest.fixture
def rewrite(coded: Path) -> Callable[..., Path]:
    """Writes the weights again after ``edit(tensors, metadata)``."""

    def write(edit: Callable[[Tensors, dict[str, str]], object]) -> Path:
        path = coded / "model.safetensors"
        file = TensorFile.open(path)
        tensors = {name: file.raw(name).copy() for name in file.entries if not is_padding(name)}
        metadata = dict(file.metadata)
        edit(tensors, metadata)
        write_weights(path, tensors, metadata)
        return coded

    return write


def read_all(folder: Path) -> None:
    opened = Checkpoint.open(folder)
    assert opened.names()
    for name in opened.names():
        value = opened.tensor(name)
        assert value.shape == opened.shape(name)
        assert np.isfinite(value).all()


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_all(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_the_undamaged_one_opens(coded: Path) -> None:
    read_all(coded)
    assert Checkpoint.open(coded).names() == ["a", "bias", "kept", "s", "w"]


def put(name: str, value: Any) -> Callable[[Tensors, dict[str, str]], object]:
    return lambda tensors, metadata: tensors.update({name: value})


def drop(name: str) -> Callable[[Tensors, dict[str, str]], object]:
    return lambda tensors, metadata: tensors.pop(name)


def set_at(name: str, index: Any, value: Any) -> Callable[[Tensors, dict[str, str]], object]:
    return lambda tensors, metadata: tensors[name].__setitem__(index, value)


def note(name: str, value: str) -> Callable[[Tensors, dict[str, str]], object]:
    return lambda tensors, metadata: metadata.update({name: value})


F4 = np.float32
DEFECTS: dict[str, tuple[Callable[[Tensors, dict[str, str]], object], str]] = {
    "a later format": (note("format", "tvmq coded checkpoint 2"), "format 'tvmq coded checkpoint 2', this"),
    "no columns": (lambda tensors, metadata: metadata.pop("a"), "does not say how many columns 'a' has"),
    "columns in words": (note("a", "twelve"), "how many columns 'a' has"),
    "no column": (note("a", "0"), "how many columns 'a' has"),
    "negative columns": (note("a", "-12"), "how many columns 'a' has"),
    "Arabic digits": (note("a", "١٢"), "how many columns 'a' has"),
    "a thousand digits": (note("a", "1" * 1000), "how many columns 'a' has"),
    "too many columns": (note("a", str((1 << 24) + 1)), "how many columns 'a' has"),
    "columns that groups do not divide": (note("a", "13"), "13 columns, which group size 6 does not divide"),
    "more columns than planes": (note("a", "18"), r"'a:planes' is uint8\[2, 4, 2\], the plan .*\[2, 4, 3\]"),
    "fewer columns than planes": (note("w", "6"), r"'w:0:planes' is uint8\[2, 1, 2\], .*uint8\[2, 1, 1\]"),
    "no planes": (drop("a:planes"), "'a:planes' of the plan is not stored"),
    "no scales": (drop("a:scales"), "'a:scales' of the plan is not stored"),
    "no offsets": (drop("a:offsets"), "'a:offsets' of the plan is not stored"),
    "no order": (drop("w:order"), "'w:order' of the plan is not stored"),
    "no cluster": (drop("w:1:planes"), "'w:1:planes' of the plan is not stored"),
    "no float": (drop("kept"), "'kept' of the plan is not stored"),
    "a cluster more": (put("w:2:planes", np.zeros((1, 1, 2), np.uint8)), "'w:2:planes' is not in the plan"),
    "planes of nothing": (put("b:planes", np.zeros((1, 1, 2), np.uint8)), "'b:planes' is not in the plan"),
    "a forged name": (put("x:\nerror: forged\x1b[31m", np.zeros(1, F4)), r"'x:\\nerror: forged\\x1b"),
    "both kinds": (put("a", np.zeros((4, 12), F4)), "'a' is stored as floats and planned as planes"),
    "three planes": (put("a:planes", np.zeros((3, 4, 2), np.uint8)), r"expects uint8\[2, 4, 2\]"),
    "flat planes": (put("a:planes", np.zeros(16, np.uint8)), r"'a:planes' is uint8\[16\], the plan expects"),
    "no rows": (put("a:planes", np.zeros((2, 0, 2), np.uint8)), r"'a:planes' is uint8\[2, 0, 2\]"),
    "signed planes": (put("a:planes", np.zeros((2, 4, 2), np.int8)), "'a:planes' is int8"),
    "scales of other rows": (put("a:scales", np.ones((2, 5, 2), F4)), r"'a:scales' is float32\[2, 5, 2\]"),
    "scales of other groups": (put("a:scales", np.ones((2, 4, 1), F4)), r"'a:scales' is float32\[2, 4, 1\]"),
    "scales of no group": (put("a:scales", np.ones((2, 4, 0), F4)), r"'a:scales' is float32\[2, 4, 0\]"),
    "half scales": (put("a:scales", np.ones((2, 4, 2), np.float16)), "'a:scales' is float16"),
    "scales of integers": (put("a:scales", np.ones((2, 4, 2), np.int32)), "'a:scales' is int32"),
    "half offsets": (put("a:offsets", np.ones((4, 2), np.float16)), "'a:offsets' is float16"),
    "other words": (put("w:order", np.arange(4, dtype=np.int32)), r"'w:order' is int32\[4\], .*int32\[3\]"),
    "an order of floats": (put("w:order", np.arange(3, dtype=F4)), "'w:order' is float32"),
    "a word twice": (set_at("w:order", 0, 1), "'w': the order does not name each of 3 words once"),
    "a negative word": (set_at("w:order", 0, -1), "'w': the order does not name each"),
    "a word too far": (set_at("w:order", 0, 2**31 - 1), "'w': the order does not name each"),
    "a scale of NaN": (set_at("a:scales", (1, 2, 0), np.nan), "'a': scales or offsets are not finite"),
    "an infinite scale": (set_at("w:1:scales", 0, -np.inf), "'w': scales or offsets are not finite"),
    "an infinite offset": (set_at("a:offsets", 0, np.inf), "'a': scales or offsets are not finite"),
    "scales that overflow": (set_at("a:scales", slice(None), 3e38), "'a': scales or offsets are not finite"),
    "a spare bit": (set_at("a:planes", (0, 0, 1), 0x15), "'a': bits beyond column 12 are set"),
    "a spare bit of words": (set_at("w:1:planes", (0, 1, 1), 0x85), "'w': bits beyond column 12 are set"),
    "no exponents": (drop("s:exponents"), "'s:exponents' of the plan is not stored"),
    "exponents of floats": (put("s:exponents", np.zeros((4, 2), F4)), "'s:exponents' is float32"),
    "a mantissa of 8 bits": (set_at("s:scales", 0, -128), "'s': mantissas of one row add up to more than"),
    "a huge exponent": (set_at("s:exponents", 0, 127), "'s': exponents must lie between -100 and 100"),
    "exponents of nothing": (put("a:exponents", np.zeros((4, 2), np.int8)), "'a:exponents' is not in the"),
    "no starts": (drop("s:starts"), "'s:starts' of the plan is not stored"),
    "one place more": (put("s:places", np.zeros(3, np.uint16)), r"'s:places' is uint16\[3\], .*uint16\[2\]"),
    "wide places": (put("s:places", np.zeros(2, np.int32)), "'s:places' is int32"),
    "starts that fall": (set_at("s:starts", 0, 2), "'s': the starts of outliers do not rise"),
    "a place beyond": (set_at("s:places", 1, 48), "'s': an outlier lies beyond the last of 4 rows"),
    "a place twice": (set_at("s:places", 1, 3), "'s': the places of outliers do not ascend"),
    "an infinite outlier": (set_at("s:values", 0, np.inf), "'s': an outlier is not finite"),
    "a float of NaN": (set_at("bias", 0, np.nan), "'bias' holds 1 values that are not finite"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_bad_tensors(rewrite: Callable[..., Path], defect: str) -> None:
    damage, message = DEFECTS[defect]
    refused(rewrite(damage), message)


def edited(**changed: Any) -> bytes:
    return json.dumps(json.loads(encode_plan(PLAN)) | changed).encode()


def block(**changed: Any) -> list[dict[str, Any]]:
    first, *others = json.loads(encode_plan(PLAN))["blocks"]
    return [first | changed, *others]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "plan.json: not a bit plan"),
        (b"[" * 100_000, "plan.json: not a bit plan"),
        (b"\xff", "plan.json: not a bit plan"),
        (edited(schema=2), "plan.json: the plan has schema 2"),
        (edited(blocks=[], words=[]), "not in the plan"),
        (edited(words=[]), "'w:0:offsets', 'w:0:planes', 'w:0:scales' and 4 more is not in the plan"),
        (edited(blocks=block(bits=3)), r"'a:planes' is uint8\[2, 4, 2\], the plan expects uint8\[3, 4, 2\]"),
        (edited(blocks=block(bits=32)), "'a' of the plan is not stored"),
        (edited(blocks=block(bits=9)), "plan.json: a: 9 bits are impossible"),
        (edited(blocks=block(group_size=3)), r"'a:scales' is float32\[2, 4, 2\]"),
        (edited(blocks=block(group_size=5)), "group size 5 does not divide"),
        (edited(blocks=block(group_size=None)), r"'a:scales' is float32\[2, 4, 2\]"),
        (edited(blocks=block(group_size=BIG)), "plan.json: "),
        (edited(blocks=block(offset=False)), "'a:offsets' is not in the plan"),
        (edited(blocks=block(scale_dtype="float16")), "'a:scales' is float32"),
        (edited(blocks=block(tensor="b")), "how many columns 'b' has"),
        (edited(blocks=block(tensor="w")), "plan.json: the plan names a tensor more than once"),
        (edited(blocks=block(tensor="w:0")), "how many columns 'w:0' has"),
    ],
)
def test_bad_plan(coded: Path, data: bytes, message: str) -> None:
    (coded / "plan.json").write_bytes(data)
    refused(coded, message)


def test_no_plan(coded: Path) -> None:
    (coded / "plan.json").unlink()
    refused(coded, "plan.json: cannot be read")
    os.mkfifo(coded / "plan.json")
    refused(coded, "plan.json: not a regular file")


def test_word_clusters_of_another_table(coded: Path) -> None:
    for clusters, message in (
        ([[2, 2], [1, 1]], r"'w:0:planes' is uint8\[2, 1, 2\], the plan expects uint8\[2, 2, 2\]"),
        ([[1, 2], [2**31 - 1, 1]], r"'w:order' is int32\[3\], the plan expects int32\[2147483648\]"),
        ([[3, 1]], "is not in the plan"),
        ([[1, 2], [1, 1], [1, 1]], "'w:2:offsets', 'w:2:planes', 'w:2:scales' of the plan is not stored"),
    ):
        words = json.loads(encode_plan(PLAN))["words"][0] | {"clusters": clusters}
        (coded / "plan.json").write_bytes(edited(words=[words]))
        refused(coded, message)


def test_planes_without_their_format_are_foreign_tensors(rewrite: Callable[..., Path]) -> None:
    folder = rewrite(lambda tensors, metadata: metadata.pop("format"))
    opened = Checkpoint.open(folder)
    assert opened.plan is None
    with pytest.raises(InputError, match="'a:planes' has dtype U8, expected F16"):
        opened.tensor("a:planes")


def test_random_damage_is_refused_or_harmless(coded: Path) -> None:
    """Any byte of header or plan may change: a sentence, or a checkpoint with finite numbers."""
    rng = random.Random(4)
    weights = (coded / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    sound = {"model.safetensors": weights, "plan.json": (coded / "plan.json").read_bytes()}
    spans = {"model.safetensors": header, "plan.json": len(sound["plan.json"])}
    messages: list[str] = []
    read = 0
    for turn in range(600):
        name = list(sound)[turn % 2]
        data = bytearray(sound[name])
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(spans[name])] = rng.choice(b'0123456789":,[]{}abU8F\x00\xff')
        (coded / name).write_bytes(data)
        try:
            read_all(coded)
            read += 1
        except InputError as error:
            messages.append(str(error))
        (coded / name).write_bytes(sound[name])
    assert read > 10
    assert len(messages) > 10
    assert all("\n" not in message and message.isprintable() for message in messages)
