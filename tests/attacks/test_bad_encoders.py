# SPDX-License-Identifier: Apache-2.0
"""Encoder folders and artifacts that are damaged or hostile: one sentence each, nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tvmq import encoder
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError, TvmqError, VerificationError
from tvmq.families import get_family
from tvmq.loading import EXECUTOR
from tvmq.text_tokenizer import Tokens

Run = Callable[..., Any]
Make = Callable[..., Path]


@pytest.fixture
def model(encoder_model: Make, tmp_path: Path) -> Path:
    """A classifier's folder to damage."""
    return Path(shutil.copytree(encoder_model("BertForSequenceClassification"), tmp_path / "model"))


@pytest.fixture(params=["native", "vm"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(EXECUTOR, request.param)
    return request.param


@pytest.fixture
def artifact(compiled_encoder: Make, tmp_path: Path, executor: str) -> Path:
    """A classifier's artifact to damage, for both executors to refuse."""
    return Path(shutil.copytree(compiled_encoder("BertForSequenceClassification"), tmp_path / "a.tvmq"))


def refused(tvmq: Run, model: Path, message: str, code: int = 3) -> None:
    output = model.parent / "out.tvmq"
    outcome = tvmq("compile", model, "-o", output)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)
    assert message in outcome.err
    assert sorted(model.parent.iterdir()) == [model], "left something behind"


def edit(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document |= changes
    path.write_text(json.dumps(document))


def edit_tensors(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = dict(load_file(model / "model.safetensors"))
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["classifier.bias", "bert.embeddings.word_embeddings.weight"])
def test_weights_that_are_not_finite(tvmq: Run, model: Path, value: float, name: str) -> None:
    edit_tensors(model, lambda tensors: tensors[name].ravel().__setitem__(0, value))
    refused(tvmq, model, f"tensor '{name}' holds 1 values that are not finite")


def test_a_missing_head(tvmq: Run, model: Path) -> None:
    edit_tensors(model, lambda tensors: tensors.pop("classifier.weight"))
    refused(tvmq, model, "config.json (BertForSequenceClassification); missing: classifier.weight")


def test_an_extra_head(tvmq: Run, model: Path) -> None:
    edit(model / "config.json", architectures=["BertForTokenClassification"])
    edit_tensors(model, lambda tensors: tensors.update({"cls.predictions.bias": np.zeros(128, np.float32)}))
    refused(tvmq, model, "config.json (BertForTokenClassification); unexpected: cls.predictions.bias")


def test_a_head_for_something_else(tvmq: Run, model: Path) -> None:
    edit(model / "config.json", architectures=["BertForMaskedLM"])
    refused(tvmq, model, "'BertForMaskedLM' has a head that is not supported; supported: BertModel")


def test_unknown_label_map(tvmq: Run, model: Path) -> None:
    edit(model / "config.json", id2label={"0": "bad", "7": "good"})
    refused(tvmq, model, "id2label names '0, 7', expected the numbers 0 to 1")


def test_labels_for_another_head(tvmq: Run, model: Path) -> None:
    edit(model / "config.json", id2label={"0": "a", "1": "b", "2": "c"})
    refused(tvmq, model, "classifier.weight is (2, 32), expected (3, 32)")


def test_another_models_tokenizer(tvmq: Run, model: Path) -> None:
    document = json.loads((model / "tokenizer.json").read_text())
    document["model"]["vocab"]["more"] = 128
    (model / "tokenizer.json").write_text(json.dumps(document))
    refused(tvmq, model, "the tokenizer has token id 128, the model's vocab_size is 128; use the files")


def test_no_tokenizer(tvmq: Run, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    refused(tvmq, model, "neither tokenizer.json nor vocab.txt found")


def test_modules_that_lead_out_of_the_folder(tvmq: Run, model: Path) -> None:
    steps = [{"path": "", "type": "x.Transformer"}, {"path": "../../secret", "type": "x.Pooling"}]
    (model / "modules.json").write_text(json.dumps(steps))
    refused(tvmq, model, "the path of a step is '../../secret', expected the name of a folder")


def test_pickles_are_never_loaded(tvmq: Run, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(tvmq, model, "pickles can run code and are never loaded")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=8),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "RobertaModel", "DistilBertModel"])
def test_any_value_in_config_json(encoder_model: Make, architecture: str, data: st.DataObject) -> None:
    """A changed config is refused in one sentence, or is one that some model could have."""
    checkpoint = Checkpoint.open(encoder_model(architecture))
    key = data.draw(st.sampled_from(sorted(checkpoint.config)))
    config = dict(checkpoint.config) | {key: data.draw(VALUES)}
    message = ""
    try:
        family = get_family(config)
        checked = family.read_config(config)
        family.tensors(checked), family.shapes(checked)
    except InputError as error:
        message = str(error)
    assert "\n" not in message


def seal(artifact: Path, change: Callable[[Any], object]) -> None:
    """Edit the manifest and give it a right digest, as an attacker would."""
    path = artifact / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    document["digest"] = ""

    def canonical() -> bytes:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

    document["digest"] = hashlib.sha256(canonical()).hexdigest()
    path.write_bytes(canonical())


def reseal_file(artifact: Path, name: str, data: bytes) -> None:
    (artifact / name).write_bytes(data)
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(artifact, lambda document: document["files"].update({name: facts}))


def refused_artifact(artifact: Path, message: str) -> None:
    with pytest.raises(VerificationError, match=message) as caught:
        encoder.load(artifact)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "translate"}, r"no encoder \(head;"),
        ({"head": ""}, r"no encoder \(labels;"),
        ({"head": "tag"}, r"no encoder \(function tag;"),
        ({"scores": "magic"}, r"no encoder \(scores;"),
        ({"text_limit": 0}, r"no encoder \(text_limit;"),
        ({"text_limit": "9"}, r"no encoder \(text_limit;"),
        ({"vocab": "many"}, "the manifest's vocab is ('many', expected a|no) number"),
        ({"max_tokens": -1}, "the manifest's max_tokens is (-1|no number)"),
        ({"types": True}, "the manifest's types is (True|no number)"),
        ({"width": 2**40}, "the manifest's width is (1099511627776|no number)"),
    ],
)
def test_figures_that_describe_no_encoder(artifact: Path, change: dict[str, Any], message: str) -> None:
    seal(artifact, lambda document: document["architecture"].update(change))
    refused_artifact(artifact, message)


