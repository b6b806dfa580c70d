# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.make_bert import BertShape, write_bert
from tvmq.checkpoint import Checkpoint

SHAPE = BertShape(layers=1, width=32, ffn=64, heads=2, vocabulary=128, positions=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"), seed=3, shape=SHAPE)


def test_transformers_reads_every_tensor_of_the_folder(folder: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    model, report = transformers.BertModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert set(model.state_dict()) == set(Checkpoint.open(folder).names())


def test_every_word_has_pieces_and_keeps_its_letters(folder: Path) -> None:
    tokenizers: Any = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPE.vocabulary
    encoded = tokenizer.encode("Hello aaaa", "z")
    assert encoded.tokens == ["[CLS]", "h", "##e", "##l", "##l", "##o", "aaaa", "[SEP]", "z", "[SEP]"]
    assert encoded.type_ids == [0] * 8 + [1] * 2


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_bert(tmp_path / "again", seed=3, shape=SHAPE)
    other = write_bert(tmp_path / "other", seed=4, shape=SHAPE)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert not np.array_equal(
        Checkpoint.open(folder).tensor("pooler.dense.weight"),
        Checkpoint.open(other).tensor("pooler.dense.weight"),
    )
