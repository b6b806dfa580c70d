# SPDX-License-Identifier: Apache-2.0
"""The Encoder object: transformers' results in FP32, the same bits in any batch, clear errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

import tvmq
from targets import detect_host
from tvmq.encoder import BATCH_TOKENS, Encoder, load, scores
from tvmq.errors import InputError, UsageError
from tvmq.options import CompileOptions, PlanOptions, PoolingOptions
from tvmq.text_tokenizer import Tokens

TEXTS = ["hello world", "a", "aaaa baaa caaa", "the cat sat on a mat", "zz zz", "one two"]
ARCHITECTURES = (
    "BertModel",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "RobertaModel",
    "XLMRobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "DistilBertModel",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
)
Make = Callable[..., Path]


@torch.inference_mode()
def theirs(folder: Path, architecture: str, tokens: Tokens) -> NDArray[np.float32]:
    """Logits of one text, or hidden states of the encoder alone."""
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    kinds = {"token_type_ids": torch.tensor([tokens.types])} if "Distil" not in architecture else {}
    result = model(input_ids=torch.tensor([tokens.ids]), **kinds)
    return (result.logits if hasattr(result, "logits") else result.last_hidden_state)[0].numpy()


@pytest.fixture(scope="module")
def classifier(compiled_encoder: Make) -> Encoder:
    return load(compiled_encoder("BertForSequenceClassification"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_is_transformers(encoder_model: Make, compiled_encoder: Make, architecture: str) -> None:
    folder = encoder_model(architecture)
    encoder = tvmq.load(compiled_encoder(architecture))
    assert isinstance(encoder, Encoder)
    texts = [*TEXTS, ("one two", "three")]
    tokens = encoder.tokenize(texts)
    found = list(encoder.run(encoder.head or "embed", tokens, batch_size=3))
    rows = np.concatenate(found)
    first = 0
    for text in tokens:
        wanted = theirs(folder, architecture, text)
        if not encoder.head:
            mean = wanted.mean(0)
            wanted = (mean / np.linalg.norm(mean))[None]
        elif encoder.head == "classify":
            wanted = wanted[None]
        np.testing.assert_allclose(rows[first : first + len(wanted)], wanted, atol=1e-4)
        first += len(wanted)
    assert first == len(rows)


@pytest.mark.parametrize("preset", ["fp32", "4-bit", "3-bit", "2-bit"])
def test_results_do_not_depend_on_the_batch(compiled_encoder: Make, preset: str) -> None:
    with load(compiled_encoder("BertForSequenceClassification", preset)) as encoder:
        tokens = encoder.tokenize(TEXTS)
        for function in ("embed", "classify"):
            alone = np.concatenate([rows for text in tokens for rows in encoder.run(function, [text])])
            for size in (1, 2, 5, 32):
                together = np.concatenate(list(encoder.run(function, tokens, batch_size=size)))
                assert together.tobytes() == alone.tobytes()
            reverse = np.concatenate(list(encoder.run(function, tokens[::-1])))
            assert reverse[::-1].tobytes() == alone.tobytes()


@pytest.mark.parametrize("preset", ["fp32", "3-bit"])
def test_isa_levels_and_threads_give_the_same_bits(encoder_model: Make, tmp_path: Path, preset: str) -> None:
    path, levels = tmp_path / "all.tvmq", detect_host()
    options = CompileOptions(plan=PlanOptions(preset=preset), isa_levels=tuple(levels))
    tvmq.compile(encoder_model("BertForSequenceClassification"), path, options)
    found = set()
    for level in levels:
        for threads in (1, 2):
            with load(path, isa=level, threads=threads) as encoder:
                assert encoder.isa == level
                tokens = encoder.tokenize(TEXTS)
                rows = [np.concatenate(list(encoder.run(f, tokens))) for f in ("embed", "classify")]
                found.add(b"".join(part.tobytes() for part in rows))
    assert len(found) == 1


def test_embeddings(compiled_encoder: Make) -> None:
    with load(compiled_encoder("BertModel")) as encoder:
        rows = encoder.embed(TEXTS, batch_size=4)
        assert (rows.dtype, rows.shape) == (np.float32, (len(TEXTS), 32))
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        assert encoder.embed([]).shape == (0, 32)
        assert encoder.embed([TEXTS[2]]).tobytes() == rows[2:3].tobytes()


def test_pooling_options(encoder_model: Make, compiled_encoder: Make) -> None:
    options = PoolingOptions(kind="cls", normalize=False)
    with load(compiled_encoder("BertModel", pooling=options)) as encoder:
        assert encoder.manifest.architecture["pooling"] == "cls"
        (text,) = encoder.tokenize(TEXTS[:1])
        wanted = theirs(encoder_model("BertModel"), "BertModel", text)[0]
        np.testing.assert_allclose(encoder.embed(TEXTS[:1])[0], wanted, atol=1e-4)


def test_classification(classifier: Encoder) -> None:
    assert (classifier.head, classifier.labels) == ("classify", ("LABEL_0", "LABEL_1"))
    found = classifier.classify(TEXTS)
    logits = np.concatenate(list(classifier.run("classify", classifier.tokenize(TEXTS))))
    powers = np.exp(logits.astype(np.float64))
    for best, row in zip(found, powers / powers.sum(1, keepdims=True), strict=True):
        assert best.label == classifier.labels[int(row.argmax())]
        assert best.score == max(best.scores.values())
        assert list(best.scores) == list(classifier.labels)
        np.testing.assert_allclose(list(best.scores.values()), row, rtol=1e-6)
    assert classifier.classify([]) == []


def test_pairs(classifier: Encoder) -> None:
    pair, swapped, joined = classifier.classify([("one", "two"), ("two", "one"), "one two"])
    assert len({pair.score, swapped.score, joined.score}) == 3


def test_tags(compiled_encoder: Make) -> None:
    with load(compiled_encoder("BertForTokenClassification")) as encoder:
        texts = ["hello aaaa", "b"]
        first, second = encoder.tag(texts, batch_size=1)
        assert [tag.token for tag in first] == ["h", "##e", "##l", "##l", "##o", "aaaa"]
        assert [texts[0][tag.start : tag.end] for tag in first] == ["h", "e", "l", "l", "o", "aaaa"]
        assert [tag.token for tag in second] == ["b"]
        assert all(tag.label in encoder.labels and 0.5 <= tag.score <= 1 for tag in [*first, *second])
        assert encoder.tag(texts) == [first, second]
        assert encoder.tag([]) == []


def test_long_texts_are_refused_or_cut(classifier: Encoder) -> None:
    long = "a " * 40
    with pytest.raises(
        InputError, match="text 2 has 42 tokens, the model takes at most 24; split it"
    ):
        classifier.classify(["a", long])
    (cut,) = classifier.tokenize([long], truncate=True)
    assert len(cut) == 24
    assert classifier.classify([long], truncate=True) == classifier.classify(["a " * 22])


@pytest.mark.parametrize("text", ["", "  \n", ("a", " "), ("", "b")])
def test_empty_texts_are_refused(classifier: Encoder, text: Any) -> None:
    for run in (classifier.embed, classifier.classify):
        with pytest.raises(InputError, match="text 2 is empty; leave it out"):
            run(["a", text])


def test_wrong_head(classifier: Encoder, compiled_encoder: Make) -> None:
    with pytest.raises(InputError, match="this model labels texts; classify with it"):
        classifier.tag(["a"])
    with (
        load(compiled_encoder("BertModel")) as encoder,
        pytest.raises(InputError, match="this model has no labels; embed with it"),
    ):
        encoder.classify(["a"])


def test_wrong_use(classifier: Encoder, compiled_encoder: Make) -> None:
    with pytest.raises(UsageError, match="batch size is 0, expected at least 1"):
        classifier.embed(["a"], batch_size=0)
    encoder = load(compiled_encoder("BertModel"))
    encoder.close()
    with pytest.raises(UsageError, match="the encoder was closed"):
        encoder.embed(["a"])


def test_foreign_ids_are_refused(classifier: Encoder) -> None:
    for ids in ([2, 128], [-1], []):
        with pytest.raises(InputError, match="text 1 gives no tokens of this model"):
            classifier.check([Tokens(ids=ids, types=[0] * len(ids))])


def test_large_batches_run_in_parts(classifier: Encoder) -> None:
    tokens = classifier.tokenize(["a " * 20]) * (BATCH_TOKENS // 22 + 3)
    parts = list(classifier.run("embed", tokens, batch_size=10_000))
    assert len(parts) == 2
    assert sum(map(len, parts)) == len(tokens)
    assert (np.concatenate(parts) == parts[0][0]).all()


def test_scores() -> None:
    logits = np.array([[1000.0, -1000.0, 0.0]], np.float32)
    np.testing.assert_allclose(scores(logits, "softmax"), [[1, 0, 0]])
    np.testing.assert_allclose(scores(logits, "sigmoid"), [[1, 0, 0.5]])
    assert scores(logits, "none").tolist() == logits.tolist()


def test_the_runtime_needs_no_compiler(compiled_encoder: Make) -> None:
    code = (
        "import sys, tvmq\n"
        f"tvmq.load({str(compiled_encoder('BertModel'))!r}).embed(['hello'])\n"
        "print(sorted({'torch', 'transformers', 'tvm', 'sentencepiece'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
