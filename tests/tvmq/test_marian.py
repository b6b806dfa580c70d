# SPDX-License-Identifier: Apache-2.0
"""The Marian family against transformers: logits, searches, ragged batches, tied tables, bad checkpoints."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import MarianConfig as HfConfig
from transformers import MarianMTModel

from tvmq.errors import InputError, UsageError
from tvmq.families import get_family
from tvmq.families.executor import TorchExecutor
from tvmq.families.marian import MarianModel, export, load
from tvmq.families.marian_config import MarianConfig, tensors
from tvmq.search import SearchOptions, beam_search, greedy_search

EOS, PAD = 0, 49
SOURCES = [[5, 9, 11, 3, EOS], [7, EOS], [20, 21, 22, 23, 24, 25, 26, 27, EOS], [30, 8, EOS]]


class Tensors:
    """A checkpoint in memory."""

    def __init__(self, model: MarianMTModel, **changes: Any) -> None:
        self.config = model.config.to_dict() | changes
        self.held = {name: value.numpy().copy() for name, value in model.state_dict().items()}

    def names(self) -> list[str]:
        return list(self.held)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.held[name].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self.held[name]


def make_model(seed: int = 0, **changes: Any) -> MarianMTModel:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(
        vocab_size=50,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=32,
        max_position_embeddings=40,
        activation_function="relu",
        scale_embedding=True,
        eos_token_id=EOS,
        forced_eos_token_id=EOS,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        init_std=0.3,
    )
    model = MarianMTModel(HfConfig(**(settings | changes))).eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # so that a bias or a norm in the wrong place shows
            parameter += 0.1 * torch.randn_like(parameter)
    model.final_logits_bias.normal_(std=0.3)
    return model


def padded(sources: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, sources))
    ids = torch.tensor([s + [PAD] * (width - len(s)) for s in sources])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sources])
    return ids, mask


def int32(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "gelu": {"activation_function": "gelu", "scale_embedding": False},
    "swish": {"activation_function": "swish", "encoder_layers": 1, "decoder_layers": 3},
    "separate": {"share_encoder_decoder_embeddings": False, "vocab_size": 60, "decoder_vocab_size": 50},
    "untied": {
        "share_encoder_decoder_embeddings": False,
        "decoder_vocab_size": 50,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    target = torch.randint(1, 49, (len(SOURCES), 6))
    target[:, 0] = PAD
    ids, mask = padded(SOURCES)
    expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits
    session = TorchExecutor(load(Tensors(model))).begin(SOURCES, max_new_tokens=6)
    rows = int32(*range(len(SOURCES)))
    for step in range(6):
        logits = session.logits(target[:, step].to(torch.int32).numpy(), rows, rows)
        torch.testing.assert_close(logits, expected[:, step], rtol=1e-5, atol=1e-5)


def test_rows_can_fork_reorder_and_end() -> None:
    """Ancestry: hypotheses that share a past read it from where it was written."""
    model = make_model()
    session = TorchExecutor(load(Tensors(model))).begin(SOURCES[:2], beams=3, max_new_tokens=5)
    session.logits(int32(PAD, PAD), int32(0, 1), int32(0, 1))
    session.logits(int32(3, 4, 5, 6), int32(0, 0, 1, 1), int32(0, 0, 1, 1))
    session.logits(int32(8, 9, 10), int32(1, 0, 2), int32(0, 0, 1))
    logits = session.logits(int32(11, 12), int32(1, 0), int32(0, 0))
    ids, mask = padded([SOURCES[0]] * 2)
    target = torch.tensor([[PAD, 3, 9, 11], [PAD, 4, 8, 12]])
    expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 4])
def test_search_equals_generate(seed: int, beams: int) -> None:
    model = make_model(seed)
    ids, mask = padded(SOURCES)
    expected = model.generate(
        ids,
        attention_mask=mask,
        num_beams=beams,
        max_new_tokens=12,
        bad_words_ids=[[PAD]],
        num_return_sequences=1,
    )
    executor = TorchExecutor(load(Tensors(model)))
    options = SearchOptions(beams=beams, max_new_tokens=12, eos_id=EOS, start_id=PAD, forced_eos_id=EOS)
    session = executor.begin(SOURCES, beams=beams, max_new_tokens=12)
    found = beam_search(session.step, len(SOURCES), options)
    rows = [[t for t in row[1:] if t != PAD] for row in expected.tolist()]
    assert [list(best[0].tokens) for best in found] == rows
    if beams == 1:
        session = executor.begin(SOURCES, max_new_tokens=12)
        fast = greedy_search(None, len(SOURCES), options, greedy_step=session.greedy_step)
        assert [list(best[0].tokens) for best in fast] == rows


def test_batch_equals_single_sentences() -> None:
    executor = TorchExecutor(load(Tensors(make_model(5))))
    options = SearchOptions(beams=3, n_best=3, max_new_tokens=10, eos_id=EOS, start_id=PAD)

    def run(sources: list[list[int]]) -> list[list[tuple[int, ...]]]:
        session = executor.begin(sources, beams=3, max_new_tokens=10)
        return [[c.tokens for c in found] for found in beam_search(session.step, len(sources), options)]

    assert run(SOURCES) == [run([source])[0] for source in SOURCES]


Exported = tuple[MarianModel, dict[str, torch.export.ExportedProgram]]


@pytest.fixture(scope="module")
def exported() -> Exported:
    model = load(Tensors(make_model()))
    return model, export(model)


def test_export_keeps_ops_whole_and_names(exported: Exported) -> None:
    model, programs = exported
    calls = {
        name: [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        for name, program in programs.items()
    }
    assert set(calls["encode"]) == {
        "aten.embedding.default",
        "aten.mul.Tensor",
        "aten.add.Tensor",
        "aten.linear.default",
        "aten.layer_norm.default",
        "aten.relu.default",
        "tvmq.ragged_attention.default",
    }
    assert calls["encode"].count("tvmq.ragged_attention.default") == 2
    assert calls["decode"].count("tvmq.cached_attention.default") == 2
    assert calls["decode"].count("tvmq.cross_attention.default") == 2
    assert calls["decode"].count("aten.linear.default") == 2 * (4 + 2 + 2) + 1
    names = {t for p in programs.values() for t in p.graph_signature.inputs_to_parameters.values()}
    assert names == {name for name, _ in model.named_parameters()}
    assert {info.name for info in tensors(model.config)} == {
        n for n in names if model.get_parameter(n).ndim == 2
    }


@pytest.mark.parametrize("zeros", [True, False])
def test_an_output_bias_of_zeros_is_left_out(zeros: bool) -> None:
    source = Tensors(make_model())
    if zeros:
        source.held["final_logits_bias"][:] = 0
    program = export(load(source))["decode"]
    linears = [node for node in program.graph.nodes if str(node.target) == "aten.linear.default"]
    assert [len(node.args) for node in linears] == [3] * (len(linears) - 1) + [2 if zeros else 3]
    assert ("final_logits_bias" in program.graph_signature.buffers) is not zeros


def test_exported_program_computes_the_same_at_other_sizes(exported: Exported) -> None:
    model = exported[0]
    programs = {name: program.module() for name, program in exported[1].items()}
    executor = TorchExecutor(model)
    ids, positions, offsets = (torch.tensor(v, dtype=torch.int32) for v in ([4, 0], [0, 1], [0, 2]))
    memory = list(programs["encode"](ids, positions, offsets))
    torch.testing.assert_close(memory, list(executor.encoder(ids, positions, offsets)))
    token, zero = torch.tensor([PAD, 3], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    caches = [torch.zeros(3, 9, 16) for _ in range(4)]
    logits = programs["decode"](
        token, zero, zero, torch.zeros(2, 9, dtype=torch.int32), offsets, caches, memory
    )
    session = executor.begin([[4, 0]], beams=2, max_new_tokens=9)
    torch.testing.assert_close(logits, session.logits(token.numpy(), int32(0, 1), int32(0, 0)))
    assert caches[0][:2, 0].abs().sum() > 0  # written in place


def test_replaced_weights_change_only_the_copy() -> None:
    model = load(Tensors(make_model()))
    table = model.get_parameter("model.shared.weight")
    before = table.clone()
    executor = TorchExecutor(model, weights={"model.shared.weight": np.zeros(table.shape, np.float32)})
    rows = int32(0)
    logits = executor.begin([[4, 0]], max_new_tokens=3).logits(int32(PAD), rows, rows)
    torch.testing.assert_close(logits[0], model.final_logits_bias)
    torch.testing.assert_close(table, before)
    with pytest.raises(InputError, match="no tensor nonsense"):
        TorchExecutor(model, weights={"nonsense": before.numpy()})
    with pytest.raises(InputError, match="replacement"):
        TorchExecutor(model, weights={"model.shared.weight": np.zeros((3, 3), np.float32)})


def test_stored_copies_are_ignored_when_equal() -> None:
    source = Tensors(make_model())
    assert "lm_head.weight" in source.held
    assert "model.decoder.embed_positions.weight" in source.held
    half = source.held["model.decoder.embed_positions.weight"].astype(np.float16)
    source.held["model.decoder.embed_positions.weight"] = half.astype(np.float32)
    load(source)
    source.held["lm_head.weight"][3, 3] += 1
    with pytest.raises(InputError, match=r"lm_head.weight differs from model.shared.weight"):
        load(source)


def test_table_stored_under_a_tied_name_only() -> None:
    source = Tensors(make_model())
    expected = source.held["model.shared.weight"]
    for name in ("model.shared.weight", "model.encoder.embed_tokens.weight", "lm_head.weight"):
        del source.held[name]
    del source.held["final_logits_bias"]
    model = load(source)
    np.testing.assert_array_equal(model.get_parameter("model.shared.weight").numpy(), expected)
    assert not model.final_logits_bias.any()


def test_every_misfitting_tensor_is_reported() -> None:
    source = Tensors(make_model())
    del source.held["model.encoder.layers.1.fc1.bias"]
    source.held["model.encoder.layers.2.fc1.bias"] = np.zeros(3, np.float32)
    source.held["model.decoder.layers.0.fc2.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(InputError) as caught:
        load(source)
    message = str(caught.value)
    assert "missing: model.encoder.layers.1.fc1.bias;" in message
    assert "unexpected: model.encoder.layers.2.fc1.bias;" in message
    assert "model.decoder.layers.0.fc2.weight is (2, 2), expected (16, 32)" in message


def test_learned_positions_are_refused() -> None:
    source = Tensors(make_model())
    source.held["model.encoder.embed_positions.weight"] = np.ones((40, 16), np.float32)
    with pytest.raises(InputError, match="sinusoidal"):
        load(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "mish"}, "'mish' is unknown; known: relu"),
        ({"encoder_attention_heads": 3}, "not divisible by 3 encoder heads"),
        ({"d_model": None, "eos_token_id": None}, "lacks d_model, eos_token_id"),
        ({"normalize_before": True}, "normalize_before=True is not supported"),
        ({"normalize_embedding": True}, "normalize_embedding=True is not supported"),
        ({"static_position_embeddings": False}, "static_position_embeddings=False is not supported"),
        ({"encoder_layers": -1}, "encoder_layers is -1"),
        ({"decoder_ffn_dim": "big"}, "decoder_ffn_dim is 'big'"),
        ({"pad_token_id": 50}, "pad_token_id is 50"),
        ({"eos_token_id": [0, 1]}, "expected one token id"),
        ({"decoder_vocab_size": 40}, "shared embeddings need equal"),
        ({"scale_embedding": 1}, "expected true or false"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    config = copy.deepcopy(make_model().config.to_dict()) | changes
    with pytest.raises(InputError, match=message):
        MarianConfig.from_dict(config)


def test_plan_tensors_know_their_block() -> None:
    found = {info.name: info for info in tensors(MarianConfig.from_dict(make_model().config.to_dict()))}
    assert len(found) == 1 + 2 * (4 + 2) + 2 * (4 + 4 + 2)
    blocks = {
        "model.shared": ("Emb", (50, 16)),
        "model.encoder.layers.0.self_attn.out_proj": ("Enc_ee", (16, 16)),
        "model.encoder.layers.1.fc1": ("Enc_ffn", (24, 16)),
        "model.decoder.layers.0.self_attn.q_proj": ("Dec_dd", (16, 16)),
        "model.decoder.layers.1.encoder_attn.k_proj": ("Dec_ed", (16, 16)),
        "model.decoder.layers.1.fc2": ("Dec_ffn", (16, 32)),
    }
    for name, expected in blocks.items():
        info = found[f"{name}.weight"]
        assert (info.block, info.shape) == expected
        assert info.is_embedding == (name == "model.shared")


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, tvmq.search; from tvmq.families import get_family; get_family({'model_type': 'marian'});"
        "bad = {'torch', 'tvm', 'transformers'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_families() -> None:
    assert get_family({"model_type": "marian"}).name == "marian"
    with pytest.raises(InputError, match="'bart'; known architectures: bert, distilbert, marian"):
        get_family({"model_type": "bart"})
    with pytest.raises(InputError, match="no model_type"):
        get_family({})


def test_bad_sources() -> None:
    executor = TorchExecutor(load(Tensors(make_model())))
    with pytest.raises(InputError, match="sentence 1 has 41 tokens"):
        executor.begin([[1], [1] * 41], max_new_tokens=3)
    with pytest.raises(InputError, match="sentence 0 has 0 tokens"):
        executor.begin([[]], max_new_tokens=3)
    with pytest.raises(InputError, match="0 to 49"):
        executor.begin([[50]], max_new_tokens=3)
    with pytest.raises(UsageError, match="40 positions"):
        executor.begin([[1]], max_new_tokens=41)
