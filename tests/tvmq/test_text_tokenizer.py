# SPDX-License-Identifier: Apache-2.0
"""The encoder's tokenizer against transformers: ids, types, pairs, cutting, vocab.txt; damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from tvmq.compressed import SUFFIX
from tvmq.errors import InputError, VerificationError
from tvmq.text_tokenizer import CONFIG, VOCABULARY, WHOLE, TextTokenizer

TEXTS = [
    "Hello aaaa, world!",
    "  two   spaces ",
    "ÀÉ über 你好",
    "a" * 150,
    "[SEP] in a text",
    "x\ty",
    "\u200b-é",
]


@pytest.fixture(scope="module")
def folder(encoder_model: Callable[..., Path]) -> Path:
    return encoder_model("BertModel")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.open(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A folder with the tokenizer's files only, to change."""
    for name in (WHOLE, CONFIG):
        shutil.copyfile(folder / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / WHOLE))


def test_ids_are_transformers(tokenizer: TextTokenizer, theirs: Any) -> None:
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs(text)["input_ids"]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text(tokenizer: TextTokenizer, theirs: Any, text: str) -> None:
    assert tokenizer.encode(text) == theirs(text)["input_ids"]


def test_pairs_have_types(tokenizer: TextTokenizer, theirs: Any) -> None:
    found = tokenizer.tokens("one two", "three")
    expected = theirs("one two", "three", return_token_type_ids=True)
    assert (found.ids, found.types) == (expected["input_ids"], expected["token_type_ids"])
    assert sum(found.types) == len(theirs("three")["input_ids"]) - 1


def test_tokens_know_their_characters(tokenizer: TextTokenizer) -> None:
    text = "hello world"
    found = tokenizer.tokens(text)
    assert len(found) == len(found.ids) == len(found.spans)
    assert [found.special[0], found.special[-1]] == [True, True]
    assert "".join(text[a:b] for a, b in found.spans) == "helloworld"


@pytest.mark.parametrize("pair", [None, "three four five six"])
def test_cutting_is_transformers(tokenizer: TextTokenizer, theirs: Any, pair: str | None) -> None:
    text = "one two three four five six seven"
    whole = tokenizer.tokens(text, pair)
    for limit in (6, 9, len(whole), len(whole) + 5):
        found = tokenizer.tokens(text, pair, limit=limit)
        expected = theirs(text, pair, truncation=True, max_length=limit)
        assert found.ids == expected["input_ids"]
        assert len(found) <= limit
    assert tokenizer.tokens(text, pair) == whole, "cutting must not stick"
    with pytest.raises(InputError, match=r"leave no room for a text beside \d special tokens"):
        tokenizer.tokens(text, pair, limit=2)


def test_stored_truncation_and_padding_are_switched_off(tokenizer: TextTokenizer, copy: Path) -> None:
    settings_of = json.loads((copy / WHOLE).read_text())
    settings_of["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    settings_of["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (copy / WHOLE).write_text(json.dumps(settings_of))
    assert TextTokenizer.open(copy).encode("one two three") == tokenizer.encode("one two three")


def test_packed_files_read_back(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    for name, data in tokenizer.packed().items():
        (tmp_path / name).write_bytes(data)
    again = TextTokenizer.open(tmp_path)
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert again.packed() == tokenizer.packed()
    path = tmp_path / (WHOLE + SUFFIX)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(VerificationError, match="ends too early"):
        TextTokenizer.open(tmp_path)


@pytest.mark.parametrize(
    "changes", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_built_from_a_vocabulary_as_transformers_does(copy: Path, changes: dict[str, Any]) -> None:
    vocabulary = json.loads((copy / WHOLE).read_text())["model"]["vocab"]
    (copy / WHOLE).unlink()
    pieces = [
        *sorted(vocabulary, key=vocabulary.__getitem__),
        "A",
        "##A",
        "é",
        "##é",
        "ü",
        "##ü",
        "你",
        "##你",
    ]
    (copy / VOCABULARY).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    (copy / CONFIG).write_text(json.dumps({"tokenizer_class": "BertTokenizer", **changes}))
    ours, theirs = TextTokenizer.open(copy), BertTokenizerFast.from_pretrained(copy)
    assert ours.highest == len(pieces) - 1
    for text in [*TEXTS, "AA é über", "é你a"]:
        assert ours.encode(text) == theirs(text)["input_ids"]
    found, expected = ours.tokens("one", "two"), theirs("one", "two")
    assert (found.ids, found.types) == (expected["input_ids"], expected["token_type_ids"])


def test_limit(copy: Path) -> None:
    assert TextTokenizer.open(copy).limit == 24
    for value, limit in ((1e30, None), (10**30, None), (77, 77)):
        (copy / CONFIG).write_text(json.dumps({"model_max_length": value}))
        assert TextTokenizer.open(copy).limit == limit
    (copy / CONFIG).unlink()
    assert TextTokenizer.open(copy).limit is None
    (copy / CONFIG).write_text('{"model_max_length": "long"}')
    with pytest.raises(InputError, match="model_max_length is 'long', expected a positive whole number"):
        TextTokenizer.open(copy)


def test_half_a_surrogate_pair_is_no_text(tokenizer: TextTokenizer) -> None:
    for words in (("a\ud800",), ("a", "\udfff")):
        with pytest.raises(InputError, match="half a surrogate pair"):
            tokenizer.tokens(*words)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor vocab\.txt found"):
        TextTokenizer.open(tmp_path)


BAD_WHOLE = {
    "empty": (b"", "not valid JSON"),
    "not json": (b"{", "not valid JSON"),
    "twice": (b'{"model": 1, "model": 2}', "occurs twice"),
    "no model": (b"{}", "not a tokenizer"),
    "a list": (b"[]", "not a tokenizer"),
    "other model": (b'{"version": "1.0", "model": {"type": "Magic", "vocab": {}}}', "not a tokenizer"),
    "not text": (b"\xff\xfe", "not valid UTF-8"),
}


@pytest.mark.parametrize("case", BAD_WHOLE)
def test_damaged_tokenizer_is_one_sentence(copy: Path, case: str) -> None:
    data, message = BAD_WHOLE[case]
    (copy / WHOLE).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        TextTokenizer.open(copy)
    assert "\n" not in str(caught.value)
    assert str(copy / WHOLE) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n", r"the special token '\[SEP\]' is missing"),
        (b"[UNK]\n[CLS]\n[SEP]\na\na\n", "the piece 'a' occurs twice"),
        (b"[UNK]\n\xff\n", "not valid UTF-8"),
    ],
)
def test_bad_vocabulary(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / VOCABULARY).write_bytes(data)
    with pytest.raises(InputError, match=message):
        TextTokenizer.open(tmp_path)
