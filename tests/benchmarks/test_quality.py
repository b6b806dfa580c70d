# SPDX-License-Identifier: Apache-2.0
"""The quality table: every row has its paired difference, and finished rows are not measured again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import tvmq
from benchmarks import quality
from tvmq.options import SearchOptions

DATA = "w1 w2 w3\tw4 w5 w6 w7\nw7 w8\tw9 w10\nw11 w12 w13\tw1\n"


def run(model: Path, folder: Path, *words: object) -> str:
    app = typer.Typer()
    app.command()(quality.main)
    data = folder / "data.tsv"
    data.write_text(DATA, encoding="utf-8")
    given = ["--model", model, "--data", data, "--work", folder / "work", "--threads", 1, *words]
    outcome = CliRunner().invoke(app, [str(word) for word in given], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_rows_and_resumption(
    tiny_model: Path, compiled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def copy_compiled(_: Path, artifact: Path, options: Any) -> None:
        made.append(options.plan.preset)
        shutil.copytree(compiled(options.plan.preset), artifact)

    monkeypatch.setattr(tvmq, "compile", copy_compiled, raising=False)
    words = ["--preset", "2-bit", "--codes", "greedy", "--beam", 2]
    first = run(tiny_model, tmp_path, *words)
    assert made == ["fp32", "2-bit"]
    document = json.loads((tmp_path / "work" / "quality.json").read_text(encoding="utf-8"))
    fp32, row = document["results"]
    assert "difference" not in fp32
    assert row["baseline_value"] == fp32["value"]
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert row["size_bytes"] < fp32["size_bytes"]
    assert run(tiny_model, tmp_path, *words) == first
    assert len(made) == 2
    run(tiny_model, tmp_path, *words, "--codes", "alternating")
    assert made == ["fp32", "2-bit", "2-bit"]
    run(tiny_model, tmp_path, *words, "--limit", 2)
    assert made[3:] == ["fp32", "2-bit"]


def test_the_table_shows_what_the_readme_promises() -> None:
    chosen = quality.settings(list(quality.CODES), [*quality.UNIFORM, *quality.MIXED])
    names = {(setting.name, setting.plan.quantizer) for setting in chosen}
    for preset in ("4-bit", "3-bit", "2-bit", *quality.MIXED):
        assert {(preset, "greedy"), (preset, "alternating")} <= names
    row = {
        "setting": "3-bit",
        "codes": "greedy",
        "bits_per_weight": 3.154,
        "size_bytes": 20_800_000,
        "value": 30.0,
        "chrf": 60.0,
        "difference": -1.25,
        "interval": [-2.0, -0.5],
        "p_value": 0.0005,
        "chrf_difference": -0.5,
        "n": 300,
        "signature": "s",
    }
    lines = quality.markdown([row], 4).splitlines()
    shown = "| 3-bit | greedy | 3.15 | 20.8 | 30.00 | -1.25 (-2.00 to -0.50) | < 0.001 | 60.0 | -0.5 |"
    assert lines[2] == shown
    assert lines[-1] == "Beam 4, 300 sentences; `s`"


def test_a_changed_checkpoint_is_another_row() -> None:
    row = {"setting": "retrained", "codes": "as stored", "sha256": "a"}
    kept = quality.Setting(name="retrained", codes="as stored", sha256="a")
    changed = quality.Setting(name="retrained", codes="as stored", sha256="b")
    assert quality._same(row, kept)
    assert not quality._same(row, changed)


def test_a_changed_plan_is_measured_again(tmp_path: Path) -> None:
    """A row belongs to a plan, not to its name."""
    baseline = tmp_path / "fp32.txt"
    baseline.write_text("x\n")
    search = SearchOptions(beam=1)
    work = quality.Workload(
        model=tmp_path, data=tmp_path, work=tmp_path, baseline=baseline, search=search, limit=None
    )
    quality.Table(tmp_path / "t.json", work).add({"setting": "a", "codes": "greedy", "sha256": "1"})
    again = quality.Table(tmp_path / "t.json", work)
    assert again.get(quality.Setting(name="a", codes="greedy", sha256="1")) is not None
    assert again.get(quality.Setting(name="a", codes="greedy", sha256="2")) is None
