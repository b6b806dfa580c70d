# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.make_base import BaseShape, write_base
from tvmq.checkpoint import Checkpoint
from tvmq.tokenizer import MarianTokenizer

SHAPE = BaseShape(layers=1, width=32, ffn=64, heads=2, vocabulary=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), seed=3, shape=SHAPE)


def test_folder_is_a_checkpoint_that_tvmq_reads(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.shape("model.shared.weight") == (SHAPE.vocabulary, SHAPE.width)
    assert checkpoint.shape("model.decoder.layers.0.fc1.weight") == (SHAPE.ffn, SHAPE.width)
    assert np.abs(checkpoint.tensor("model.shared.weight")).max() < 1.0
    counts = checkpoint.frequencies()
    assert counts is not None
    assert (np.diff(counts) <= 0).all()


def test_every_piece_survives_the_tokenizer(folder: Path) -> None:
    tokenizer = MarianTokenizer.open(folder)
    ids = tokenizer.encode("aaaa baaa z")
    assert ids[-1] == 0
    assert len(ids) > 3
    assert tokenizer.decode(ids[:-1]) == "aaaa baaa z"


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_base(tmp_path / "again", seed=3, shape=SHAPE)
    other = write_base(tmp_path / "other", seed=4, shape=SHAPE)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert (folder / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
