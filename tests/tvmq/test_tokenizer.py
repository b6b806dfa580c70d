# SPDX-License-Identifier: Apache-2.0
"""Ids and text equal transformers' MarianTokenizer, and do not need it."""

from __future__ import annotations

import json
import lzma
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvmq.compressed import compress
from tvmq.errors import InputError, VerificationError
from tvmq.tokenizer import MarianTokenizer

MODEL = Path(__file__).parents[2] / "models" / "nmt-en-de"
FILES = ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json")
GOLDEN = [
    (
        "Click any of the eight buttons to switch a directed light source on or off.",
        [712, 260, 16, 6, 11820, 2803, 8, 1510, 14, 4445, 66, 1567, 407, 61, 55, 1019, 2, 0],
        "Click any of the eight buttons to switch a directed light source on or off.",
    ),
    ("", [0], ""),
    ("   ", [0], ""),
    ("Größe: 3,5 % - naïve", [513, 11, 7, 60, 4, 78, 12, 57, 4719, 1, 899, 0], "Größe: 3,5 % - nave"),
    ("emoji 😀 ok", [642, 2306, 6140, 7, 1, 7, 2135, 0], "emoji  ok"),
    (">>deu<< Hello", [1, 7116, 231, 0], "Hello"),
    ("a</s>b <unk>c", [14, 0, 622, 1, 646, 0], "a b c"),
    ("tab\tand\x01control", [641, 23, 3521, 0], "tab andcontrol"),
]
ODD = [
    *(text for text, _, _ in GOLDEN),
    "\t",
    "\n",
    "☃ 你好 мир",
    "a\x00b",
    "\x01\x02\x7f",
    "word " * 10_000,
    "x" * 5_000,
    ">>deu<<",
    ">> x",
    ">>a b<<c<<d",
    " >>deu<< x",
    "<pad>x </s> >>de<< y",
    "</s></s>",
    "<",
    "</s",
    "▁ ▁▁ x",
    "  leading and trailing  ",
    "“quotes” - dash… «x»",
    "cafe\u0301 \u200b\ufeff\u00a0x \u2028\x85",
    "ﬁ ﬂ ½ ² Ⅷ",
]


@pytest.fixture(scope="module")
def tokenizer() -> MarianTokenizer:
    return MarianTokenizer.open(MODEL)


