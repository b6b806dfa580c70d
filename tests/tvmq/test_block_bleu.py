# SPDX-License-Identifier: Apache-2.0
"""BLEU by block: the paper's rows, translations with replaced weights, the file and bad ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tvmq.block_bleu import block_groups, measure_block_bleu
from tvmq.block_scores import BlockScore, BlockScores
from tvmq.block_translation import BlockTranslator
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError, UsageError
from tvmq.families import TensorInfo
from tvmq.sensitivity_table import Coding

ROWS = ["Emb", "Enc", "Enc_ee", "Enc_ffn", "Dec", "Dec_dd", "Dec_ed", "Dec_ffn"]
"""Of the paper's Table 1, in its order but for the last two of the encoder."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "dev.tsv"
    lines = ["the file is open\tdie Datei ist offen", "a page\teine Seite", "save as\tspeichern als"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def scores(tiny_model: Path, pairs: Path) -> BlockScores:
    return measure_block_bleu(tiny_model, pairs, widths=(3, 1))


def info(block: str) -> TensorInfo:
    return TensorInfo(name=f"{block}.weight", block=block, shape=(2, 2), is_embedding=False)


def test_groups() -> None:
    blocks = [info(name) for name in ("Emb", "Enc_ee", "Enc_ffn", "Dec_dd")]
    found = block_groups(blocks)
    assert list(found) == ["Emb", "Enc", "Enc_ee", "Enc_ffn", "Dec_dd"]
    assert [tensor.block for tensor in found["Enc"]] == ["Enc_ee", "Enc_ffn"]


def test_the_papers_rows(tiny_model: Path, scores: BlockScores) -> None:
    assert [row.block for row in scores.rows] == ROWS
    assert {row.bits for row in scores.rows} == {(1, 3)}
    assert scores.widths == [3, 1]
    assert scores.model_sha256 == Checkpoint.open(tiny_model).sha256
    assert (scores.sentences, scores.coding) == (3, Coding())
    for row in scores.rows:
        for low, high in zip(row.low, row.high, strict=True):
            assert low <= high


def test_weights_are_replaced_and_put_back(tiny_model: Path) -> None:
    """Another head says other words; afterwards the model is itself again."""
    translator = BlockTranslator.open(tiny_model)
    lines = ["the file is open", "a page"]
    name = "model.shared.weight"
    weight = translator.weight(name).copy()
    plain = translator.translate(lines, {})
    assert translator.translate(lines, {name: weight}) == plain
    turned = translator.translate(lines, {name: np.ascontiguousarray(weight[::-1])})
    assert turned != plain
    assert translator.translate(lines, {}) == plain
    assert np.array_equal(translator.weight(name), weight)


def test_processes_do_not_change_it(tiny_model: Path, pairs: Path, scores: BlockScores) -> None:
    from joblib import parallel_config

    steps: list[tuple[int, int]] = []
    with parallel_config(backend="threading", n_jobs=2):
        again = measure_block_bleu(
            tiny_model,
            pairs,
            widths=(1, 3),
            jobs=2,
            progress=lambda phase, done, total: steps.append((done, total)),
        )
    assert again == scores
    assert steps[-1] == (17, 17)


def test_file(tmp_path: Path, scores: BlockScores) -> None:
    path = tmp_path / "scores.json"
    scores.write(path)
    assert BlockScores.read(path) == scores
    assert path.read_bytes().count(b'"block"') == path.read_bytes().count(b"\n    {") == 8
    sparse = replace(scores, coding=Coding(outliers=0.1))
    sparse.write(path)
    assert BlockScores.read(path) == sparse


def test_hessian_codes_need_the_calibration(tiny_model: Path, pairs: Path) -> None:
    with pytest.raises(UsageError, match="the quantizer hessian needs a calibration"):
        measure_block_bleu(tiny_model, pairs, widths=(2,), coding=Coding(quantizer="hessian"))


def row(**changed: object) -> dict[str, object]:
    return {"block": "a", "bits": [1], "bleu": [1], "low": [0], "high": [0]} | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": 2}, "the file has schema 2, expected 1"),
        ({"bleu": 101}, "a BLEU of FP32 from 0 to 100"),
        ({"rows": []}, "at least one block"),
        ({"extra": 1}, "not a table of BLEU by block"),
        ({"rows": [row(bleu=[1, 2])]}, "a: as many values"),
        ({"rows": [row(bits=[2, 1], bleu=[1, 2], low=[0, 0], high=[0, 0])]}, "a: bits"),
        ({"rows": [row(bleu=[-1])]}, "a: BLEU outside"),
        ({"rows": [row(bleu=["1"])]}, "not a table of BLEU"),
    ],
)
def test_bad_files(tmp_path: Path, scores: BlockScores, changed: dict[str, object], message: str) -> None:
    path = tmp_path / "scores.json"
    scores.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=message) as caught:
        BlockScores.read(path)
    assert "scores.json" in str(caught.value)


def test_intervals_are_finite() -> None:
    with pytest.raises(ValueError, match="a: intervals must be finite"):
        BlockScore(block="a", bits=(1,), bleu=(1.0,), low=(float("nan"),), high=(0.0,))
