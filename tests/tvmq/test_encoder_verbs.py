# SPDX-License-Identifier: Apache-2.0
"""embed, classify, tag, eval, bench, inspect and compile of encoders as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmq.cli.encode import parse_text
from tvmq.encoder import load
from tvmq.errors import InputError

Run = Callable[..., Any]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def classifier(compiled_encoder: Make) -> Path:
    return compiled_encoder("BertForSequenceClassification")


@pytest.fixture(scope="module")
def bare(compiled_encoder: Make) -> Path:
    return compiled_encoder("BertModel")


@pytest.fixture
def text(tmp_path: Path) -> Callable[[str], Path]:
    """A file with this text."""

    def write(content: str) -> Path:
        path = tmp_path / "in.txt"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def one_error(outcome: Any) -> str:
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_embed_gives_a_json_line_for_every_line(tvmq: Run, bare: Path, text: Any) -> None:
    outcome = tvmq("embed", bare, "-i", text("hello\nworld aaaa\n"))
    assert (outcome.code, outcome.err) == (0, "")
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["line"] for line in lines] == [1, 2]
    rows = np.array([line["embedding"] for line in lines], np.float32)
    with load(bare) as encoder:
        assert rows.tobytes() == encoder.embed(["hello", "world aaaa"]).tobytes()


def test_embed_writes_an_array(tvmq: Run, bare: Path, text: Any, tmp_path: Path) -> None:
    lines = [f"word {'a' * (i + 1)}" for i in range(9)]
    path = tmp_path / "out.npy"
    words = ("embed", bare, "-i", text("\n".join(lines)), "-o", path, "--batch-size", "4")
    assert tvmq(*words).code == 0
    found = np.load(path)
    with load(bare) as encoder:
        assert found.tobytes() == encoder.embed(lines).tobytes()
    assert "exists already" in one_error(tvmq(*words))
    assert tvmq(*words, "--force").code == 0
    assert "--json writes text" in one_error(tvmq(*words, "--force", "--json"))
    outcome = tvmq("embed", bare, "-i", text(""), "-o", tmp_path / "none.npy")
    assert (outcome.code, one_error(outcome)) == (3, "no lines to embed; expected at least one text")
    assert not (tmp_path / "none.npy").exists()


def test_classify(tvmq: Run, classifier: Path, text: Any) -> None:
    path = text("hello\none two\tthree\n")
    outcome = tvmq("classify", classifier, "-i", path)
    with load(classifier) as encoder:
        expected = encoder.classify(["hello", ("one two", "three")])
    assert outcome.out == "".join(f"{best.label}\t{best.score:.4f}\n" for best in expected)
    lines = json.loads(tvmq("classify", classifier, "-i", path, "--json").out)["lines"]
    assert [line["label"] for line in lines] == [best.label for best in expected]
    assert lines[1]["text"] == "one two\tthree"
    assert lines[0]["scores"] == pytest.approx(expected[0].scores)


def test_tag(tvmq: Run, compiled_encoder: Make, text: Any) -> None:
    path = compiled_encoder("BertForTokenClassification")
    outcome = tvmq("tag", path, "-i", text("hello aaaa\n"))
    (line,) = [json.loads(line) for line in outcome.out.splitlines()]
    assert [tag["token"] for tag in line["tags"]] == ["h", "##e", "##l", "##l", "##o", "aaaa"]
    assert set(line["tags"][0]) == {"token", "start", "end", "label", "score"}
    assert json.loads(tvmq("tag", path, "-i", text("a\n"), "--json").out)["lines"][0]["tags"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good\n\nmore\n", "line 2: empty; every line must hold a text"),
        ("good\n \t \n", "line 2: empty"),
        ("good\na\tb\tc\n", "line 2: 2 tabs; expected one text, or two with a tab between them"),
        ("good\n" + "a " * 40, "line 2: text 1 has 42 tokens, the model takes at most 24"),
    ],
)
def test_bad_lines_are_named_and_others_done(
    tvmq: Run, classifier: Path, text: Any, content: str, message: str
) -> None:
    outcome = tvmq("classify", classifier, "-i", text(content))
    assert (outcome.code, outcome.out.count("\n")) == (3, 1)
    assert one_error(outcome).startswith(message)


def test_truncate(tvmq: Run, bare: Path, text: Any) -> None:
    path = text("a " * 40)
    assert tvmq("embed", bare, "-i", path).code == 3
    assert tvmq("embed", bare, "-i", path, "--truncate").code == 0


def test_wrong_verbs_are_one_line(tvmq: Run, bare: Path, classifier: Path, compiled: Make, text: Any) -> None:
    path, marian = text("a\n"), compiled("fp32")
    cases = [
        (("translate", bare, "-i", path), "holds an encoder, not a translation model; embed or classify"),
        (("classify", bare, "-i", path), "this model has no labels; embed with it"),
        (("tag", classifier, "-i", path), "this model labels texts; classify with it"),
        (("embed", marian, "-i", path), "holds a translation model, not an encoder; translate with it"),
        (("classify", marian, "-i", path), "holds a translation model, not an encoder"),
    ]
    for words, message in cases:
        outcome = tvmq(*words)
        assert (outcome.code, outcome.out) == (3, "")
        assert message in one_error(outcome)
    for words, message in (
        (("eval", bare, "--metric", "accuracy"), "--metric accuracy does not fit this model"),
        (("eval", bare, "--metric", "bleu"), "--metric bleu does not fit this model, which is an encoder"),
        (("eval", marian, "--metric", "spearman"), "--metric spearman does not fit this model, which transl"),
    ):
        outcome = tvmq(*words, "--data", path)
        assert outcome.code == 2
        assert message in one_error(outcome)


def test_pooling_is_for_encoders(tvmq: Run, tiny_model: Path, tmp_path: Path) -> None:
    outcome = tvmq("compile", tiny_model, "-o", tmp_path / "x.tvmq", "--pooling", "cls")
    assert outcome.code == 2
    assert "translates; --pooling and --normalize are for encoders" in one_error(outcome)
    assert not (tmp_path / "x.tvmq").exists()


def test_compile_and_inspect(tvmq: Run, encoder_model: Make, tmp_path: Path) -> None:
    model = encoder_model("BertForSequenceClassification")
    outcome = tvmq("compile", model, "-o", tmp_path / "x.tvmq", "--set", "Attn=2", "--quantizer", "greedy",
                   "--pooling", "cls", "--no-normalize", "--isa", "x86_64_v2", "-q")  # fmt: skip
    assert outcome.code == 0
    facts = json.loads(tvmq("inspect", tmp_path / "x.tvmq", "--json").out)
    assert facts["family"] == "bert"
    assert facts["labels"] == ["LABEL_0", "LABEL_1"]
    assert facts["functions"] == ["classify", "embed"]
    figures = facts["architecture"]
    assert (figures["pooling"], figures["normalize"], figures["head"]) == ("cls", False, "classify")
    assert (figures["max_tokens"], figures["text_limit"], figures["types"]) == (24, 24, 2)
    assert [block["name"] for block in facts["blocks"]] == ["Emb", "Attn", "FFN", "Head"]
    human = tvmq("inspect", tmp_path / "x.tvmq").out
    assert "LABEL_0, LABEL_1" in human
    assert json.loads(tvmq("verify", tmp_path / "x.tvmq", "--json").out)["ok"] is True


def test_dry_run_knows_the_size(tvmq: Run, encoder_model: Make, compiled_encoder: Make) -> None:
    model = encoder_model("BertModel")
    predicted = json.loads(tvmq("compile", model, "--dry-run", "--json", "--preset", "fp32").out)
    made = json.loads(tvmq("inspect", compiled_encoder("BertModel"), "--json").out)
    assert predicted["fp32_bytes"] == made["fp32_bytes"] == predicted["size_bytes"]
    mixed = json.loads(tvmq("compile", model, "--dry-run", "--json", "--bits", "3.5").out)
    assert 3 < mixed["bits_per_weight"] <= 3.5


def test_quantize_takes_everything_along(tvmq: Run, encoder_model: Make, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(encoder_model("BertModel"), model)
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (kind, path) in enumerate((("Transformer", ""), ("Pooling", "1_Pooling")))]  # fmt: skip
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    assert tvmq("quantize", model, "-o", tmp_path / "coded", "--preset", "4-bit").code == 0
    for source in (model, tmp_path / "coded"):
        words = ("--preset", "4-bit") if source == model else ()
        output = tmp_path / f"{source.name}.tvmq"
        assert tvmq("compile", source, "-o", output, "--isa", "x86_64_v2", "-q", *words).code == 0
    facts = json.loads(tvmq("inspect", tmp_path / "coded.tvmq", "--json").out)["architecture"]
    assert (facts["pooling"], facts["normalize"], facts["text_limit"]) == ("cls", False, 12)
    weights = [
        (tmp_path / f"{name}.tvmq" / "weights.safetensors").read_bytes() for name in ("model", "coded")
    ]
    assert weights[0] == weights[1]


def test_bits_by_word_from_text(tvmq: Run, encoder_model: Make, text: Any, tmp_path: Path) -> None:
    words = ("compile", encoder_model("BertModel"), "--bits", "3", "--text", text("hello aaaa baaa\n" * 9))
    plan = json.loads(tvmq(*words, "--dry-run", "--json").out)
    assert len(plan["word_bits"]) > 1
    assert tvmq(*words, "-o", tmp_path / "x.tvmq", "--isa", "x86_64_v2", "-q").code == 0
    assert tvmq("embed", tmp_path / "x.tvmq", "-i", text("hello\n")).code == 0


def test_retraining_is_for_translation_only(
    tvmq: Run, encoder_model: Make, text: Any, tmp_path: Path
) -> None:
    pairs = text("a\tb\n")
    words = ("--data", pairs, "--dev", pairs)
    outcome = tvmq("retrain", encoder_model("BertModel"), "-o", tmp_path / "out", *words)
    assert outcome.code == 3
    assert "works with translation models only so far, and bert is an encoder" in one_error(outcome)


def test_eval_accuracy_and_its_tests(
    tvmq: Run, classifier: Path, compiled_encoder: Make, tmp_path: Path
) -> None:
    texts = [f"{'abcdefgh'[i % 8]} word {i}" for i in range(40)]
    with load(classifier) as encoder:
        labels = [best.label for best in encoder.classify(texts)]
    gold = [label if i % 4 else labels[0] for i, label in enumerate(labels)]
    data, lines = tmp_path / "data.tsv", tmp_path / "lines.txt"
    numbers = {"LABEL_0": "0", "LABEL_1": "1"}
    given = [label if i % 2 else numbers[label] for i, label in enumerate(gold)]
    data.write_text("".join(f"{text}\t{label}\n" for text, label in zip(texts, given, strict=True)))
    found = json.loads(tvmq("eval", classifier, "--data", data, "-o", lines, "--json").out)
    right = 100 * np.mean([a == b for a, b in zip(labels, gold, strict=True)])
    assert (found["metric"], found["n"]) == ("accuracy", 40)
    assert found["value"] == pytest.approx(right)
    assert found["value_interval"][0] <= found["value"] <= found["value_interval"][1]
    assert lines.read_text().splitlines() == labels
    other = compiled_encoder("BertForSequenceClassification", "2-bit")
    by_artifact = json.loads(tvmq("eval", other, "--data", data, "--baseline", classifier, "--json").out)
    by_file = json.loads(tvmq("eval", other, "--data", data, "--baseline", lines, "--json").out)
    assert by_artifact == by_file
    assert by_file["baseline_value"] == found["value"]
    assert 0 < by_file["mcnemar_p"] <= 1
    human = tvmq("eval", other, "--data", data, "--baseline", lines).out
    assert "McNemar's test" in human
    assert "accuracy - baseline" in human


def test_eval_spearman(tvmq: Run, bare: Path, tmp_path: Path) -> None:
    pairs = [("hello", "hello"), ("one two", "one"), ("abc", "zzz"), ("a b", "b a"), ("q", "r s t")]
    with load(bare) as encoder:
        rows = [encoder.embed(list(pair)) for pair in pairs]
    cosines = [float(a @ b) for a, b in rows]
    data = tmp_path / "pairs.tsv"
    data.write_text("".join(f"{a}\t{b}\t{value}\n" for (a, b), value in zip(pairs, cosines, strict=True)))
    found = json.loads(tvmq("eval", bare, "--data", data, "--json").out)
    assert (found["metric"], found["value"], found["n"]) == ("spearman", 1.0, 5)
    assert tvmq("eval", bare, "--data", data, "--metric", "spearman", "--baseline", bare).code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tmaybe\n", "line 1 of the data: unknown label 'maybe'; the model's labels: LABEL_0, LABEL_1"),
        ("a\t2\n", "unknown label '2'"),
        ("a\n", "line 1: 0 tabs; expected text TAB label"),
        ("a\t1\nb\tc\t1\n", "line 2: 2 tabs"),
        ("\t1\n", "text 1 is empty"),
    ],
)
def test_bad_data(tvmq: Run, classifier: Path, text: Any, content: str, message: str) -> None:
    outcome = tvmq("eval", classifier, "--data", text(content))
    assert outcome.code == 3
    assert message in one_error(outcome)


def test_bench(tvmq: Run, classifier: Path, text: Any) -> None:
    words = ("bench", classifier, "--sentences", "3", "--rounds", "1")
    found = json.loads(tvmq(*words, "--length", "7", "--batch-size", "2", "--json").out)
    assert (found["function"], found["length"], found["batch"]) == ("classify", 7.0, 2)
    assert found["peak_rss_mb"] > found["baseline_rss_mb"] > 0
    assert found["tokens_per_s"] == pytest.approx(7 * found["sentences_per_s"], rel=0.01)
    assert {"ms_per_sentence", "threads", "weights_mb", "isa", "cpu"} <= set(found)
    assert "classify, batch 1" in tvmq(*words, "--input", text("hello\nworld\n")).out


def test_lines_stream(bare: Path) -> None:
    """An answer to every line while the writer waits."""
    command = [sys.executable, "-m", "tvmq", "embed", str(bare)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["line"] == 1
        process.stdin.write(b"\xff\n")
        process.stdin.close()
        assert process.stderr.read().startswith(b"error: line 2: byte 1 is not UTF-8")
        assert process.wait(60) == 3


def test_parse_text() -> None:
    assert parse_text("one") == "one"
    assert parse_text("one\ttwo") == ("one", "two")
    with pytest.raises(InputError, match="2 tabs"):
        parse_text("a\tb\tc")
