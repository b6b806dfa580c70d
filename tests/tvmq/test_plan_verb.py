# SPDX-License-Identifier: Apache-2.0
"""``tvmq plan``: measuring once, planning many times, budgets kept, bad input in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay_passes.bit_plan import BitPlan, decode_plan
from tvmq.block_scores import BlockScores
from tvmq.errors import InputError
from tvmq.families.family import TensorInfo
from tvmq.sensitivity_table import Coding, Sensitivities
from tvmq.timing import Timing, read_times, timing_of

Verb = Callable[..., Any]
PAIRS = "ein kleiner Test\ta small test\nnoch ein Satz\tone more sentence\ndas war es\tthat was it\n"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text(PAIRS)
    return path


@pytest.fixture(scope="module")
def measured(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sensitivities of the tiny model, measured once by the command line itself."""
    from tvmq.cli import main

    path = tmp_path_factory.mktemp("measured") / "sensitivities.json"
    words = ["plan", tiny_model, "--text", pairs, "--save-sensitivities", path, "--jobs", 1, "-q"]
    assert main([str(word) for word in words]) == 0
    return path


def read_plan(path: Path) -> BitPlan:
    return decode_plan(path.read_bytes())


@pytest.mark.parametrize("bits", [1.6, 2.3, 3.2])
@pytest.mark.parametrize("words", ["optimum", "algorithm1"])
def test_a_plan_within_its_bits(
    tvmq: Verb, tiny_model: Path, measured: Path, tmp_path: Path, bits: float, words: str
) -> None:
    out = tmp_path / "plan.json"
    arguments = ("--sensitivities", measured, "--bits", bits, "--words", words, "-o", out, "--json")
    done = tvmq("plan", tiny_model, *arguments)
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert bits - 0.1 < value["bits_per_weight"] <= bits
    assert 0 <= value["gap"] < 0.2
    assert value["bound"] <= value["damage"]
    assert value["damage"] == pytest.approx(sum(block["damage"] for block in value["blocks"]))
    damages = [point["damage"] for point in value["pareto"]]
    assert len(damages) > 3
    assert damages == sorted(damages, reverse=True)
    dry = tvmq("compile", tiny_model, "--plan", out, "--dry-run", "--json")
    assert json.loads(dry.out)["bits_per_weight"] == value["bits_per_weight"]


def test_more_bits_less_damage_and_the_optimum_is_no_worse(
    tvmq: Verb, tiny_model: Path, measured: Path
) -> None:
    damage: dict[tuple[str, float], float] = {}
    for words in ("optimum", "algorithm1"):
        for bits in (1.5, 2.0, 3.0):
            done = tvmq(
                "plan", tiny_model, "--sensitivities", measured, "--bits", bits, "--words", words, "--json"
            )
            damage[words, bits] = json.loads(done.out)["damage"]
    assert damage["optimum", 1.5] > damage["optimum", 2.0] > damage["optimum", 3.0]
    for bits in (1.5, 2.0, 3.0):
        assert damage["optimum", bits] <= damage["algorithm1", bits] * 1.01


