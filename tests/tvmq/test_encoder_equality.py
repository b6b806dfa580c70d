# SPDX-License-Identifier: Apache-2.0
"""Compiled encoders: transformers' results in FP32, the same bits in any batch and on any ISA level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

import tvmq
from targets import detect_host
from tvmq.encoder import Encoder, load
from tvmq.loading import EXECUTOR
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


@pytest.fixture(autouse=True, params=["native", "vm"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTOR, request.param)


@torch.inference_mode()
def theirs(folder: Path, architecture: str, tokens: Tokens) -> NDArray[np.float32]:
    """Logits of one text, or hidden states of the encoder alone."""
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    kinds = {"token_type_ids": torch.tensor([tokens.types])} if "Distil" not in architecture else {}
    result = model(input_ids=torch.tensor([tokens.ids]), **kinds)
    return (result.logits if hasattr(result, "logits") else result.last_hidden_state)[0].numpy()


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


@pytest.mark.parametrize("preset", ["fp32", "3-bit"])
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


def test_pooling_options(encoder_model: Make, compiled_encoder: Make) -> None:
    options = PoolingOptions(kind="cls", normalize=False)
    with load(compiled_encoder("BertModel", pooling=options)) as encoder:
        assert encoder.manifest.architecture["pooling"] == "cls"
        (text,) = encoder.tokenize(TEXTS[:1])
        wanted = theirs(encoder_model("BertModel"), "BertModel", text)[0]
        np.testing.assert_allclose(encoder.embed(TEXTS[:1])[0], wanted, atol=1e-4)
