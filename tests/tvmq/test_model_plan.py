# SPDX-License-Identifier: Apache-2.0
"""Plans of the embedded model through the API and the dry run of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay_passes.bit_plan import encode_plan
from tvmq import api
from tvmq.errors import InputError, UsageError
from tvmq.options import PlanOptions

MODEL = Path(__file__).resolve().parents[2] / "models" / "nmt-en-de"
Run = Callable[..., Any]


def test_default_plan_covers_the_model() -> None:
    report = api.describe_plan(MODEL)
    assert report.size.weights == 52_232_192
    assert report.fp32_bytes == 4 * (52_232_192 + 114_304)
    assert report.size.bytes == sum(block.bytes for block in report.size.blocks) + 4 * 114_304
    assert set(report.widths) == {"Emb", "Enc_ee", "Enc_ffn", "Dec_dd", "Dec_ed", "Dec_ffn"}


def test_a_plan_file_comes_back_as_it_is(tmp_path: Path) -> None:
    wanted = api.describe_plan(MODEL, PlanOptions(preset="chung2020-2.5-1.8-3.7"))
    path = tmp_path / "plan.json"
    path.write_bytes(encode_plan(wanted.plan))
    again = api.describe_plan(MODEL, PlanOptions(plan=path))
    assert again == wanted
    assert again.widths["Emb"] == "4, 3, 2, 1 by word"
    with pytest.raises(UsageError, match="edit the file instead"):
        api.describe_plan(MODEL, PlanOptions(plan=path, overrides=(("Emb", 2),)))


def test_a_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b'{"schema": 1, "source": "", "words": [], "blocks": []}')
    message = r"plan\.json: the plan does not fit the model: it does not name model"
    with pytest.raises(InputError, match=message):
        api.describe_plan(MODEL, PlanOptions(plan=path))


def test_frequencies_come_from_the_users_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Click any of the eight buttons.\n", encoding="utf-8")
    preset = "chung2020-1.3-fp-fp"
    assert api.describe_plan(MODEL, PlanOptions(preset=preset, text=text)).plan.words[0].rows == 16_000
    with pytest.raises(UsageError, match="--text and --frequencies exclude each other"):
        api.describe_plan(MODEL, PlanOptions(text=text, frequencies=MODEL / "token_freq.tsv"))


def test_dry_run_prints_the_plan_and_writes_nothing(tvmq: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.tvmq"
    words = ("compile", MODEL, "-o", output, "--dry-run", "--bits", "2.6", "--set", "*.fc2.weight=4")
    value = json.loads(tvmq(*words, "--json").out)
    assert value["bits_per_weight"] <= 2.6
    assert value["ratio"] == pytest.approx(value["fp32_bytes"] / value["size_bytes"], abs=1e-3)
    assert value["blocks"][0]["name"] == "Emb"
    assert "4" in {block["name"]: block["widths"] for block in value["blocks"]}["Dec_ffn"]
    outcome = tvmq(*words)
    assert outcome.code == 0
    assert "predicted size" in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--preset", "nix"], 2, "unknown preset 'nix'"),
        (["--set", "Decc=3"], 2, "close are Dec_"),
        (["--set", "Emb=9"], 2, "9 bits is impossible"),
        (["--group-size", "48"], 2, "does not divide 512 columns"),
        (["--quantizer", "magic"], 2, "unknown quantizer 'magic'"),
        (["--plan", "none.json"], 3, "none.json"),
        (["--frequencies", "none.tsv"], 3, "none.tsv"),
        (["--text", "none.txt"], 3, "none.txt"),
    ],
)
def test_bad_plans_are_one_line(tvmq: Run, words: list[str], code: int, message: str) -> None:
    outcome = tvmq("compile", MODEL, "--dry-run", *words)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
