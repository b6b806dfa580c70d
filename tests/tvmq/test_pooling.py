# SPDX-License-Identifier: Apache-2.0
"""Pooling and text limit as sentence-transformers folders spell them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tvmq.errors import InputError
from tvmq.pooling import Pooling, read_pooling, read_text_limit

STEPS = ("Transformer", "Pooling", "Normalize")


def write(
    folder: Path, modes: dict[str, Any], steps: tuple[str, ...] = STEPS, path: str = "1_Pooling"
) -> Path:
    paths = {"Transformer": "", "Pooling": path, "Normalize": "2_Normalize"}
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": paths.get(step, step),
            "type": f"sentence_transformers.models.{step}",
        }
        for i, step in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **modes}))
    return folder


def test_folders_without_modules(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling(kind="mean", normalize=True)
    assert read_pooling(tmp_path, kind="cls") == Pooling(kind="cls", normalize=True)
    assert read_pooling(tmp_path, normalize=False) == Pooling(kind="mean", normalize=False)


@pytest.mark.parametrize(("mode", "kind"), [("mean_tokens", "mean"), ("cls_token", "cls")])
@pytest.mark.parametrize("normalize", [True, False])
def test_modules(tmp_path: Path, mode: str, kind: Any, normalize: bool) -> None:
    modes = {"pooling_mode_max_tokens": False, f"pooling_mode_{mode}": True}
    folder = write(tmp_path, modes, STEPS if normalize else STEPS[:2])
    assert read_pooling(folder) == Pooling(kind=kind, normalize=normalize)
    assert read_pooling(folder, kind="cls", normalize=not normalize) == Pooling(
        kind="cls", normalize=not normalize
    )
    assert read_pooling(folder, kind="mean").normalize == normalize


@pytest.mark.parametrize(
    "chosen", [["max_tokens"], [], ["weightedmean_tokens"], ["mean_tokens", "cls_token"]]
)
def test_other_modes_need_a_choice(tmp_path: Path, chosen: list[str]) -> None:
    folder = write(tmp_path, {f"pooling_mode_{name}": True for name in chosen})
    with pytest.raises(InputError, match=r"only mean or cls alone is \(choose with --pooling") as caught:
        read_pooling(folder)
    assert "\n" not in str(caught.value)
    assert read_pooling(folder, kind="mean") == Pooling(kind="mean", normalize=True)


@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_a_mode_by_name(tmp_path: Path, kind: Any) -> None:
    assert read_pooling(write(tmp_path, {"pooling_mode": kind})).kind == kind


def test_other_steps_need_both_choices(tmp_path: Path) -> None:
    folder = write(
        tmp_path, {"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Dense", "Normalize")
    )
    for choice in ({}, {"kind": "mean"}, {"normalize": True}):
        with pytest.raises(InputError, match="'Dense', 'Normalize' are not supported"):
            read_pooling(folder, **choice)
    assert read_pooling(folder, kind="mean", normalize=False) == Pooling(kind="mean", normalize=False)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "..", "", "a/b", 3, None])
def test_steps_stay_inside_the_folder(tmp_path: Path, path: Any) -> None:
    folder = write(tmp_path, {"pooling_mode_mean_tokens": True}, path=path)
    with pytest.raises(InputError, match="expected the name of a folder"):
        read_pooling(folder)


@pytest.mark.parametrize("text", ["{}", "[1]", "null", "["])
def test_damaged_modules(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(InputError, match=r"modules\.json"):
        read_pooling(tmp_path)


def test_text_limit(tmp_path: Path) -> None:
    assert read_text_limit(tmp_path) is None
    path = tmp_path / "sentence_bert_config.json"
    path.write_text('{"max_seq_length": 256, "do_lower_case": false}')
    assert read_text_limit(tmp_path) == 256
    path.write_text('{"max_seq_length": null}')
    assert read_text_limit(tmp_path) is None
    for bad in ("0", "true", '"x"', "1.5"):
        path.write_text(f'{{"max_seq_length": {bad}}}')
        with pytest.raises(InputError, match="expected a positive whole number"):
            read_text_limit(tmp_path)