def test_size_time_and_fixed_bits(tvmq: Verb, tiny_model: Path, measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    known = ("plan", tiny_model, "--sensitivities", measured, "-o", out, "--force", "--json")
    small = json.loads(tvmq(*known, "--size-mb", 0.075).out)
    assert 0.07e6 < small["size_bytes"] <= 0.075e6
    overrides = ("--set", "Dec_ffn=4", "--set", "*decoder*0.fc2*=32")
    fixed = json.loads(tvmq(*known, "--size-mb", 0.09, *overrides).out)
    plan = read_plan(out)
    widths = {entry.tensor: entry.bits for entry in plan.blocks if entry.block == "Dec_ffn"}
    assert widths.pop("model.decoder.layers.0.fc2.weight") == 32
    assert set(widths.values()) == {4}
    assert fixed["damage"] > small["damage"]
    assert fixed["size_bytes"] <= 0.09e6
    limit = small["ms_per_token"] * 0.8
    fast = json.loads(tvmq(*known, "--ms", limit).out)
    assert fast["ms_per_token"] <= limit
    both = json.loads(tvmq(*known, "--ms", limit, "--size-mb", 0.075).out)
    assert both["size_bytes"] <= 0.075e6
    assert both["damage"] >= max(small["damage"], fast["damage"]) * (1 - 1e-9)


def test_two_rounds_and_a_calibration(tvmq: Verb, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """Text in; calibration, sensitivities around a first plan and the plan out."""
    calibration, table, out = (tmp_path / name for name in ("c.safetensors", "s.json", "plan.json"))
    kept = ("--save-calibration", calibration, "--save-sensitivities", table, "-o", out)
    done = tvmq(
        "plan", tiny_model, "--calibration", pairs, *kept, "--bits", 2.4, "--rounds", 2, "--jobs", 1,
        "--max-bits", 3,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "KL per token" in done.out
    found = Sensitivities.read(table)
    assert found.coding.quantizer == "hessian"
    assert found.around
    plan = read_plan(out)
    assert {entry.quantizer for entry in plan.entries()} == {"hessian"}
    again = tmp_path / "again.json"
    done = tvmq("plan", tiny_model, "--sensitivities", table, "--bits", 2.4, "-o", again)
    assert done.code == 0, done.err
    assert again.read_bytes() == out.read_bytes()


def test_codes_may_differ_from_the_measured_ones(
    tvmq: Verb, tiny_model: Path, measured: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    known = ("plan", tiny_model, "--sensitivities", measured, "--bits", 3.6, "-o", out, "--force", "--json")
    assert tvmq(*known).code == 0
    assert {entry.quantizer for entry in read_plan(out).entries()} == {"alternating"}
    changed = ("--quantizer", "hessian", "--outliers", 1, "--scale-dtype", "pow2", "--group-size", 8)
    done = tvmq(*known, *changed)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    plan = read_plan(out)
    coded = [entry for entry in plan.entries() if getattr(entry, "bits", 1) != 32]
    stored = {(e.quantizer, e.outliers, e.scale_dtype, e.group_size) for e in coded}
    assert stored == {("hessian", 1.0, "pow2", 8)}
    assert "alternating sensitivities on" in plan.source
    assert "for hessian codes" in plan.source
    assert 3.3 < facts["bits_per_weight"] <= 3.6


def test_bleu_by_block(tvmq: Verb, tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    kept = ("--bleu", pairs, "--save-bleu", tmp_path / "bleu.json", "--sentences", 2, "--max-bits", 2)
    done = tvmq("plan", tiny_model, *kept, "--jobs", 1, "--json")
    assert done.code == 0, done.err
    value = json.loads(done.out)["bleu"]
    assert value["sentences"] == 2
    assert list(value["blocks"])[:3] == ["Emb", "Enc", "Enc_ee"]
    assert set(value["blocks"]["Dec_ed"]) == {"1", "2"}
    found = BlockScores.read(tmp_path / "bleu.json")
    assert found.to_json() == value
    shown = tvmq("plan", tiny_model, *kept, "--jobs", 1)
    assert "BLEU with one block quantized, by bits" in shown.out
    assert "Dec_ffn" in shown.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--text", "PAIRS"), 2, "give --bits, --size-mb or --ms"),
        (("--bits", "2", "--size-mb", "1"), 2, "exclude each other"),
        (("--bits", "2"), 2, "give --text PAIRS.tsv"),
        (("--bits", "-1", "--sensitivities", "TABLE"), 2, "expected a number above 0"),
        (("--bits", "0.5", "--sensitivities", "TABLE"), 2, "smallest plan takes"),
        (("--ms", "1e-9", "--sensitivities", "TABLE"), 2, "fastest plan takes"),
        (("--bits", "2", "--sensitivities", "TABLE", "--text", "PAIRS"), 2, "leave out --text"),
        (("--bits", "2", "--sensitivities", "TABLE", "--quantizer", "rnt"), 2, "unknown quantizer 'rnt'"),
        (("--bits", "2", "--sensitivities", "TABLE", "--outliers", "7"), 2, "7 percent of outliers"),
        (("--bits", "2", "--sensitivities", "PAIRS"), 3, "not a table of sensitivities"),
        (("--bits", "2", "--sensitivities", "missing.json"), 3, "missing.json"),
        (("--bits", "2", "--sensitivities", "TABLE", "--set", "Dec_fnn=2"), 2, "close are Dec_ffn"),
        (("--bits", "2", "--sensitivities", "TABLE", "--times", "PAIRS"), 3, "pairs.tsv"),
        (("--bits", "2", "--text", "PAIRS", "--quantizer", "hessian"), 2, "needs a calibration"),
        (("--save-calibration", "c.safetensors"), 2, "needs the text to calibrate on"),
        (("--bits", "2", "--save-bleu", "b.json"), 2, "needs the lines to translate"),
        (("--bleu", "missing.tsv"), 3, "missing.tsv: no such file"),
        (("--save-sensitivities", "s.json", "--rounds", "2"), 2, "a second round"),
        (("--bits", "2", "--sensitivities", "TABLE", "-o", "TABLE"), 2, "add --force"),
    ],
)
def test_bad_input(
    tvmq: Verb, tiny_model: Path, pairs: Path, measured: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    names = {"PAIRS": str(pairs), "TABLE": str(measured)}
    done = tvmq("plan", tiny_model, *(names.get(word, word) for word in words))
    assert (done.code, done.err.count("\n")) == (code, 1), done.err
    assert message in done.err


def test_default_times_go_by_bytes_and_reads() -> None:
    timing = Timing(bandwidth=1e9, sentence_tokens=20)
    encoder, decoder = (
        TensorInfo(name="t", block=block, shape=(64, 64), is_embedding=False)
        for block in ("Enc_ffn", "Dec_ffn")
    )
    assert timing.ms(decoder, ((64, 2),), 1000) == pytest.approx(1e-3)
    assert timing.ms(encoder, ((64, 2),), 1000) == pytest.approx(1e-3 / 20)


def test_measured_times(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text('{"Dec_ffn": {"1": 1.0, "3": 2.0}}')
    info = TensorInfo(name="t", block="Dec_ffn", shape=(64, 64), is_embedding=False)
    timing = timing_of([info], 20, Coding(), path)
    for clusters, ms in ((((64, 1),), 1.0), (((64, 2),), 1.5), (((32, 3), (32, 1)), 1.5), (((64, 4),), 2.0)):
        assert timing.ms(info, clusters, 1) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Attn": {"1": 1}}', 'no block "Attn", only Dec_ffn'),
        ('{"Dec_ffn": {}}', "expected milliseconds by bits"),
        ('{"Dec_ffn": {"one": 1}}', "expected milliseconds by bits"),
        ('{"Dec_ffn": {"1": -1}}', "expected milliseconds by bits"),
        ('{"Dec_ffn": 3}', "expected milliseconds by bits"),
    ],
)
def test_bad_times(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_times(path, [TensorInfo(name="t", block="Dec_ffn", shape=(1, 1), is_embedding=False)])
    assert "times.json" in str(caught.value)
