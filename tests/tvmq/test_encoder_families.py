# SPDX-License-Identifier: Apache-2.0
"""BERT, RoBERTa and DistilBERT against transformers: names, logits, padded batches, bad checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError
from tvmq.families import get_family
from tvmq.families.encoder import Body, Logits
from tvmq.families.encoder_layout import layout

BASES = ("BertModel", "RobertaModel", "DistilBertModel")
HEADS = tuple(
    f"{stem}For{head}"
    for stem in ("Bert", "Roberta", "XLMRoberta", "DistilBert")
    for head in ("SequenceClassification", "TokenClassification")
)
TEXTS = [[2, 17, 40, 9, 3], [2, 60, 3], [2, *range(70, 86), 3]]


class Tensors:
    """A checkpoint in memory, to be damaged."""

    def __init__(self, folder: Path) -> None:
        source = Checkpoint.open(folder)
        self.config = dict(source.config)
        names = [name for name in source.names() if not name.endswith("position_ids")]
        self.held = {name: source.tensor(name) for name in names}

    def names(self) -> list[str]:
        return list(self.held)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.held[name].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self.held[name]


def ragged(first_position: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, positions and offsets of TEXTS without padding."""
    ids = torch.tensor([i for text in TEXTS for i in text], dtype=torch.int32)
    places = [i + first_position for text in TEXTS for i in range(len(text))]
    offsets = np.cumsum([0, *map(len, TEXTS)])
    return ids, torch.tensor(places, dtype=torch.int32), torch.tensor(offsets, dtype=torch.int32)


def opened(folder: Path) -> Any:
    checkpoint = Checkpoint.open(folder)
    return get_family(checkpoint.config).load(checkpoint)


@torch.inference_mode()
def theirs(folder: Path, architecture: str, text: list[int], types: list[int] | None = None) -> NDArray:
    """What transformers computes of one text: logits, or hidden states of a bare encoder."""
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    kinds = {} if types is None else {"token_type_ids": torch.tensor([types])}
    result = model(input_ids=torch.tensor([text]), **kinds)
    found = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return found[0].numpy()


@torch.inference_mode()
def hidden(model: Any, types: list[int] | None = None) -> torch.Tensor:
    inputs = ragged(model.config.first_position)
    count = len(inputs[0])
    kinds = torch.tensor(types or [0] * count, dtype=torch.int32) if model.config.types else None
    return Body(model)(*inputs, kinds)


def by_text(rows: torch.Tensor) -> list[NDArray]:
    bounds = np.cumsum([len(text) for text in TEXTS])[:-1]
    return np.split(rows.numpy(), bounds)