def test_labels_that_are_not_the_heads(artifact: Path) -> None:
    seal(artifact, lambda document: document["labels"].append("third"))
    refused_artifact(
        artifact, "classify gives 2 columns, the manifest says 3|labels differs from the program"
    )


def test_no_labels_at_all(artifact: Path) -> None:
    seal(artifact, lambda document: document.pop("labels"))
    refused_artifact(artifact, r"no encoder \(labels;")


@pytest.mark.parametrize("labels", [["a", 3], [""], ["x" * 300], "ab"])
def test_labels_that_are_none(artifact: Path, labels: Any) -> None:
    seal(artifact, lambda document: document.update(labels=labels))
    refused_artifact(artifact, "labels")


def test_an_unknown_family(artifact: Path) -> None:
    seal(artifact, lambda document: document.update(family="gpt"))
    refused_artifact(artifact, "unknown family 'gpt'; known: bert, distilbert, marian, roberta")


@pytest.mark.parametrize(
    "document",
    [
        {"texts": [[128]], "answers": {}},
        {"texts": [[-1]], "answers": {}},
        {"texts": [[1] * 25], "answers": {}},
        {"texts": [[]], "answers": {}},
        {"texts": "ab", "answers": {}},
        {"texts": [[1.5]], "answers": {}},
        {"texts": [[5]], "answers": {"generate": [1.0]}},
        {"texts": [[5]], "answers": []},
    ],
)
def test_a_selftest_with_foreign_ids(artifact: Path, document: Any) -> None:
    reseal_file(artifact, "selftest.json", json.dumps(document).encode())
    refused_artifact(artifact, r"selftest\.json is none of this model")


def test_a_selftest_that_fails(artifact: Path) -> None:
    document = json.loads((artifact / "selftest.json").read_text())
    document["answers"]["classify"][0] += 1
    reseal_file(artifact, "selftest.json", json.dumps(document).encode())
    refused_artifact(artifact, "the self-test failed at ISA level")


def test_a_damaged_tokenizer(artifact: Path) -> None:
    name = "tokenizer/tokenizer.json.xz"
    data = bytearray((artifact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / name).write_bytes(bytes(data))
    refused_artifact(artifact, "contents differ")
    reseal_file(artifact, name, bytes(data))
    with pytest.raises(TvmqError, match=r"damaged|not a tokenizer|not valid"):
        encoder.load(artifact)


def test_sizes_beyond_the_tables_read_nothing_outside_them(artifact: Path, executor: str) -> None:
    seal(artifact, lambda document: document["architecture"].update(vocab=10**6, max_tokens=10**4))
    with encoder.load(artifact) as model:
        texts = [Tokens(ids=[999_999] * 60, types=[7] * 60)]
        model.check(texts)
        if executor == "native":
            with pytest.raises(InputError, match="text 1 holds a token type outside 0"):
                next(model.run("embed", texts))
            texts = [Tokens(ids=[999_999] * 60, types=[1] * 60)]
        (rows,) = model.run("embed", texts)
    assert np.isfinite(rows).all()
