# SPDX-License-Identifier: Apache-2.0
"""The functions of an encoder: structure, names, and what they compute as kernels against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvmq.checkpoint import Checkpoint
from tvmq.encoder_graphs import EMBED, encoder_module, hidden_module
from tvmq.families import get_family
from tvmq.families.encoder import Body, Logits
from tvmq.pooling import Pooling

TEXTS = [[2, 17, 40, 9, 3], [2, 60, 3], [2, *range(70, 89), 3]]
ARCHITECTURES = ("BertForSequenceClassification", "RobertaForTokenClassification", "DistilBertModel")


@pytest.fixture(scope="module")
def loaded(encoder_model: Callable[..., Path]) -> Callable[[str], tuple[Any, dict[str, Any]]]:
    """``loaded(architecture)``: model and exported programs, made once."""
    made: dict[str, tuple[Any, dict[str, Any]]] = {}

    def load(architecture: str) -> tuple[Any, dict[str, Any]]:
        if architecture not in made:
            checkpoint = Checkpoint.open(encoder_model(architecture))
            family = get_family(checkpoint.config)
            model = family.load(checkpoint)
            made[architecture] = (model, family.export(model))
        return made[architecture]

    return load


def inputs_of(model: Any, texts: list[list[int]]) -> list[NDArray[np.int32]]:
    """ids, positions, offsets and, where the model has them, types."""
    ids = np.concatenate([np.array(text, np.int32) for text in texts])
    places = [np.arange(len(text), dtype=np.int32) + model.config.first_position for text in texts]
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    types = [np.arange(len(ids), dtype=np.int32) % model.config.types] if model.config.types else []
    return [ids, np.concatenate(places), offsets, *types]


def names(function: Any) -> list[str]:
    return [str(param.name) for param in function.params]


def operators(function: Any) -> list[str]:
    values = [binding.value for block in function.body.blocks for binding in block.bindings]
    calls = [value for value in values if isinstance(value, relax.Call)]
    symbols = [str(c.args[0].global_symbol) if "dps" in str(c.op.name) else str(c.op.name) for c in calls]
    found = [symbol.removeprefix("relax.").removeprefix("nn.") for symbol in symbols]
    return [name for name in found if name != "astype"]  # of ids to what they are already


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_functions_inputs_and_names(loaded: Any, architecture: str) -> None:
    model, programs = loaded(architecture)
    module = encoder_module(programs, Pooling())
    relax.analysis.well_formed(module)
    head = [model.config.head.kind] if model.config.head else []
    assert sorted(v.name_hint for v in module.functions) == sorted([EMBED, *head])
    inputs = ["ids", "positions", "offsets", *(["types"] if model.config.types else [])]
    for var, function in module.functions.items():
        assert names(function)[: len(inputs)] == inputs
        assert int(function.attrs["num_input"]) == len(inputs)
        assert str(function.attrs["global_symbol"]) == var.name_hint
        assert set(names(function)[len(inputs) :]) <= set(model.state_dict())
    read = {name for function in module.functions.values() for name in names(function)[len(inputs) :]}
    assert read == set(model.state_dict())


def test_the_graph_is_plain_and_its_end_apart(loaded: Any) -> None:
    """What other modes lower: sums of rows, norms after a residual, gelu, attention; then the head."""
    _, programs = loaded("BertForSequenceClassification")
    module = encoder_module(programs, Pooling(kind="mean", normalize=True))
    linear = ["permute_dims", "matmul", "add"]
    tables = ["take", "take", "add", "take", "add", "layer_norm"]
    attention = [*linear * 3, "tvmq.ragged_attention", *linear, "add", "layer_norm"]
    layer = [*attention, *linear, "gelu", *linear, "add", "layer_norm"]
    body = operators(hidden_module(programs)["hidden"])
    assert sorted(body) == sorted([*tables, *layer * 2])
    assert operators(module["embed"]) == [*body, "tvmq.mean_tokens", "tvmq.l2_normalize"]
    assert operators(module["classify"]) == [*body, "tvmq.first_token", *linear, "tanh", *linear]


def test_bindings_are_named_after_their_modules(loaded: Any) -> None:
    _, programs = loaded("BertForSequenceClassification")
    found = {
        str(binding.var.name)
        for block in hidden_module(programs)["hidden"].body.blocks
        for binding in block.bindings
    }
    assert {
        "bert__embeddings__LayerNorm",
        "bert__encoder__layer__0__attention__self__query",
        "bert__encoder__layer__1__output__dense",
        "bert__encoder__layer__1__output__LayerNorm",
    } <= found


@pytest.mark.parametrize(
    ("pooling", "end"),
    [
        (Pooling(kind="cls", normalize=False), ["tvmq.first_token"]),
        (Pooling(kind="mean", normalize=False), ["tvmq.mean_tokens"]),
        (Pooling(kind="cls", normalize=True), ["tvmq.first_token", "tvmq.l2_normalize"]),
    ],
)
def test_pooling_is_what_was_asked(loaded: Any, pooling: Pooling, end: list[str]) -> None:
    _, programs = loaded("DistilBertModel")
    found = operators(encoder_module(programs, pooling)["embed"])
    assert [name for name in found if name.startswith("tvmq.") and "attention" not in name] == end


@torch.inference_mode()
def expected(model: Any, function: str, texts: list[list[int]]) -> NDArray[np.float32]:
    inputs = [torch.from_numpy(array) for array in inputs_of(model, texts)]
    x = Body(model)(*inputs)
    match function:
        case "hidden":
            return x.numpy()
        case "embed":
            ends = inputs[2].tolist()
            rows = torch.stack([x[a:b].mean(0) for a, b in pairwise(ends)])
            return torch.nn.functional.normalize(rows).numpy()
        case _:
            return Logits(model)(x, inputs[2]).numpy()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def program(request: Any, loaded: Any, lowered: Any, make_plan: Any) -> tuple[Any, Any]:
    """Every function of a model as FP32 kernels, and the model."""
    model, programs = loaded(request.param)
    module = encoder_module(programs, Pooling())
    module.update(tvm.IRModule({"hidden": hidden_module(programs)["hidden"]}))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return lowered(module, make_plan({}), state), model


@pytest.mark.parametrize(
    "texts", [TEXTS, TEXTS[:1], TEXTS[1:2], [[5]]], ids=["three", "one", "short", "tiny"]
)
def test_float_kernels_compute_what_torch_does(program: tuple[Any, Any], texts: list[list[int]]) -> None:
    run, model = program
    functions = ["hidden", "embed", *([model.config.head.kind] if model.config.head else [])]
    for function in functions:
        (found,) = run(function, *inputs_of(model, texts))
        np.testing.assert_allclose(found, expected(model, function, texts), atol=1e-5)


@pytest.mark.parametrize("tables", ["int8", "exact"])
def test_quantized_kernels_compute_what_their_weights_say(
    loaded: Any, lowered: Any, make_plan: Any, close: Any, tables: str
) -> None:
    """Words by frequency, a quantized position table, groups; all of it in one model."""
    model, programs = loaded("BertForSequenceClassification")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    matrices = [name for name, value in state.items() if value.ndim == 2 and "token_type" not in name]
    bits: dict[str, Any] = dict.fromkeys(matrices, 3)
    bits["bert.embeddings.word_embeddings.weight"] = ((30, 4), (50, 3), (48, 2))
    run = lowered(encoder_module(programs, Pooling()), make_plan(bits, group_size=16), state, tables)
    other = type(model)(model.config)
    other.load_state_dict({name: torch.from_numpy(run.dequantized.get(name, v)) for name, v in state.items()})
    for function in ("embed", "classify"):
        (found,) = run(function, *inputs_of(model, TEXTS))
        close(found, expected(other, function, TEXTS), tables)
