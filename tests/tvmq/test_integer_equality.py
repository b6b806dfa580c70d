# SPDX-License-Identifier: Apache-2.0
"""Whole bodies in mode block-int: every ISA level gives the bits that the kernels' references give.

``Walk`` reads an artifact's arrays and follows the layers of a BERT-like encoder with the NumPy meaning of
each kernel; nothing of the compiler is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits, decode_plan
from relay_passes.lower_block_int import BIAS_SHIFT
from schedules import (
    block_attention,
    block_dequantize,
    block_gather,
    block_norm,
    block_quantize,
    dequant_gemm,
)
from schedules.block_attention import BlockAttentionSpec
from schedules.block_format import BlockLayout
from schedules.block_norm import BlockNormSpec, NormConstants
from schedules.block_quantize import BlockQuantizeSpec
from schedules.dequant_gemm import DequantSpec
from targets import detect_host
from tvmq.artifact import open_artifact
from tvmq.checkpoint import Checkpoint
from tvmq.compiler import compile_checkpoint
from tvmq.encoding import EncodingModel
from tvmq.families import get_family
from tvmq.model_plan import plan_model
from tvmq.options import PlanOptions, PoolingOptions
from tvmq.text_tokenizer import Tokens
from tvmq.vm import set_threads

pytestmark = pytest.mark.slow

Blocks = tuple[NDArray[np.int8], NDArray[np.int32]]
Fine = tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.int8]]
"""Blocks with the fine part that norms give."""
Wide = tuple[NDArray[np.int32], NDArray[np.int32]]
LENGTHS = (5, 1, 22, 2)
SIZES: dict[str, dict[str, Any]] = {
    "BertModel": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
    "RobertaModel": {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "hidden_act": "gelu_new",
    },
    "DistilBertModel": {"dim": 96, "n_heads": 3, "hidden_dim": 128},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "8 bits": ("BertModel", {}),
    "by word": ("BertModel", {"preset": "3-bit", "group_size": 0}),
    "groups": ("RobertaModel", {"preset": "4-bit", "group_size": 64}),
    "rows": ("DistilBertModel", {"preset": "4-bit", "activation_block": 0}),
}
WORDS = ((40, 8), (60, 3), (28, 1))
LEVELS = detect_host()
BUILT = {"8 bits": LEVELS, "groups": LEVELS, "by word": LEVELS[:1], "rows": LEVELS[:1]}
"""The best level alone where the kernels differ in nothing that is written per level."""


class Walk:
    """The NumPy meaning of a compiled encoder, from ids to the last hidden states."""

    def __init__(self, artifact: Path, model: Path, stored_levels: Callable[..., NDArray[np.int8]]) -> None:
        self.stored_levels = stored_levels
        self.arrays = {name: np.asarray(a) for name, a in open_artifact(artifact).weights().items()}
        self.plan = decode_plan((artifact / "plan.json").read_bytes())
        self.entries = {entry.tensor: entry for entry in self.plan.entries()}
        checkpoint = Checkpoint.open(model)
        family = get_family(checkpoint.config)
        self.config = family.read_config(checkpoint.config)
        self.shapes = family.shapes(self.config)

    def hidden(self, texts: Sequence[Tokens]) -> NDArray[np.float32]:
        """float32[tokens, width] of texts one after the other."""
        config, names = self.config, self.config.names
        offsets = np.cumsum([0, *(len(text) for text in texts)])
        places = np.concatenate([np.arange(len(text)) for text in texts]) + config.first_position
        ids = {names.words: [i for text in texts for i in text.ids], names.positions: places}
        if config.types:
            ids[names.types] = [i for text in texts for i in text.types]
        rows = [self.rows(f"{config.path(name)}.weight", np.asarray(i)) for name, i in ids.items()]
        wide = block_gather.reference([levels for levels, _ in rows], [e for _, e in rows])
        norm = config.path(names.embedding_norm)
        x = self.norm(norm, wide, self.reads(names.query, 0))
        for i in range(config.layers):
            q, k, v = (self.linear(config.path(n, i), x[:2]) for n in (names.query, names.key, names.value))
            attended = self.attention(q, k, v, offsets)
            out = config.path(names.attention_out, i)
            block = self.requantized(attended, self.layout(out), source_groups=config.heads)
            before, norm = norm, config.path(names.attention_norm, i)
            y = self.norm(norm, self.linear(out, block), self.reads(names.up, i), x, before)
            up, down = config.path(names.up, i), config.path(names.down, i)
            wide, exponents = self.linear(up, y[:2], relu=config.activation == "relu")
            activation = "" if config.activation == "relu" else config.activation
            hidden = (wide, exponents[:, None])
            block = self.requantized(hidden, self.layout(down), activation=activation)
            before, norm = norm, config.path(names.ffn_norm, i)
            x = self.norm(norm, self.linear(down, block), self.reads(names.query, i + 1), y, before)
        layout = self.reads(names.query, config.layers)
        return block_dequantize.reference(*x, self.arrays[f"{norm}:channels"], layout)

    def layout(self, path: str) -> BlockLayout:
        """Of what a matrix reads."""
        entry = self.entries[f"{path}.weight"]
        assert isinstance(entry, BlockBits)
        width = self.shapes[f"{path}.weight"][1]
        return BlockLayout.of(width, entry.activation_block, entry.activation_bits)

    def reads(self, name: str, layer: int) -> BlockLayout:
        """Of what a matrix of a layer reads; after the last one what nobody reads."""
        if layer < self.config.layers:
            return self.layout(self.config.path(name, layer))
        return BlockLayout.of(self.config.width, 64)

    def rows(self, tensor: str, ids: NDArray[np.integer]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Levels int8[m, width] and exponents int8[m] of the rows of some words."""
        if f"{tensor}:rank" not in self.arrays:
            levels, exponents = self.table(tensor)
            return levels[ids], exponents[ids]
        entry = self.entries[tensor]
        assert isinstance(entry, WordBits)
        parts = [self.table(f"{tensor}:{i}") for i in range(len(entry.clusters))]
        levels, exponents = (np.concatenate(group) for group in zip(*parts, strict=True))
        places = self.arrays[f"{tensor}:rank"].astype(int)[ids]
        return levels[places], exponents[places]

    def table(self, prefix: str) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        exponents = self.arrays[f"{prefix}:row_exponents"]
        if f"{prefix}:row_levels" in self.arrays:
            return self.arrays[f"{prefix}:row_levels"], exponents
        bits = np.unpackbits(self.arrays[f"{prefix}:row_bits"], axis=2, bitorder="little")
        signs = bits.astype(np.int16) * 2 - 1
        levels = (signs * self.arrays[f"{prefix}:row_alphas"][:, :, None]).sum(axis=1)
        return levels.astype(np.int8), exponents

    def linear(self, path: str, x: Blocks, *, relu: bool = False) -> Wide:
        tensor, entry, layout = f"{path}.weight", self.entries[f"{path}.weight"], self.layout(path)
        n, k = self.shapes[tensor]
        shifts = self.arrays.get(f"{tensor}:group_shifts")
        groups = 1 if shifts is None else shifts.shape[1]
        assert isinstance(entry, BlockBits)
        spec = DequantSpec(
            n=n,
            k=k,
            bits=entry.bits,
            groups=max(groups, layout.groups),
            x_groups=layout.groups,
            w_groups=groups,
            bias=True,
            bias_shift=BIAS_SHIFT,
            activation="relu" if relu else "",
        )
        levels = self.stored_levels(self.arrays, tensor, (n, k))
        row_exponents = self.arrays[f"{tensor}:top"][0] - self.arrays[f"{tensor}:row_shifts"].astype(int)
        return dequant_gemm.reference(
            *x,
            levels,
            row_exponents.reshape(-1)[:n].astype(np.int8),
            spec,
            None if shifts is None else shifts.transpose(0, 2, 1).reshape(-1, groups)[:n],
            self.arrays[f"{path}.bias:integer"].reshape(-1)[:n],
        )

    def norm(self, path: str, y: Wide, layout: BlockLayout, x: Fine | None = None, before: str = "") -> Fine:
        """Mantissas, exponents and fine part; ``x`` of the norm ``before`` is added."""
        parts = {part: self.arrays[f"{path}:{part}"] for part in ("gamma", "beta", "constants")}
        residual = None
        if x is not None:
            residual = (*x, self.arrays[f"{before}:channels"])
        width = self.config.width
        blocks = None if x is None else BlockLayout.of(width, width // x[1].shape[1])
        spec = BlockNormSpec(layout=layout, residual=blocks)
        return block_norm.reference(*y, NormConstants(**parts), spec, residual)

    def attention(self, q: Wide, k: Wide, v: Wide, offsets: NDArray[np.integer]) -> Wide:
        config = self.config
        spec = BlockAttentionSpec(heads=config.heads, width=config.width, longest=config.max_tokens)
        exponents = (q[1], k[1], v[1])
        return block_attention.reference(q[0], k[0], v[0], exponents, offsets.astype(np.int32), spec)

    @staticmethod
    def requantized(y: Wide, layout: BlockLayout, **facts: Any) -> Blocks:
        return block_quantize.reference(*y, BlockQuantizeSpec(layout=layout, **facts))


def with_hidden(patch: pytest.MonkeyPatch) -> None:
    """Makes ``tvmq compile`` build ``hidden`` besides what ships."""
    import tvm

    from tvmq import encoder_graphs

    made = encoder_graphs.encoder_module

    def extended(programs: Any, pooling: Any) -> Any:
        module = made(programs, pooling)
        module.update(tvm.IRModule({"hidden": encoder_graphs.hidden_module(programs)["hidden"]}))
        return module

    patch.setattr(encoder_graphs, "encoder_module", extended)


def planned(model: Path, options: dict[str, Any], *, words: bool) -> BitPlan:
    """The plan of a case; ``words`` gives the word table bits by word."""
    plan = plan_model(model, PlanOptions(mode="block-int", **options)).plan
    if not words:
        return plan
    (table,) = [entry for entry in plan.blocks if "word_embeddings" in entry.tensor]
    return replace(
        plan,
        words=(table.by_word(WORDS),),
        blocks=tuple(entry for entry in plan.blocks if entry != table),
    )


def texts() -> list[Tokens]:
    """Texts of ``LENGTHS`` tokens; types of both kinds."""
    rng = np.random.default_rng(3)
    return [
        Tokens(ids=rng.integers(0, 128, n).tolist(), types=[int(i > n // 2) for i in range(n)])
        for n in LENGTHS
    ]


class Case:
    """One compiled model, what its walk gives for ``texts``, and its name."""

    def __init__(self, name: str, encoder_model: Callable[..., Path], folder: Path, stored: Any) -> None:
        architecture, options = CASES[name]
        self.name, self.model = name, encoder_model(architecture, **SIZES[architecture])
        self.path = folder / "x.tvmq"
        with pytest.MonkeyPatch.context() as patch:
            with_hidden(patch)
            compile_checkpoint(
                self.model,
                self.path,
                plan=planned(self.model, options, words=name == "by word"),
                frequencies=np.arange(128) * 7919 % 1000,
                isa_levels=BUILT[name],
                pooling=PoolingOptions(kind="cls", normalize=False),
            )
        self.texts = texts() if "Bert" in architecture and "Distil" not in architecture else plain_texts()
        self.walked = Walk(self.path, self.model, stored).hidden(self.texts)

    def run(self, function: str, texts: Sequence[Tokens], level: str) -> NDArray[np.float32]:
        return EncodingModel(open_artifact(self.path), f"lib/{level}.so").run(function, texts)


def plain_texts() -> list[Tokens]:
    """The same without types."""
    return [replace(text, types=[0] * len(text)) for text in texts()]


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest,
    encoder_model: Callable[..., Path],
    tmp_path_factory: Any,
    stored_levels: Any,
) -> Case:
    return Case(request.param, encoder_model, tmp_path_factory.mktemp("integers"), stored_levels)


def test_every_level_gives_the_walks_bits(case: Case) -> None:
    """All hidden states, and the first token's as ``embed`` gives it."""
    first = case.walked[np.cumsum([0, *LENGTHS[:-1]])]
    for level in BUILT[case.name]:
        found = case.run("hidden", case.texts, level)
        assert found.tobytes() == case.walked.tobytes(), level
        assert case.run("embed", case.texts, level).tobytes() == first.tobytes(), level


def test_batches_and_threads_change_nothing(case: Case) -> None:
    level = LEVELS[0]
    parts = [case.walked[a:b] for a, b in pairwise(np.cumsum([0, *LENGTHS]))]
    try:
        for threads in (1, 2):
            set_threads(threads)
            for order in ([0], [1], [2], [3], [3, 2], [2, 0, 1], [1, 2, 3, 0] * 3):
                found = case.run("hidden", [case.texts[i] for i in order], level)
                assert found.tobytes() == np.concatenate([parts[i] for i in order]).tobytes()
    finally:
        set_threads(1)


def test_close_to_fp32(case: Case) -> None:
    """Hidden states of 8 bits by tokens, few bits on the whole."""
    found, wanted = case.walked.astype(np.float64), float_states(case)
    cosines = (found * wanted).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))
    print(f"{case.name}: cosine min {cosines.min():.5f} mean {cosines.mean():.5f}")
    if case.name == "8 bits":
        assert cosines.min() > 0.999
    else:
        assert cosines.mean() > 0.9


@torch.inference_mode()
def float_states(case: Case) -> NDArray[np.float64]:
    from tvmq.families.encoder import Body

    checkpoint = Checkpoint.open(case.model)
    model = get_family(checkpoint.config).load(checkpoint)
    columns = [
        [i for text in case.texts for i in text.ids],
        [model.config.first_position + i for text in case.texts for i in range(len(text))],
        np.cumsum([0, *LENGTHS]).tolist(),
        *([[i for text in case.texts for i in text.types]] if model.config.types else []),
    ]
    inputs = [torch.tensor(column, dtype=torch.int32) for column in columns]
    return Body(model)(*inputs).numpy().astype(np.float64)