@pytest.mark.parametrize("architecture", BASES)
def test_hidden_states_are_transformers(encoder_model: Callable[..., Path], architecture: str) -> None:
    folder = encoder_model(architecture)
    for ours, text in zip(by_text(hidden(opened(folder))), TEXTS, strict=True):
        np.testing.assert_allclose(ours, theirs(folder, architecture, text), atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
def test_other_activations(encoder_model: Callable[..., Path], activation: str) -> None:
    folder = encoder_model("BertModel", hidden_act=activation)
    ours = by_text(hidden(opened(folder)))
    np.testing.assert_allclose(ours[2], theirs(folder, "BertModel", TEXTS[2]), atol=1e-5)


def test_token_types(encoder_model: Callable[..., Path]) -> None:
    folder = encoder_model("BertModel")
    types = [i % 2 for text in TEXTS for i in range(len(text))]
    for ours, text in zip(by_text(hidden(opened(folder), types)), TEXTS, strict=True):
        kinds = [i % 2 for i in range(len(text))]
        np.testing.assert_allclose(ours, theirs(folder, "BertModel", text, kinds), atol=1e-5)


@pytest.mark.parametrize("architecture", HEADS)
def test_logits_are_transformers(encoder_model: Callable[..., Path], architecture: str) -> None:
    folder = encoder_model(architecture)
    model = opened(folder)
    with torch.inference_mode():
        logits = Logits(model)(hidden(model), ragged(0)[2])
    found = by_text(logits) if "Token" in architecture else list(logits.numpy())
    for ours, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(ours, theirs(folder, architecture, text), atol=1e-5)


@pytest.mark.parametrize("architecture", [*BASES, *HEADS])
def test_whole_padded_batches_compute_the_same(encoder_model: Callable[..., Path], architecture: str) -> None:
    folder = encoder_model(architecture)
    checkpoint = Checkpoint.open(folder)
    family = get_family(checkpoint.config)
    module = family.whole(family.load(checkpoint))
    lengths = torch.tensor([len(text) for text in TEXTS])
    ids = torch.full((len(TEXTS), int(lengths.max())), module.config.pad_id)
    for row, text in zip(ids, TEXTS, strict=True):
        row[: len(text)] = torch.tensor(text)
    with torch.inference_mode():
        found = module(ids, lengths).numpy()
    for rows, text in zip(found, TEXTS, strict=True):
        ours = rows if "Sequence" in architecture else rows[: len(text)]
        np.testing.assert_allclose(ours, theirs(folder, architecture, text), atol=1e-5)


def test_whole_is_differentiable_and_takes_other_weights(encoder_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(encoder_model("BertForSequenceClassification"))
    family = get_family(checkpoint.config)
    module = family.whole(family.load(checkpoint))
    weights = {name: value.clone().requires_grad_() for name, value in module.named_parameters()}
    ids, lengths = torch.tensor([TEXTS[0]]), torch.tensor([5])
    torch.func.functional_call(module, weights, (ids, lengths)).sum().backward()
    gradients = {name: value.grad for name, value in weights.items()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("architecture", [*BASES, *HEADS])
def test_layout_names_every_tensor_once(encoder_model: Callable[..., Path], architecture: str) -> None:
    checkpoint = Checkpoint.open(encoder_model(architecture))
    family = get_family(checkpoint.config)
    config = family.read_config(checkpoint.config)
    shapes = family.shapes(config)
    unused = {name for name in checkpoint.names() if name not in shapes}
    assert unused <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert {name: checkpoint.shape(name) for name in shapes} == shapes
    assert len({leaf.name for leaf in layout(config)}) == len(layout(config))


def test_planned_tensors_know_their_block(encoder_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(encoder_model("BertForSequenceClassification"))
    family = get_family(checkpoint.config)
    found = {info.name: info for info in family.tensors(family.read_config(checkpoint.config))}
    assert len(found) == 2 + 2 * 6 + 2
    expected = {
        "bert.embeddings.word_embeddings": ("Emb", (128, 32)),
        "bert.embeddings.position_embeddings": ("Emb", (24, 32)),
        "bert.encoder.layer.0.attention.self.key": ("Attn", (32, 32)),
        "bert.encoder.layer.1.attention.output.dense": ("Attn", (32, 32)),
        "bert.encoder.layer.1.intermediate.dense": ("FFN", (48, 32)),
        "bert.encoder.layer.0.output.dense": ("FFN", (32, 48)),
        "bert.pooler.dense": ("Head", (32, 32)),
        "classifier": ("Head", (2, 32)),
    }
    for name, fact in expected.items():
        info = found[f"{name}.weight"]
        assert (info.block, info.shape) == fact
        assert info.is_embedding == (name == "bert.embeddings.word_embeddings")
    assert "bert.embeddings.token_type_embeddings.weight" not in found


def test_positions_of_roberta_start_after_its_padding(encoder_model: Callable[..., Path]) -> None:
    config = json.loads((encoder_model("RobertaModel") / "config.json").read_text())
    checked = get_family(config).read_config(config)
    assert (checked.first_position, checked.max_tokens) == (2, 22)
    del config["pad_token_id"]
    assert get_family(config).read_config(config).first_position == 2
    with pytest.raises(InputError, match="max_position_embeddings is 2, expected more than 2"):
        get_family(config).read_config(config | {"max_position_embeddings": 2})


def test_exported_programs_keep_operators_whole(encoder_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(encoder_model("BertForSequenceClassification"))
    family = get_family(checkpoint.config)
    programs = family.export(family.load(checkpoint))
    assert list(programs) == ["body", "classify"]
    calls = [str(node.target) for node in programs["body"].graph.nodes if node.op == "call_function"]
    counts = {name: calls.count(name) for name in set(calls)}
    assert counts == {
        "aten.embedding.default": 3,
        "aten.add.Tensor": 2 + 2 * 2,
        "aten.layer_norm.default": 1 + 2 * 2,
        "aten.linear.default": 2 * 6,
        "aten.gelu.default": 2,
        "tvmq.ragged_attention.default": 2,
    }
    single = torch.tensor([5, 9], dtype=torch.int32)
    offsets = torch.tensor([0, 2], dtype=torch.int32)
    x = programs["body"].module()(single, torch.tensor([0, 1]), offsets, torch.zeros(2, dtype=torch.int32))
    assert x.shape == (2, 32)


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "swiglu"}, "hidden_act 'swiglu' is unknown; known: relu, gelu"),
    ({"num_attention_heads": 3}, "hidden_size 32 is not divisible by 3 heads"),
    ({"hidden_size": None, "type_vocab_size": None}, "lacks hidden_size, type_vocab_size"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
    ({"is_decoder": True}, "is_decoder=True is not supported"),
    ({"num_hidden_layers": 5000}, "num_hidden_layers is 5000, expected at most 1024"),
    ({"intermediate_size": -4}, "intermediate_size is -4"),
    ({"layer_norm_eps": 0}, "layer_norm_eps is 0, expected a number between 0 and 1"),
    ({"layer_norm_eps": "x"}, "layer_norm_eps is 'x'"),
    ({"pad_token_id": 128}, "pad_token_id is 128"),
    ({"architectures": ["BertForMaskedLM"]}, "'BertForMaskedLM' has a head that is not supported"),
    ({"architectures": ["BertModel", "BertModel"]}, "expected a list of one name"),
    ({"architectures": "BertModel"}, "expected a list of one name"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_bad_bert_config(encoder_model: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    config = json.loads((encoder_model("BertModel") / "config.json").read_text()) | changes
    with pytest.raises(InputError, match=message) as caught:
        get_family(config).read_config(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "lacks dim"),
        ({"n_heads": 5}, "dim 32 is not divisible by 5 heads"),
        ({"activation": "tanh"}, "activation 'tanh' is unknown"),
        ({"architectures": ["DistilBertForQuestionAnswering"]}, "has a head that is not supported"),
    ],
)
def test_bad_distilbert_config(
    encoder_model: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    config = json.loads((encoder_model("DistilBertModel") / "config.json").read_text()) | changes
    with pytest.raises(InputError, match=message):
        get_family(config).read_config(config)


def load_damaged(source: Tensors) -> None:
    get_family(source.config).load(source)


def test_missing_unexpected_and_misshapen_tensors(encoder_model: Callable[..., Path]) -> None:
    source = Tensors(encoder_model("BertModel"))
    del source.held["encoder.layer.1.output.dense.bias"]
    source.held["encoder.layer.2.output.dense.bias"] = np.zeros(3, np.float32)
    source.held["embeddings.position_embeddings.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(InputError) as caught:
        load_damaged(source)
    message = str(caught.value)
    assert "config.json (BertModel)" in message
    assert "missing: encoder.layer.1.output.dense.bias;" in message
    assert "unexpected: encoder.layer.2.output.dense.bias;" in message
    assert "embeddings.position_embeddings.weight is (2, 2), expected (24, 32)" in message
    assert "\n" not in message


def test_a_head_must_be_there_and_no_other(encoder_model: Callable[..., Path]) -> None:
    source = Tensors(encoder_model("BertForSequenceClassification"))
    weight = source.held.pop("classifier.weight")
    with pytest.raises(InputError, match=r"\(BertForSequenceClassification\); missing: classifier.weight"):
        load_damaged(source)
    source.held["classifier.weight"] = np.repeat(weight, 2, 0)
    with pytest.raises(InputError, match=r"classifier.weight is \(4, 32\), expected \(2, 32\)"):
        load_damaged(source)
    bare = Tensors(encoder_model("BertModel"))
    bare.held["classifier.weight"] = weight
    with pytest.raises(InputError, match=r"unexpected: classifier\.weight"):
        load_damaged(bare)
    bare.config.pop("architectures")
    with pytest.raises(InputError, match=r"no architecture with a head; unexpected: classifier\.weight"):
        load_damaged(bare)


def test_a_long_list_of_names_is_cut(encoder_model: Callable[..., Path]) -> None:
    source = Tensors(encoder_model("BertModel"))
    source.held = {f"x.{name}": value for name, value in source.held.items()}
    with pytest.raises(InputError, match=r"and \d\d more; unexpected") as caught:
        load_damaged(source)
    assert len(str(caught.value)) < 1500


def test_unused_tensors_are_left_alone(encoder_model: Callable[..., Path]) -> None:
    source = Tensors(encoder_model("BertModel"))
    assert "pooler.dense.weight" in source.held
    source.held["embeddings.position_ids"] = np.arange(24, dtype=np.float32)[None]
    model = get_family(source.config).load(source)
    assert "pooler.dense.weight" not in model.state_dict()