@pytest.fixture
def variant(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tokenizer's files with changed settings or vocabulary."""

    def make(config: dict[str, Any] | None = None, vocabulary: dict[str, int] | None = None) -> Path:
        for name in FILES:
            shutil.copy(MODEL / name, tmp_path / name)
        if config is not None:
            changed = json.loads((MODEL / "tokenizer_config.json").read_text()) | config
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
        if vocabulary is not None:
            (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        return tmp_path

    return make


def sample() -> list[str]:
    lines = [(MODEL / "sample" / name).read_text(encoding="utf-8") for name in ("dev.tsv", "test.tsv")]
    return [part for text in lines for line in text.splitlines() for part in line.split("\t")]


def reference(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.MarianTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.mark.parametrize(("text", "ids", "back"), GOLDEN)
def test_golden(tokenizer: MarianTokenizer, text: str, ids: list[int], back: str) -> None:
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == back


@pytest.mark.filterwarnings("ignore")
def test_equals_transformers(tokenizer: MarianTokenizer) -> None:
    expected = reference(MODEL)
    for text in ODD + sample():
        ids = tokenizer.encode(text)
        assert ids == expected(text)["input_ids"], text[:80]
        assert tokenizer.decode(ids) == expected.decode(ids, skip_special_tokens=True), text[:80]
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(16_000) for _ in range(30)]
        assert tokenizer.decode(ids) == expected.decode(ids, skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case", ["clean up", "saved by version 4", "token objects", "no pad", "language codes"]
)
def test_equals_transformers_with_other_settings(variant: Callable[..., Path], case: str) -> None:
    vocabulary = json.loads((MODEL / "vocab.json").read_text())
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    match case:
        case "clean up":
            folder = variant({"clean_up_tokenization_spaces": True})
        case "saved by version 4":
            added = {
                str(vocabulary[t]): {"content": t, "special": True, **flags}
                for t in ("</s>", "<unk>", "<pad>")
            }
            folder = variant(
                {"added_tokens_decoder": added, "additional_special_tokens": [], "sp_model_kwargs": {}}
            )
        case "token objects":
            folder = variant()
            tokens = {"eos_token": {"content": "</s>", **flags}, "unk_token": "<unk>", "pad_token": "<pad>"}
            (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
        case "no pad":
            del vocabulary["<pad>"]
            folder = variant(vocabulary=vocabulary)
        case _:
            folder = variant(vocabulary=vocabulary | {">>deu<<": 16_000, ">>fra<<": 16_001})
    ours, expected = MarianTokenizer.open(folder), reference(folder)
    assert (ours.eos_id, ours.unk_id, ours.pad_id) == (
        expected.eos_token_id,
        expected.unk_token_id,
        expected.pad_token_id,
    )
    for text in (
        [t for t in ODD if len(t) < 1000] + sample()[:100] + ["It 's so , isn 't it ? x .", ">>fra<<Oui"]
    ):
        ids = ours.encode(text)
        assert ids == expected(text)["input_ids"], text
        assert ours.decode(ids) == expected.decode(ids, skip_special_tokens=True), text
    if case == "language codes":
        assert ours.encode(">>deu<< Hello")[0] == 16_000


def test_nothing_is_cut_off(tokenizer: MarianTokenizer) -> None:
    assert len(tokenizer.encode("the " * 10_000)) == 10_001


def test_invalid_unicode_and_ids(tokenizer: MarianTokenizer) -> None:
    with pytest.raises(InputError, match="half a surrogate pair"):
        tokenizer.encode("a\ud800")
    for index in (16_000, -1):
        with pytest.raises(InputError, match=f"token id {index} is not in .*vocab.json"):
            tokenizer.decode([index])


def write_packed(tokenizer: MarianTokenizer, folder: Path) -> Path:
    folder.mkdir()
    for name, data in tokenizer.packed().items():
        (folder / name).write_bytes(data)
    return folder


def test_packed_files_give_the_same_tokenizer(tokenizer: MarianTokenizer, tmp_path: Path) -> None:
    packed = tokenizer.packed()
    names = ["source.spm.xz", "vocab_ids.bin.xz", "vocab_others.json.xz", "tokenizer_config.json"]
    assert list(packed) == names  # target = source
    assert packed == tokenizer.packed()
    assert sum(map(len, packed.values())) < 300_000
    again = MarianTokenizer.open(write_packed(tokenizer, tmp_path / "packed"))
    assert len(again.vocabulary) == 16_000
    for piece, index in json.loads((MODEL / "vocab.json").read_text()).items():
        assert again.vocabulary.token(piece) == index
        assert again.vocabulary.piece(index) == piece
    for text in ODD + sample()[:100]:
        ids = again.encode(text)
        assert ids == tokenizer.encode(text)
        assert again.decode(ids) == tokenizer.decode(ids)


def test_another_target_and_settings_are_kept(variant: Callable[..., Path], tmp_path: Path) -> None:
    folder = variant()
    other = (MODEL / "target.spm").read_bytes()
    (folder / "target.spm").write_bytes(other + b"\x82\x01\x00")  # an unknown empty field
    (folder / "special_tokens_map.json").write_text("{}")
    packed = MarianTokenizer.open(folder).packed()
    assert lzma.decompress(packed["target.spm.xz"]) == (folder / "target.spm").read_bytes()
    assert packed["special_tokens_map.json"] == b"{}"


@pytest.mark.parametrize("name", ["source.spm.xz", "vocab_ids.bin.xz", "vocab_others.json.xz"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_packed_files(tokenizer: MarianTokenizer, tmp_path: Path, name: str, damage: str) -> None:
    place = write_packed(tokenizer, tmp_path / "packed") / name
    data = place.read_bytes()
    half = len(data) // 2
    rest = b"" if damage == "cut" else bytes([data[half] ^ 1]) + data[half + 1 :]
    place.write_bytes(data[:half] + rest)
    with pytest.raises(VerificationError, match=name):
        MarianTokenizer.open(place.parent)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("vocab_others.json", b"[]", "holds a list"),
        ("vocab_others.json", b'{"<unk>": 1, "x": 0}', "two pieces share one id"),
        ("vocab_others.json", b'{"<unk>": 1, "x": 16001, "y": 16001}', "two pieces share one id"),
        ("vocab_others.json", b'{"<unk>": "1"}', "expected a number"),
        ("vocab_ids.bin", bytes(8), "8 bytes of ids"),
        ("vocab_ids.bin", bytes(4 * 15_999), "two pieces share one id"),
        ("vocab_ids.bin", b"\xfe\xff\xff\xff" * 15_999, "an id is negative"),
    ],
)
def test_a_packed_vocabulary_that_is_none(
    tokenizer: MarianTokenizer, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    folder = write_packed(tokenizer, tmp_path / "packed")
    (folder / (name + ".xz")).write_bytes(compress(data))
    with pytest.raises(InputError, match=message):
        MarianTokenizer.open(folder)
    (folder / (name + ".xz")).unlink()
    with pytest.raises(VerificationError, match=rf"{name}.xz: cannot be read"):
        MarianTokenizer.open(folder)


def test_needs_neither_transformers_nor_torch() -> None:
    code = (
        "import sys; from tvmq.tokenizer import MarianTokenizer as M; "
        f"M.open({str(MODEL)!r}).encode('x'); "
        "print([m for m in ('torch', 'transformers', 'tvm', 'sacremoses') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"separate_vocabs": True}, "'separate_vocabs' is set, which is not supported"),
        ({"sp_model_kwargs": {"enable_sampling": True}}, "'sp_model_kwargs' is set"),
        ({"additional_special_tokens": ["<x>"]}, "'additional_special_tokens' is set"),
        ({"bos_token": "<s>"}, "'bos_token' is set"),
        ({"eos_token": 7}, "eos_token must be text, found '7'"),
        ({"eos_token": {"content": "</s>", "lstrip": True}}, "eos_token strips its neighbours"),
        ({"unk_token": "<nothing>"}, "unknown token '<nothing>' is missing"),
        ({"added_tokens_decoder": {"5": {"content": "<x>"}}}, "added token '<x>'"),
        ({"added_tokens_decoder": {"9": {"content": "</s>"}}}, r"added token '</s>' \(id '9'\)"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder must be an object"),
    ],
)
def test_unsupported_settings(variant: Callable[..., Path], config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MarianTokenizer.open(variant(config))


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"<unk>": 0, "</s>": "1"}, "the id of '</s>' is '1'"),
        ({"<unk>": 0, "</s>": True}, "the id of '</s>' is 'True'"),
        ({"<unk>": 0, "</s>": -1}, "the id of '</s>' is '-1'"),
        ({"<unk>": 0, "</s>": 0}, "share one id"),
        ({"<unk>": 0, "</s>": 1 << 22}, "an id is negative or beyond 4194303"),
        ({"</s>": 0}, "unknown token '<unk>' is missing"),
    ],
)
def test_bad_vocabulary(variant: Callable[..., Path], vocabulary: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MarianTokenizer.open(variant(vocabulary=vocabulary))


@pytest.mark.parametrize("name", ["source.spm", "target.spm", "vocab.json"])
@pytest.mark.parametrize("data", [None, b"", b"garbage " * 10])
def test_bad_files(variant: Callable[..., Path], name: str, data: bytes | None) -> None:
    folder = variant()
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        MarianTokenizer.open(folder)


def test_added_tokens_file(variant: Callable[..., Path]) -> None:
    folder = variant()
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(InputError, match="added tokens are not supported"):
        MarianTokenizer.open(folder)
