# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.ragged import main, mixed_texts, padded


def test_lengths_are_mixed_and_repeat() -> None:
    texts = mixed_texts(200, 50)
    lengths = [len(text) for text in texts]
    assert (min(lengths) >= 8, max(lengths) <= 128, len(set(lengths)) > 60) == (True, True, True)
    assert all(0 <= i < 50 for text in texts for i in text.ids)
    assert texts == mixed_texts(200, 50)
    assert texts != mixed_texts(200, 50, seed=1)
    assert {len(text) for text in mixed_texts(9, 50, longest=5)} == {5}


def test_padding_fills_each_batch() -> None:
    texts = mixed_texts(10, 50)
    filled = padded(texts, 4)
    assert len(filled) == len(texts)
    for start in (0, 4, 8):
        longest = max(len(text) for text in texts[start : start + 4])
        assert {len(text) for text in filled[start : start + 4]} == {longest}
    for text, other in zip(texts, filled, strict=True):
        assert other.ids[: len(text)] == text.ids
        assert not any(other.ids[len(text) :])


def test_command(compiled_encoder: Callable[..., Path], tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    words = [
        "--artifact",
        str(compiled_encoder("BertModel")),
        "--texts",
        "9",
        "--batch",
        "4",
        "--rounds",
        "1",
    ]
    done = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "x.json")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "ratio" in done.output
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["padded_tokens"] > found["tokens"] > 9 * 8
    assert found["ratio"] > 0
