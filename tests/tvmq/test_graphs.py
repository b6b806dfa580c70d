# SPDX-License-Identifier: Apache-2.0
"""The functions of a translation model: structure, and what they compute step by step against PyTorch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvmq.families.executor import TorchExecutor
from tvmq.families.marian import MarianModel, export
from tvmq.families.marian_config import MarianConfig
from tvmq.graphs import BANNED, fixed_name, logits_module, translation_module

BEAMS, STEPS, PAD = 2, 3, 69
SOURCES = [[5, 9, 11, 3, 0], [7, 8, 0]]
HEAD = "model.shared.weight"


@cache
def model() -> MarianModel:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
             (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    config = MarianConfig.from_dict(
        {
            **sizes,
            "d_model": 32,
            "vocab_size": PAD + 1,
            "max_position_embeddings": 16,
            "activation_function": "relu",
            "scale_embedding": True,
            "eos_token_id": 0,
            "pad_token_id": PAD,
            "decoder_start_token_id": PAD,
        }
    )
    result = MarianModel(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in [*result.parameters(), result.final_logits_bias]:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else noise * 0.3)
    return result


@cache
def programs() -> dict[str, Any]:
    return export(model())


def graphs() -> tvm.IRModule:
    return translation_module(programs(), banned=1, beams=BEAMS)


def names(function: Any) -> list[str]:
    return [str(param.name) for param in function.params]


def test_functions_and_their_inputs() -> None:
    module = graphs()
    relax.analysis.well_formed(module)
    decode = logits_module(programs())["decode"]
    inputs = names(decode)[: int(decode.attrs["num_input"])]
    weights = names(decode)[len(inputs) :]
    fixed_greedy, fixed_beam = fixed_name("greedy", 1), fixed_name("beam", BEAMS)
    assert {v.name_hint for v in module.functions} == {"encode", "beam", fixed_greedy, fixed_beam}
    for name, extra in (("beam", ["count"]), (fixed_beam, ["count"]), (fixed_greedy, [])):
        function = module[name]
        assert names(function) == [*inputs, *extra, *weights, BANNED]
        assert int(function.attrs["num_input"]) == len(inputs) + len(extra)
        assert str(function.attrs["global_symbol"]) == name


def test_fixed_forms_have_no_free_rows() -> None:
    module = graphs()
    for name, rows in ((fixed_name("greedy", 1), 1), (fixed_name("beam", BEAMS), BEAMS)):
        tokens, position, sentences, ancestry = module[name].params[:4]
        assert [int(p.ty.shape[0]) for p in (tokens, position, sentences, ancestry)] == [rows] * 4
    assert tvm.ir.is_prim_var(module["beam"].params[0].ty.shape[0])


def test_weights_carry_the_checkpoints_names_and_ties_exist_once() -> None:
    module = graphs()
    known = {*model().state_dict(), BANNED}
    for function in module.functions.values():
        weights = names(function)[int(function.attrs["num_input"]) :]
        assert len(set(weights)) == len(weights)
        assert set(weights) <= known
    assert HEAD in names(module["encode"])
    assert HEAD in names(module["beam"])


class Decoder:
    """Steps of the compiled functions with caches of their own."""

    def __init__(self, program: Any, rows: int) -> None:
        self.program, self.rows = program, rows
        ids = np.concatenate([np.array(s, np.int32) for s in SOURCES])
        places = np.concatenate([np.arange(len(s), dtype=np.int32) for s in SOURCES])
        self.offsets = np.cumsum([0, *map(len, SOURCES)]).astype(np.int32)
        self.memory = program("encode", ids, places, self.offsets)
        self.caches = [tvm.runtime.tensor(np.zeros((rows, STEPS, 32), np.float32)) for _ in self.memory]

    def step(
        self, function: str, at: int, tokens: NDArray, sentences: NDArray, ancestry: NDArray, *shape: Any
    ) -> list[NDArray]:
        position = np.full(self.rows, at, np.int32)
        inputs = [tokens, position, sentences, ancestry, self.offsets, *self.caches, *self.memory, *shape]
        return self.program(function, *inputs)


@pytest.fixture(scope="module", params=["words", "float"])
def program(request: Any, lowered: Any, make_plan: Any) -> Any:
    """Logits and searches of one model, with a head in word order and with one in plain order."""
    linears = [
        name for name, _ in model().named_parameters() if "proj.weight" in name or "fc1.weight" in name
    ]
    bits = (
        {HEAD: ((10, 4), (33, 3), (27, 2)), **dict.fromkeys(linears, 3)} if request.param == "words" else {}
    )
    module = graphs()
    module.update(tvm.IRModule({"decode": logits_module(programs())["decode"]}))
    state = {name: tensor.numpy() for name, tensor in model().state_dict().items()}
    return lowered(module, make_plan(bits), state, "exact", extra={BANNED: np.array([PAD], np.int32)})


def best(logits: NDArray, k: int) -> tuple[NDArray, NDArray]:
    """Log-probabilities and ids of the k best words that are not banned."""
    logp = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    allowed = logp.copy()
    allowed[:, PAD] = -np.inf
    ids = np.argsort(-allowed, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(logp, ids, axis=1), ids


@pytest.mark.parametrize("rows", [1, BEAMS, 5])
def test_steps_equal_torch(program: Any, rows: int) -> None:
    """Logits, argmax and top-k over three steps, rows of both sentences that swap their pasts."""
    session = TorchExecutor(model(), weights=program.dequantized).begin(
        SOURCES, beams=5, max_new_tokens=STEPS
    )
    decoders = {name: Decoder(program, rows) for name in ("decode", "beam", "greedy", "fixed")}
    sentences = (np.arange(rows) % 2).astype(np.int32)
    ancestry = np.zeros((rows, STEPS), np.int32)
    tokens, parents = np.full(rows, PAD, np.int32), np.arange(rows, dtype=np.int32)
    for at in range(STEPS):
        expected = session.logits(tokens, parents, sentences).numpy()
        given = (at, tokens, sentences, ancestry)
        (logits,) = decoders["decode"].step("decode", *given)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.ptp(expected))
        logp, ids = decoders["beam"].step("beam", *given, tvm.runtime.ShapeTuple([4]))
        wanted_logp, wanted = best(expected, 4)
        assert np.array_equal(ids, wanted)
        np.testing.assert_allclose(logp, wanted_logp, rtol=0, atol=1e-4)
        if rows == 1:
            assert np.array_equal(decoders["greedy"].step("greedy_1", *given)[0], wanted[:, 0])
        if rows == BEAMS:
            again = decoders["fixed"].step("beam_2", *given, tvm.runtime.ShapeTuple([4]))
            assert np.array_equal(again[1], ids)
        # rows of the same sentence exchange their hypotheses
        parents = np.array([*range(2, rows), *range(2)] if rows == 5 else range(rows), np.int32)[:rows]
        parents = np.where(sentences[parents] == sentences, parents, np.arange(rows)).astype(np.int32)
        ancestry = ancestry[parents]
        ancestry[:, at] = parents
        tokens = wanted[parents, 1].astype(np.int32)
