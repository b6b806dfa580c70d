# SPDX-License-Identifier: Apache-2.0
"""The embedded sentiment classifier on its 700 test lines: FP32 as transformers, few bits close to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tvmq
from targets import detect_host
from tvmq.encoder import load
from tvmq.evaluation import read_columns
from tvmq.options import CompileOptions, PlanOptions

MODEL = Path(__file__).resolve().parents[2] / "models" / "sentiment-minilm"
TEST = MODEL / "sample" / "test.tsv"
Make = Callable[[str], Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``artifact("3-bit")`` for this CPU, made once."""
    made: dict[str, Path] = {}

    def make(preset: str) -> Path:
        if preset not in made:
            made[preset] = tmp_path_factory.mktemp("sentiment") / f"{preset}.tvmq"
            options = CompileOptions(plan=PlanOptions(preset=preset), isa_levels=(detect_host()[0],))
            tvmq.compile(MODEL, made[preset], options)
        return made[preset]

    return make


@pytest.fixture(scope="module")
def lines() -> list[list[str]]:
    return read_columns(TEST, "text TAB label", (2,))


@pytest.fixture(scope="module")
def theirs(lines: list[list[str]]) -> NDArray[np.float32]:
    """transformers' logits of every line, one text at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text, _ in lines]
    return np.stack(rows)


def test_fp32_is_transformers_line_by_line(artifact: Make, lines: Any, theirs: NDArray[np.float32]) -> None:
    with load(artifact("fp32")) as encoder:
        tokens = encoder.tokenize([text for text, _ in lines])
        ours = np.concatenate(list(encoder.run("classify", tokens)))
        labels = [best.label for best in encoder.classify([text for text, _ in lines])]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    names = encoder.labels
    assert names == ("negative", "positive")
    assert labels == [names[i] for i in theirs.argmax(1)]


def test_accuracy_of_few_bits(tvmq: Callable[..., Any], artifact: Make, tmp_path: Path) -> None:
    lines = tmp_path / "fp32.txt"
    whole = json.loads(tvmq("eval", artifact("fp32"), "--data", TEST, "-o", lines, "--json").out)
    assert whole["value"] == 86.14
    words = ("eval", artifact("3-bit"), "--data", TEST, "--baseline", lines, "--json")
    found = json.loads(tvmq(*words).out)
    assert found["n"] == 700
    assert found["difference"] > -1
    facts = json.loads(tvmq("inspect", artifact("3-bit"), "--json").out)
    assert facts["bits_per_weight"] < 3.5
    assert facts["ratio"] > 9


def test_labels_are_the_models_own(tvmq: Callable[..., Any], artifact: Make, tmp_path: Path) -> None:
    text = tmp_path / "in.txt"
    text.write_text("A wonderful, moving film.\nDull and far too long.\n")
    outcome = tvmq("classify", artifact("3-bit"), "-i", text)
    assert [line.partition("\t")[0] for line in outcome.out.splitlines()] == ["positive", "negative"]


def test_the_folder_carries_its_licence_note(artifact: Make) -> None:
    note = (MODEL / "LICENSE-NOTE.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in note
    assert "MIT licence" in note
    assert load(artifact("fp32")).manifest.model.licence == "Licence note for this folder"
