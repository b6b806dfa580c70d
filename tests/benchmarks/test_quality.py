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
from benchmarks import quality, quality_settings, quality_table
from relay_passes.bit_plan import decode_plan, encode_plan
from tvmq.options import PlanOptions, SearchOptions

DATA = "w1 w2 w3\tw4 w5 w6 w7\nw7 w8\tw9 w10\nw11 w12 w13\tw1\n"


def run(model: Path, folder: Path, *words: object, code: int = 0) -> str:
    app = typer.Typer()
    app.command()(quality.main)
    data = folder / "data.tsv"
    data.write_text(DATA, encoding="utf-8")
    given = ["--model", model, "--data", data, "--work", folder / "work", "--threads", 1, *words]
    outcome = CliRunner().invoke(app, [str(word) for word in given], catch_exceptions=False)
    assert outcome.exit_code == code, outcome.output
    return outcome.stdout if code == 0 else " ".join(outcome.output.replace("│", " ").split())


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
    chosen = quality_settings.settings(list(quality_settings.FREE), [*quality.UNIFORM, *quality.MIXED])
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
    lines = quality_table.markdown([row], 4).splitlines()
    shown = "| 3-bit | greedy | 3.15 | 20.8 | 30.00 | -1.25 (-2.00 to -0.50) | < 0.001 | 60.0 | -0.5 |"
    assert lines[2] == shown
    assert lines[-1] == "Beam 4, 300 sentences; `s`"


def test_a_changed_checkpoint_is_another_row() -> None:
    row = {"setting": "retrained", "codes": "as stored", "sha256": "a"}
    kept = quality_settings.Setting(name="retrained", codes="as stored", sha256="a")
    changed = quality_settings.Setting(name="retrained", codes="as stored", sha256="b")
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
    first, second = (quality_settings.Setting(name="a", codes="greedy", sha256=name) for name in "12")
    assert again.get(first) is None, "its translations are missing"
    for setting in (first, second):
        work.lines(setting).parent.mkdir(exist_ok=True)
        work.lines(setting).write_text("x\n")
    assert again.get(first) is not None
    assert again.get(second) is None


def plan_file(model: Path, path: Path, **options: Any) -> Path:
    plan = tvmq.plan(model, PlanOptions(**options))
    path.write_bytes(encode_plan(plan))
    return path


def test_plans_with_other_quantizers(tiny_model: Path, tmp_path: Path) -> None:
    """Bits, scales and outliers stay; FP32 matrices have no codes to change."""
    overrides = (("Dec_ffn", 32),)
    file = plan_file(tiny_model, tmp_path / "mix.json", preset="2-bit", outliers=0.5, overrides=overrides)
    before = decode_plan(file.read_bytes())
    (same,) = quality_settings.plans([file], [], None, tmp_path)
    assert (same.name, same.codes, same.kind) == ("mix", "alternating, 0.5 % outliers", "plan")
    calibration = tmp_path / "c.safetensors"
    calibration.write_bytes(b"x")
    hessian, greedy = quality_settings.plans([file], ["hessian", "greedy"], calibration, tmp_path)
    assert (hessian.codes, greedy.codes) == ("hessian, 0.5 % outliers", "greedy, 0.5 % outliers")
    assert (hessian.calibration, greedy.calibration) == (calibration, None)
    assert len({same.sha256, hessian.sha256, greedy.sha256}) == 3
    assert hessian.plan.plan is not None
    after = decode_plan(hessian.plan.plan.read_bytes())
    for old, new in zip(before.blocks, after.blocks, strict=True):
        assert new.quantizer == ("alternating" if new.bits == 32 else "hessian")
        assert (new.bits, new.group_size, new.outliers) == (old.bits, old.group_size, old.outliers)
    with pytest.raises(ValueError, match=r"mix\.json: hessian codes need --calibration"):
        quality_settings.plans([file], ["hessian"], None, tmp_path)


def test_bad_plans_and_codes_are_one_line(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    assert "not a bit plan" in run(tiny_model, tmp_path, "--plan", tmp_path / "bad.json", code=2)
    assert "cannot be read" in run(tiny_model, tmp_path, "--plan", tmp_path / "none.json", code=2)
    assert "need --calibration" in run(tiny_model, tmp_path, "--codes", "hessian", code=2)
    plan = plan_file(tiny_model, tmp_path / "plan.json", preset="2-bit")
    wrong = run(tiny_model, tmp_path, "--plan", plan, "--quantizer", "hesian", code=2)
    assert "unknown quantizer 'hesian'" in wrong


def sized(*rows: tuple[str, str, int]) -> tuple[list[dict[str, Any]], list[Any]]:
    kinds = {"fp32": "fp32", "p": "preset", "q": "plan", "c": "checkpoint"}
    values = [{"setting": name, "codes": codes, "size_bytes": size} for name, codes, size in rows]
    return values, [kinds[name if name in kinds else name[0]] for name, _, _ in rows]


def test_presets_meet_the_largest_plans_that_are_not_larger() -> None:
    rows, kinds = sized(
        ("fp32", "", 9_000_000),
        ("p", "greedy", 1_000_000),
        ("q1", "hessian", 900_000),
        ("q2", "hessian", 1_001_000),
        ("q3", "hessian", 1_010_000),
        ("q1", "alternating", 900_000),
        ("c", "as stored", 800_000),
        ("p2", "greedy", 800_000),
    )
    assert list(quality_table.opponents(rows, kinds)) == [(1, 3), (1, 5)]


def test_pairs_are_tested_on_the_translations(
    tiny_model: Path, compiled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_compiled(_: Path, artifact: Path, options: Any) -> None:
        shutil.copytree(compiled(options.plan.preset or "3-bit"), artifact)

    monkeypatch.setattr(tvmq, "compile", copy_compiled, raising=False)
    plan = plan_file(tiny_model, tmp_path / "mine.json", preset="3-bit")
    words = ["--preset", "4-bit", "--codes", "greedy", "--plan", plan]
    shown = run(tiny_model, tmp_path, *words)
    pair = shown.rstrip().splitlines()[-1]
    assert pair.startswith("| 4-bit, greedy, a scale per row | ")
    assert " | mine, alternating | " in pair
    assert run(tiny_model, tmp_path, *words) == shown
