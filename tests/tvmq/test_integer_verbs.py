# SPDX-License-Identifier: Apache-2.0
"""Mode block-int on the command line: predicted sizes, artifacts, inspect, verify, report, embed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relay_passes.bit_plan import decode_plan, encode_plan
from targets import detect_host
from tvmq import api
from tvmq.encoder import load
from tvmq.options import CompileOptions, PlanOptions

SIZES: dict[str, dict[str, int]] = {
    "BertForSequenceClassification": {
        "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128
    },
    "RobertaForTokenClassification": {
        "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256
    },
    "DistilBertModel": {"dim": 96, "n_heads": 3, "hidden_dim": 144},
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "8 bits": ("BertForSequenceClassification", {}),
    "groups": ("RobertaForTokenClassification", {"preset": "4-bit", "group_size": 64}),
    "by word": ("DistilBertModel", {"bits": 2.4}),
    "FP32 head": ("BertForSequenceClassification", {"preset": "2-bit", "overrides": (("Head", 32),)}),
}
Run = Callable[..., Any]


def frequencies() -> str:
    """A token_freq.tsv of 128 words."""
    lines = [f"{i}\tw{i}\t{(i * 7919) % 1000}\t0" for i in range(128)]
    return "\n".join(["id\tpiece\tcount_src\tcount_tgt", *lines]) + "\n"


class Made:
    """A compiled case and what was predicted of it."""

    def __init__(self, name: str, encoder_model: Callable[..., Path], folder: Path) -> None:
        architecture, options = CASES[name]
        self.name, self.model = name, encoder_model(architecture, **SIZES[architecture])
        if "bits" in options:
            counts = folder / "token_freq.tsv"
            counts.write_text(frequencies())
            options = options | {"frequencies": counts}
        self.options = PlanOptions(mode="block-int", **options)
        self.predicted = api.describe_plan(self.model, self.options)
        self.path = folder / "x.tvmq"
        given = CompileOptions(plan=self.options, isa_levels=(detect_host()[0],), dump_ir=folder / "ir")
        api.compile(self.model, self.path, given)


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, encoder_model: Callable[..., Path], tmp_path_factory: Any) -> Made:
    return Made(request.param, encoder_model, tmp_path_factory.mktemp("verbs"))


def test_predicted_sizes_are_those_that_are_stored(made: Made) -> None:
    """All to the byte but the biases of a float head, which are halves where that is exact."""
    report, facts = made.predicted, api.inspect(made.path)
    assert report.size.bytes == pytest.approx(facts["size_bytes"], rel=0.005)
    assert report.size.bits_per_weight == pytest.approx(facts["bits_per_weight"], abs=1e-4)
    assert report.fp32_bytes == facts["fp32_bytes"]
    assert report.ratio == pytest.approx(facts["ratio"], rel=0.005)
    predicted = {b.name: (round(b.bits_per_weight, 4), b.weights) for b in report.size.blocks}
    assert predicted == {b["name"]: (b["bits"], b["params"]) for b in facts["blocks"]}
    runs = [{"rows": rows, "bits": bits} for words in report.plan.words for rows, bits in words.clusters]
    assert facts["word_bits"] == runs
    assert bool(runs) == (made.name == "by word")


def test_inspect_names_the_mode(tvmq: Run, made: Made) -> None:
    assert json.loads(tvmq("inspect", made.path, "--json").out)["mode"] == "block-int"
    rows = [line.split() for line in tvmq("inspect", made.path).out.splitlines()]
    assert ["mode", "block-int"] in rows
    assert decode_plan((made.path / "plan.json").read_bytes()) == made.predicted.plan


def test_verify_and_run(tvmq: Run, made: Made, tmp_path: Path) -> None:
    """The self-test runs at every load; texts give finite rows that differ."""
    outcome = tvmq("verify", made.path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("ok: ")
    with load(made.path) as encoder:
        rows = encoder.embed(["hello world", "a", "one two three"])
        assert np.isfinite(rows).all()
        assert len({row.tobytes() for row in rows}) == 3
        verb = encoder.head or "embed"
    text = tmp_path / "in.txt"
    text.write_text("hello world\none two three\n")
    found = tvmq(verb, made.path, "-i", text)
    assert (found.code, found.err) == (0, "")
    assert len(found.out.splitlines()) >= 2


def test_the_ir_of_every_phase(made: Made) -> None:
    names = {path.name for path in (made.path.parent / "ir").iterdir()}
    level = detect_host()[0]
    assert names == {
        "0-imported.py", "1-annotated.py", "1-exponents.py", f"2-lowered-{level}.py", f"3-fused-{level}.py"
    }  # fmt: skip


def test_report(tvmq: Run, made: Made, tmp_path: Path) -> None:
    """Of the artifact, and of the plan; both show the same sizes."""
    plan = tmp_path / "plan.json"
    plan.write_bytes(encode_plan(made.predicted.plan))
    of_artifact = tvmq("report", made.path, "-o", tmp_path / "a.html", "--json")
    of_plan = tvmq("report", made.model, "--plan", plan, "-o", tmp_path / "b.html", "--json")
    for outcome in (of_artifact, of_plan):
        assert (outcome.code, outcome.err) == (0, "")


def test_dry_run(tvmq: Run, made: Made) -> None:
    _, options = CASES[made.name]
    if set(options) - {"preset", "group_size"}:
        pytest.skip("the same code with other options")
    words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    outcome = tvmq("compile", made.model, "--mode", "block-int", *words, "--dry-run", "--json")
    value = json.loads(outcome.out)
    assert (value["mode"], value["source"]) == ("block-int", made.predicted.plan.source)
    assert value["size_bytes"] == made.predicted.size.bytes
    human = tvmq("compile", made.model, "--mode", "block-int", *words, "--dry-run").out
    assert ["mode", "block-int"] in [line.split() for line in human.splitlines()]


def test_float_artifacts_are_written_as_before_there_were_modes(compiled_encoder: Any) -> None:
    path = compiled_encoder("BertModel", "3-bit")
    assert '"mode"' not in (path / "manifest.json").read_text()
    assert api.inspect(path)["mode"] == "float"
    assert b'"mode"' not in (path / "plan.json").read_bytes()
