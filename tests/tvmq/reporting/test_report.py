# SPDX-License-Identifier: Apache-2.0
"""``tvmq report``: a whole page whose numbers are those of ``inspect`` and ``plan``; no name is believed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from relay_passes.bit_plan import encode_plan
from tvmq import api
from tvmq.block_scores import BlockScore, BlockScores
from tvmq.checkpoint import Checkpoint
from tvmq.families import TensorInfo, get_family
from tvmq.options import PlanOptions, QuantizeOptions, ReportOptions
from tvmq.reporting import writer
from tvmq.reporting.subject import cluster_shares, read_subject
from tvmq.sensitivity import units_of
from tvmq.sensitivity_table import Coding, Sensitivities, UnitSensitivity
from tvmq.size import planes_bytes

Verb = Callable[..., Any]
WIDTHS = (1, 2, 3, 4)
SECTIONS = ["size", "map", "words", "bytes"]
HOSTILE = "</svg><script>alert('1')</script>--> ]]> & \" $\\frac{ \x00\x1b[31m\u202e.7.weight"


class Page(HTMLParser):
    """A page as a reader of HTML sees it; asserts that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sections: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, dict(attrs))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, dict(attrs))

    def note(self, tag: str, values: dict[str, str | None]) -> None:
        self.tags.append(tag)
        assert not [name for name in values if name.startswith("on")]
        self.links += [v or "" for k, v in values.items() if k in {"src", "href", "xlink:href", "data"}]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "section":
            self.rows[self.ids[-1]] = []
            self.sections[self.ids[-1]] = ""
        if tag == "tr":
            self.rows[self.section].append([])
        if tag in {"td", "th"}:
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.sections:
            self.sections[self.section] += data
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[self.section][-1][-1] += data

    @property
    def section(self) -> str:
        return list(self.sections)[-1]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def tensors_of(model: Path) -> list[TensorInfo]:
    checkpoint = Checkpoint.open(model)
    family = get_family(checkpoint.config)
    return family.tensors(family.read_config(checkpoint.config))


