# SPDX-License-Identifier: Apache-2.0
"""Calibration of encoders: moments of texts without padding, gradients that predict losses, the verb."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tvmq.calibration import Calibration, calibrate
from tvmq.distributions import Bernoulli, Categorical, Gaussian
from tvmq.errors import InputError
from tvmq.samples import Sample, Samples
from tvmq.text_samples import read_text_samples
from tvmq.text_tokenizer import TextTokenizer
from tvmq.whole_model import open_whole

Models = Callable[..., Path]
ARCHITECTURES = [
    "BertModel", "BertForSequenceClassification", "BertForTokenClassification", "RobertaModel",
    "RobertaForSequenceClassification", "DistilBertModel", "DistilBertForSequenceClassification",
]  # fmt: skip
BERT = "BertForSequenceClassification"
WORDS, POSITIONS = (f"bert.embeddings.{part}_embeddings.weight" for part in ("word", "position"))
DOWN = "bert.encoder.layer.{}.output.dense.weight"
TEXTS = "a small test\t1\nnothing here\t0\n\nthe very same film again\t1\n"


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = np.random.default_rng(3)
    lengths = rng.integers(2, 20, 21).tolist()
    return Samples([Sample(source=tuple(rng.integers(3, 128, n).tolist())) for n in lengths])


def alone(samples: Samples, model: Any, outputs: Callable[[Any], Any]) -> list[Any]:
    """``outputs`` of every sample on its own, as a batch without padding."""
    found = []
    for sample in samples:
        batch = Samples([sample]).batch(np.arange(1), model.pad_id)
        found.append(outputs(batch))
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moments_are_those_of_texts_without_padding(
    encoder_model: Models, architecture: str, samples: Samples
) -> None:
    folder = encoder_model(architecture)
    made = calibrate(folder, samples)
    net = open_whole(folder).module
    seen: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear):
            key = f"{name}.weight"
            layer.register_forward_pre_hook(
                lambda _, x, key=key: seen[key].append(x[0].detach().flatten(0, -2).numpy())
            )
    for sample in samples:
        net(torch.tensor([sample.source]), torch.tensor([len(sample.source)]))
    tables = set(made.names()) - seen.keys()
    assert {name.rsplit(".", 2)[-2] for name in tables} == {"word_embeddings", "position_embeddings"}
    for name, parts in seen.items():
        rows = np.concatenate(parts).astype(np.float64)
        expected = rows.T @ rows / len(rows)
        np.testing.assert_allclose(made.moments(name), expected, rtol=1e-4, atol=1e-5 * expected.max())
    for name in tables:
        np.testing.assert_array_equal(made.moments(name), np.eye(32))


def test_counts_and_the_file(encoder_model: Models, samples: Samples, tmp_path: Path) -> None:
    made = calibrate(encoder_model(BERT), samples, fisher=True)
    ids = [i for sample in samples for i in sample.source]
    np.testing.assert_array_equal(made.frequencies, np.bincount(ids, minlength=128))
    assert (made.sentences, made.tokens) == (21, 21)
    made.write(tmp_path / "c.safetensors")
    read = Calibration.read(tmp_path / "c.safetensors")
    for name in made.names():
        np.testing.assert_array_equal(read.moments(name), made.moments(name))
        np.testing.assert_array_equal(read.fisher(name), made.fisher(name))
    fisher = made.fisher(POSITIONS)
    assert fisher is not None
    reached = max(len(sample.source) for sample in samples)
    assert fisher.shape == (24, 32)
    assert (fisher.any(1) == (np.arange(24) < reached)).all()


def test_labelled_tokens_are_the_outputs(encoder_model: Models, samples: Samples) -> None:
    made = calibrate(encoder_model("BertForTokenClassification"), samples, fisher=True)
    assert made.tokens == sum(len(sample.source) for sample in samples)


@pytest.mark.parametrize(
    ("architecture", "prefix", "changes"),
    [
        (BERT, "bert.", {}),
        (BERT, "bert.", {"problem_type": "multi_label_classification", "num_labels": 5}),
        (BERT, "bert.", {"problem_type": "regression", "num_labels": 1}),
        ("BertForTokenClassification", "bert.", {}),
        ("BertModel", "", {}),
    ],
)
def test_gradients_predict_the_divergence(
    encoder_model: Models, architecture: str, prefix: str, changes: dict[str, Any]
) -> None:
    """Small independent errors at the outputs of a matrix, or of looked up rows, cost half of sum g e^2."""
    rng = np.random.default_rng(4)
    many = Samples([Sample(source=tuple(rng.integers(3, 128, 12).tolist())) for _ in range(300)])
    folder = encoder_model(architecture, **changes)
    made, model = calibrate(folder, many, fisher=True), open_whole(folder)
    of, batch = model.distribution.of, many.batch(np.arange(len(many)), model.pad_id)
    generator, scale = torch.Generator().manual_seed(1), 0.02
    for name, gradients in (
        (DOWN.format(0).replace("bert.", prefix), made.output_gradients),
        (WORDS.replace("bert.", prefix), made.lookup_gradients),
    ):
        layer = model.module.get_submodule(name.removesuffix(".weight"))
        with torch.no_grad():
            before = of(model.outputs(batch))
            hook = layer.register_forward_hook(
                lambda _, x, y: y + scale * torch.randn(y.shape, generator=generator)
            )
            after = of(model.outputs(batch))
        hook.remove()
        found, wanted = model.distribution.divergence(before, after) / made.tokens, gradients(name)
        assert wanted is not None
        assert found == pytest.approx(0.5 * scale**2 * float(wanted.sum()), rel=0.2)


@pytest.mark.parametrize("distribution", [Categorical(), Bernoulli(), Gaussian()])
def test_draws_have_the_hessian_of_the_divergence(distribution: Any) -> None:
    """E[g g^T] of the drawn log-likelihood is the Hessian of KL, whose quadratic form is the KL nearby."""
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(1, 3, generator=generator)
    step = 0.05 * torch.randn(1, 3, generator=generator)
    rows = outputs.expand(20_000, 3).clone().requires_grad_()
    distribution.log_likelihood(distribution.of(rows), generator).backward()
    assert rows.grad is not None
    form = float((rows.grad @ step[0]).square().mean()) / 2
    found = distribution.divergence(distribution.of(outputs), distribution.of(outputs + step))
    assert found == pytest.approx(form, rel=0.1)
    assert distribution.divergence(distribution.of(outputs), distribution.of(outputs)) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_do_not_depend_on_padding(encoder_model: Models, architecture: str, samples: Samples) -> None:
    model = open_whole(encoder_model(architecture))
    with torch.no_grad():
        batch = samples.batch(np.arange(len(samples)), model.pad_id)
        together = model.outputs(batch)
        apart = torch.cat(alone(samples, model, model.outputs))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_embeddings_are_the_compiled_ones(encoder_model: Models, compiled_encoder: Models) -> None:
    from tvmq.encoder import load

    texts = ["a small test", "the very same film again", "no"]
    folder = encoder_model("BertModel")
    tokenizer, model = TextTokenizer.open(folder), open_whole(folder)
    samples = Samples([Sample(source=tuple(tokenizer.encode(text))) for text in texts])
    with torch.no_grad():
        expected = torch.cat(alone(samples, model, model.outputs)).numpy()
    with load(compiled_encoder("BertModel")) as encoder:
        np.testing.assert_allclose(encoder.embed(texts), expected, rtol=1e-4, atol=1e-5)


def test_texts_of_a_file(encoder_model: Models, tmp_path: Path) -> None:
    classifier, embedder = encoder_model(BERT), encoder_model("BertModel")
    tokenizer = TextTokenizer.open(classifier)
    path = tmp_path / "texts.tsv"
    path.write_text(TEXTS)
    found = read_text_samples(classifier, path)
    assert [list(sample.source) for sample in found] == [
        tokenizer.encode(text) for text in ("a small test", "nothing here", "the very same film again")
    ]
    assert len(read_text_samples(classifier, path, limit=2)) == 2
    path.write_text("one\ttwo three\t0\n" + "long " * 50 + "\tx\t1\n")
    first, second = read_text_samples(classifier, path)
    pair = tokenizer.tokens("one", "two three")
    assert (list(first.source), list(first.types)) == (pair.ids, pair.types)
    assert len(second.source) == 24
    assert [len(sample.types) for sample in read_text_samples(embedder, path)] == [0] * 4


def test_types_reach_the_model(encoder_model: Models) -> None:
    model = open_whole(encoder_model(BERT))
    pair = Samples([Sample(source=(2, 9, 3, 8, 3), types=(0, 0, 0, 1, 1)), Sample(source=(2, 9, 3))])
    batch = pair.batch(np.arange(2), model.pad_id)
    assert batch.types is not None
    assert batch.types.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0], [0] * 8]
    with torch.no_grad():
        typed = model.outputs(batch)
        plain = model.outputs(Samples([Sample(source=(2, 9, 3, 8, 3))]).batch(np.arange(1), model.pad_id))
    assert not torch.allclose(typed[0], plain[0], atol=1e-3)


def test_the_verbs(tvmq: Callable[..., Any], encoder_model: Models, tmp_path: Path) -> None:
    """Text in, a calibration out, hessian codes of it in a coded checkpoint."""
    text, kept, out = (tmp_path / name for name in ("t.tsv", "c.safetensors", "coded"))
    text.write_text(TEXTS)
    done = tvmq("plan", encoder_model(BERT), "--calibration", text, "--save-calibration", kept, "-j", 1)
    assert done.code == 0, done.err
    assert Calibration.read(kept).sentences == 3
    coded = ("--preset", "3-bit", "--quantizer", "hessian", "--calibration", kept, "-o", out)
    done = tvmq("quantize", encoder_model(BERT), *coded)
    assert done.code == 0, done.err
    text.write_text("a\tb\tc\td\n")
    with pytest.raises(InputError, match="tabs; expected text, text TAB label"):
        read_text_samples(encoder_model(BERT), text)
