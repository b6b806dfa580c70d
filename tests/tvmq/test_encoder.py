# SPDX-License-Identifier: Apache-2.0
"""The Encoder object: embeddings, labels, tags; what it refuses, in one sentence each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmq.encoder import BATCH_TOKENS, Encoder, load, scores
from tvmq.errors import InputError, UsageError
from tvmq.text_tokenizer import Tokens

TEXTS = ["hello world", "a", "aaaa baaa caaa", "the cat sat on a mat", "zz zz", "one two"]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def classifier(compiled_encoder: Make) -> Encoder:
    return load(compiled_encoder("BertForSequenceClassification"))


def test_embeddings(compiled_encoder: Make) -> None:
    with load(compiled_encoder("BertModel")) as encoder:
        rows = encoder.embed(TEXTS, batch_size=4)
        assert (rows.dtype, rows.shape) == (np.float32, (len(TEXTS), 32))
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        assert encoder.embed([]).shape == (0, 32)
        assert encoder.embed([TEXTS[2]]).tobytes() == rows[2:3].tobytes()


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
    with pytest.raises(InputError, match="text 2 has 42 tokens, the model takes at most 24; split it"):
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