@pytest.fixture(scope="module")
def sensitivities(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up measurement: a quarter of the loss is left by every bit, and no two units are alike."""
    tensors, generator = {info.name: info for info in tensors_of(tiny_model)}, np.random.default_rng(5)
    units = []
    for unit in units_of(tensors.values(), by_word=True):
        info, scale = tensors[unit.tensor], float(generator.uniform(0.01, 1))
        entries = [Coding().entry(info, bits) for bits in WIDTHS]
        units.append(
            UnitSensitivity(
                tensor=unit.tensor,
                block=unit.block,
                first=unit.first,
                rows=unit.rows,
                bits=WIDTHS,
                kl=tuple(scale * 0.25**bits for bits in WIDTHS),
                error=tuple(0.25**bits for bits in WIDTHS),
                bytes=tuple(
                    planes_bytes(entry, unit.rows, info.shape[1], bits)
                    for entry, bits in zip(entries, WIDTHS, strict=True)
                ),
            )
        )
    table = Sensitivities(
        schema=1,
        model_sha256=Checkpoint.open(tiny_model).sha256,
        samples_sha256="0" * 64,
        sentences=9,
        tokens=90,
        around="",
        coding=Coding(),
        units=tuple(units),
    )
    path = tmp_path_factory.mktemp("sensitivities") / "sensitivities.json"
    table.write(path)
    return path


@pytest.fixture(scope="module")
def plan(tiny_model: Path, sensitivities: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    options = PlanOptions(preset="chung2020-2.5-1.8-3.7", quantizer="alternating", scale_dtype="float16")
    path.write_bytes(encode_plan(api.plan(tiny_model, options)))
    return path


def scores(model_sha256: str) -> BlockScores:
    """Made-up BLEU of more blocks than there are colours."""
    rows = [
        BlockScore(block=f"Block_{i}", bits=(1, 3), bleu=(float(i), 33.25), low=(-9.5, -1), high=(-1, 0.5))
        for i in range(12)
    ]
    return BlockScores(
        schema=1,
        model_sha256=model_sha256,
        data_sha256="0" * 64,
        sentences=9,
        signature="nrefs:1",
        coding=Coding(),
        bleu=33.57,
        rows=tuple(rows),
    )


@pytest.fixture
def everything(tiny_model: Path, sensitivities: Path, plan: Path, tmp_path: Path) -> ReportOptions:
    """Every input that there is."""
    times = {"Emb": {"1": 0.2, "4": 0.5}, "Dec_ffn": {"1": 0.1, "2": 0.2, "4": 0.5}}
    (tmp_path / "times.json").write_text(json.dumps(times))
    rows = [
        {"setting": "fp32", "codes": "", "size_bytes": 400_000, "value": 33.57, "metric": "bleu"},
        {"name": "ours", "size_mb": 0.06, "bleu": 33.1, "value_interval": [32.0, 34.2]},
        {"name": "ours", "bits_per_weight": 2.5, "loss": 0.25},
    ]
    (tmp_path / "measured.json").write_text(json.dumps({"model": "m", "results": rows}))
    scores(Checkpoint.open(tiny_model).sha256).write(tmp_path / "bleu.json")
    return ReportOptions(
        plan=plan,
        sensitivities=sensitivities,
        times=tmp_path / "times.json",
        measured=tmp_path / "measured.json",
        bleu=tmp_path / "bleu.json",
        figures=tmp_path / "figures",
        force=True,
    )


def test_the_whole_page(tiny_model: Path, everything: ReportOptions, tmp_path: Path) -> None:
    written = api.report(tiny_model, tmp_path / "report.html", everything)
    page = read(written.output)
    assert list(page.sections) == [*SECTIONS, "sensitivity", "pareto", "bleu", "measured", "matrices"]
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == page.tags.count("figure") == 8
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert "url(http" not in written.output.read_text()
    names = [row[0] for row in page.rows["matrices"][1:]]
    assert names == [info.name for info in tensors_of(tiny_model)]
    for block in ("Emb", "Enc_ee", "Enc_ffn", "Dec_dd", "Dec_ed", "Dec_ffn"):
        assert block in page.sections["map"]
        assert block in [row[0] for row in page.rows["sensitivity"]]
    assert {"this plan", "1 bit", "4 bits", "chung2020-2.5-1.8-3.7"} <= {r[0] for r in page.rows["pareto"]}
    assert [row[:2] for row in page.rows["measured"][1:3]] == [["fp32", "0.40"], ["ours", "0.06"]]
    assert [page.rows["measured"][3][i] for i in (0, 2, 3)] == ["ours", "KL", "0.25000"]
    assert len(written.figures) == 16
    assert page.rows["bleu"][0] == ["block", "3 bits", "1 bit"]
    assert page.rows["bleu"][12] == ["Block_11", "33.2 (-1.0 to +0.5)", "11.0 (-9.5 to -1.0)"]


def test_scores_of_another_model(tvmq: Verb, tiny_model: Path, plan: Path, tmp_path: Path) -> None:
    table = tmp_path / "bleu.json"
    scores("1" * 64).write(table)
    done = tvmq("report", tiny_model, "--plan", plan, "-o", tmp_path / "r.html", "--bleu", table)
    assert done.code == 3
    assert "measured on another model" in done.err
    assert not (tmp_path / "r.html").exists()


def test_the_same_inputs_give_the_same_bytes(
    tiny_model: Path, everything: ReportOptions, tmp_path: Path
) -> None:
    def files(name: str) -> dict[str, bytes]:
        folder = tmp_path / name
        folder.mkdir()
        options = replace(everything, figures=folder / "figures", times=None)
        api.report(tiny_model, folder / "report.html", options)
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    first, second = files("first"), files("second")
    assert first == second
    for name, data in first.items():
        if name.endswith(".svg"):
            assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
        if name.endswith(".png"):
            assert data.startswith(b"\x89PNG")


@pytest.mark.parametrize("preset", ["chung2020-2.5-1.8-3.7", "fp32"])
def test_an_artifacts_numbers_are_inspects(
    tvmq: Verb, compiled: Callable[..., Path], tmp_path: Path, preset: str
) -> None:
    artifact, out = compiled(preset), tmp_path / "report.html"
    done = tvmq("report", artifact, "-o", out, "--json")
    assert done.code == 0, done.err
    shown = api.inspect(artifact)
    found = json.loads(done.out)
    for key in ("size_bytes", "bits_per_weight", "ratio"):
        assert found[key] == shown[key]
    page = read(out)
    assert f"({shown['size_bytes']:,} bytes)" in page.sections["size"]
    assert f"({shown['fp32_bytes']:,} bytes)" in page.sections["size"]
    assert f"{shown['ratio']:.2f} times smaller" in page.sections["size"]
    table = {row[0]: row for row in page.rows["bytes"][1:]}
    for block in shown["blocks"]:
        assert table[block["name"]][1:3] == [f"{block['bits']:.2f}", f"{block['params']:,}"]
        stored = int(table[block["name"]][-1].replace(",", ""))
        assert stored == pytest.approx(block["bits"] * block["params"] / 8, abs=block["params"] * 1e-5)
    assert sum(int(row[-1].replace(",", "")) for row in table.values()) == shown["size_bytes"]
    words = page.rows["words"][1:]
    if preset == "fp32":
        assert [row[2] for row in words] == ["FP32"]
    else:
        assert [int(row[2]) for row in words] == [run["bits"] for run in shown["word_bits"]]


def test_a_folders_numbers_are_those_of_a_dry_run(
    tvmq: Verb, tiny_model: Path, plan: Path, tmp_path: Path
) -> None:
    wanted = json.loads(tvmq("compile", tiny_model, "--plan", plan, "--dry-run", "--json").out)
    found = json.loads(tvmq("report", tiny_model, "--plan", plan, "-o", tmp_path / "r.html", "--json").out)
    assert {key: found[key] for key in ("size_bytes", "bits_per_weight", "ratio")} == {
        key: wanted[key] for key in ("size_bytes", "bits_per_weight", "ratio")
    }
    page = read(tmp_path / "r.html")
    assert list(page.sections) == [*SECTIONS, "matrices"]
    total = sum(int(row[-1].replace(",", "")) for row in page.rows["bytes"][1:])
    assert total == wanted["size_bytes"]


@pytest.mark.parametrize("bits", [1.6, 2.6])
def test_the_expected_loss_is_what_plan_expected(
    tvmq: Verb, tiny_model: Path, sensitivities: Path, tmp_path: Path, bits: float
) -> None:
    out = tmp_path / "plan.json"
    shared = ("--sensitivities", sensitivities, "--json")
    planned = json.loads(tvmq("plan", tiny_model, "--bits", bits, "-o", out, *shared).out)
    words = ("report", tiny_model, "--plan", out, "-o", tmp_path / "r.html", *shared)
    assert json.loads(tvmq(*words).out)["damage"] == pytest.approx(planned["damage"])
    page = read(tmp_path / "r.html")
    losses = [float(row[-1]) for row in page.rows["matrices"][1:]]
    assert sum(losses) == pytest.approx(planned["damage"], abs=1e-5 * len(losses))
    by_block = {row[0]: float(row[-1]) for row in page.rows["bytes"][1:-1]}
    assert by_block == {b["name"]: pytest.approx(b["damage"], abs=1e-5) for b in planned["blocks"]}
    curve = [float(row[3]) for row in page.rows["pareto"][1:] if row[0] == "best for its size"]
    assert len(curve) > 3
    assert curve == sorted(curve, reverse=True)


def test_a_coded_checkpoint_brings_its_plan(
    tiny_model: Path, plan: Path, sensitivities: Path, tmp_path: Path
) -> None:
    coded = tmp_path / "coded"
    api.quantize(tiny_model, coded, QuantizeOptions(plan=PlanOptions(plan=plan)))
    options = ReportOptions(sensitivities=sensitivities)
    found = api.report(coded, tmp_path / "coded.html", options)
    same = api.report(tiny_model, tmp_path / "model.html", replace(options, plan=plan))
    assert (found.bytes, found.loss) == (same.bytes, same.loss)
    assert "before retraining" in read(found.output).sections["sensitivity"]
    assert "before retraining" not in read(same.output).sections["sensitivity"]


def test_an_artifact_with_sensitivities_needs_the_counts_of_its_words(
    tvmq: Verb, tiny_model: Path, compiled: Callable[..., Path], sensitivities: Path, tmp_path: Path
) -> None:
    words = ("report", compiled("chung2020-2.5-1.8-3.7"), "--sensitivities", sensitivities)
    lacking = tvmq(*words, "-o", tmp_path / "r.html")
    assert lacking.code == 3
    assert "--frequencies" in lacking.err
    counts = tiny_model / "token_freq.tsv"
    done = tvmq(*words, "--frequencies", counts, "-o", tmp_path / "r.html")
    assert done.code == 0, done.err
    assert "greedy" not in read(tmp_path / "r.html").sections["sensitivity"]
    assert "another way" in read(tmp_path / "r.html").sections["sensitivity"]


def test_shares_of_the_text(tiny_model: Path, plan: Path, tmp_path: Path) -> None:
    subject = read_subject(tiny_model, plan)
    (table,) = [matrix for matrix in subject.matrices if matrix.info.is_embedding]
    assert subject.frequencies is not None
    shares = cluster_shares(table, subject.frequencies)
    falling, first = np.sort(subject.frequencies)[::-1], 0
    for share, (rows, _) in zip(shares, table.clusters, strict=True):
        assert share == pytest.approx(falling[first : first + rows].sum() / falling.sum())
        first += rows
    api.report(tiny_model, tmp_path / "r.html", ReportOptions(plan=plan))
    rows = read(tmp_path / "r.html").rows["words"][1:]
    assert [row[3] for row in rows] == [f"{share:.1%}" for share in shares]
    assert cluster_shares(table, subject.frequencies[:-1]) == []


def test_names_are_only_text(
    tiny_model: Path, everything: ReportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = read_subject(tiny_model, everything.plan)
    names = {matrix.info.name: f"{i}{HOSTILE}" for i, matrix in enumerate(subject.matrices)}
    blocks = {block: block + HOSTILE for block in subject.blocks}

    def renamed(info: TensorInfo) -> TensorInfo:
        return replace(info, name=names[info.name], block=blocks[info.block])

    def plan_entries(entries: Any) -> Any:
        return tuple(replace(e, tensor=names[e.tensor], block=blocks[e.block]) for e in entries)

    bits = subject.plan
    hostile = replace(
        subject,
        name=HOSTILE,
        matrices=tuple(replace(matrix, info=renamed(matrix.info)) for matrix in subject.matrices),
        blocks={blocks[name]: value for name, value in subject.blocks.items()},
        plan=replace(
            bits, source=HOSTILE, blocks=plan_entries(bits.blocks), words=plan_entries(bits.words)
        ),
        facts={"licence": HOSTILE},
    )
    monkeypatch.setattr(writer, "read_subject", lambda target, plan: hostile)
    assert everything.sensitivities is not None
    table = Sensitivities.read(everything.sensitivities)
    units = [replace(unit, tensor=names[unit.tensor], block=blocks[unit.block]) for unit in table.units]
    replace(table, units=tuple(units)).write(tmp_path / "hostile.json")
    row = {"name": HOSTILE, "size_mb": 1, "value": 3, "metric": HOSTILE}
    (tmp_path / "m.json").write_text(json.dumps([row]))
    options = replace(
        everything, sensitivities=tmp_path / "hostile.json", measured=tmp_path / "m.json", times=None
    )
    written = api.report(tiny_model, tmp_path / "report.html", options)
    page = read(written.output)
    assert "script" not in page.tags
    assert page.tags.count("svg") == 7
    assert len(page.rows["matrices"]) == 1 + len(subject.matrices)
    assert "<script>alert" in page.rows["matrices"][1][0]
    assert not set("\x00\x1b\u202e") & set(written.output.read_text())
    for path in written.figures:
        if path.suffix == ".svg":
            assert not [e for e in ElementTree.parse(path).iter() if e.tag.endswith("script")]


def test_without_matplotlib(
    tvmq: Verb, tiny_model: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else found(name, *rest)
    )
    done = tvmq("report", tiny_model, "--plan", plan, "-o", tmp_path / "r.html")
    assert (done.code, done.out) == (4, "")
    assert done.err.splitlines() == [
        "error: this needs matplotlib, which is not installed; run: pip install 'tvmq[plan]'"
    ]


@pytest.fixture
def bad(tmp_path: Path, sensitivities: Path) -> Iterator[Path]:
    """Files that are almost right."""
    other = replace(Sensitivities.read(sensitivities), model_sha256="1" * 64)
    other.write(tmp_path / "other.json")
    for name, text in {
        "empty.json": "",
        "list.json": "[1]",
        "nameless.json": '[{"size_mb": 1, "bleu": 3}]',
        "sizeless.json": '[{"name": "a", "bleu": 3}]',
        "valueless.json": '[{"name": "a", "size_mb": 3}]',
        "text.json": '[{"name": "a", "size_mb": "3", "bleu": 1}]',
        "interval.json": '[{"name": "a", "size_mb": 3, "bleu": 1, "value_interval": [1]}]',
        "exists.html": "mine",
    }.items():
        (tmp_path / name).write_text(text)
    yield tmp_path
    assert (tmp_path / "exists.html").read_text() == "mine"
    assert not (tmp_path / "r.html").exists()
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("MODEL -o r.html", 2, "--plan plan.json"),
        ("MODEL --plan empty.json -o r.html", 3, "not a bit plan"),
        ("ARTIFACT --plan PLAN -o r.html", 2, "has its own plan"),
        ("nothing -o r.html", 3, "expected a model folder"),
        ("MODEL --plan PLAN -o exists.html", 2, "--force"),
        ("MODEL --plan PLAN -o nowhere/r.html", 3, "does not exist"),
        ("MODEL --plan PLAN -o .", 2, "is a folder"),
        ("MODEL --plan PLAN -o r.html --svg exists.html", 2, "is a file"),
        ("MODEL --plan PLAN -o r.html --svg nowhere/deeper", 3, "does not exist"),
        ("MODEL --plan PLAN -o r.html --times empty.json", 2, "--sensitivities"),
        ("MODEL --plan PLAN -o r.html --sensitivities empty.json", 3, "not a table"),
        ("MODEL --plan PLAN -o r.html --sensitivities other.json", 3, "another model"),
        ("MODEL --plan PLAN -o r.html --sensitivities TABLE --times list.json", 3, "JSON object"),
        ("MODEL --plan PLAN -o r.html --calibration empty.json", 3, "empty.json"),
        ("MODEL --plan PLAN -o r.html --frequencies empty.json", 3, "first line"),
        ("MODEL --plan PLAN -o r.html --frequencies a --calibration b", 2, "give one of them"),
        ("MODEL --plan PLAN -o r.html --measured empty.json", 3, "not valid JSON"),
        ("MODEL --plan PLAN -o r.html --measured list.json", 3, "expected a list of rows"),
        ("MODEL --plan PLAN -o r.html --measured nameless.json", 3, "row 1 has no name"),
        ("MODEL --plan PLAN -o r.html --measured sizeless.json", 3, "size_mb"),
        ("MODEL --plan PLAN -o r.html --measured valueless.json", 3, "bleu"),
        ("MODEL --plan PLAN -o r.html --measured text.json", 3, "expected a number"),
        ("MODEL --plan PLAN -o r.html --measured interval.json", 3, "expected two numbers"),
    ],
)
def test_bad_input_is_one_line(
    tvmq: Verb,
    tiny_model: Path,
    compiled: Callable[..., Path],
    plan: Path,
    sensitivities: Path,
    bad: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(bad)
    given = {"MODEL": tiny_model, "PLAN": plan, "TABLE": sensitivities}
    if "ARTIFACT" in words:
        given["ARTIFACT"] = compiled("fp32")
    done = tvmq("report", *(given.get(word, word) for word in words.split()))
    assert (done.code, done.out) == (code, "")
    (line,) = done.err.splitlines()
    assert re.match("error: ", line)
    assert message in line


def test_a_changed_plan_in_an_artifact(
    tvmq: Verb, compiled: Callable[..., Path], tmp_path: Path
) -> None:
    artifact = Path(shutil.copytree(compiled("fp32"), tmp_path / "a.tvmq"))
    place = artifact / "plan.json"
    place.write_bytes(place.read_bytes().replace(b"preset fp32", b"preset fp33"))
    done = tvmq("report", artifact, "-o", tmp_path / "r.html")
    assert done.code == 5
    assert "changed since it was written" in done.err
