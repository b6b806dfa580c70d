# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline against PyTorch on the dequantized weights; the IR after each phase."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from tvm import relax
from tvm_ffi import structural_hash

from targets import detect_host, get_target
from tvmq import pipeline
from tvmq.export import export_program
from tvmq.families import ops
from tvmq.frontend import import_program

WORDS, WIDTH = 70, 40


def seeded(module: nn.Module) -> nn.Module:
    """Random weights of a trained model's spread, biases and norms included."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    return module.eval().requires_grad_(False)


def state(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def reference(module: nn.Module, weights: Mapping[str, NDArray], *inputs: NDArray) -> NDArray:
    """PyTorch with dequantized weights."""
    replaced = {name: torch.from_numpy(value) for name, value in weights.items()}
    with torch.inference_mode():
        return torch.func.functional_call(module, replaced, tuple(map(torch.from_numpy, inputs))).numpy()


class Encoder(nn.Module):
    """A post-norm layer between a scaled embedding and a tied head, over sentences without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(16, WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.attn_norm, self.ffn_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 72), nn.Linear(72, WIDTH, bias=False)
        self.register_buffer("head_bias", torch.linspace(-1, 1, WORDS))

    def forward(self, ids: Tensor, places: Tensor, offsets: Tensor) -> Tensor:
        x = self.embed(ids) * 3.0 + self.places(places)
        attended = ops.ragged_attention(self.q(x), self.k(x), self.v(x), offsets, 4)
        x = self.attn_norm(x + self.out(attended))
        x = self.ffn_norm(x + self.fc2(torch.relu(self.fc1(x))))
        return F.linear(x, self.embed.weight, self.head_bias)


ENCODER_PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "words": (
        {
            "embed.weight": ((11, 4), (33, 3), (26, 2)),
            "places.weight": 8,
            **{
                f"{name}.weight": bits
                for name, bits in zip(("q", "k", "v", "out"), (3, 2, 4, 3), strict=True)
            },
            "fc1.weight": 3,
            "fc2.weight": 32,
        },
        {},
    ),
    "groups": (
        {
            "embed.weight": 3,
            **{f"{name}.weight": 3 for name in ("q", "k", "v", "fc2")},
            "out.weight": 32,
        },
        {"group_size": 8, "offset": True, "scale_dtype": "float32"},
    ),
    "pow2": (
        {"embed.weight": ((11, 4), (59, 3)), "q.weight": 3, "k.weight": 2, "fc2.weight": 3},
        {"group_size": 8, "offset": True, "scale_dtype": "pow2", "outliers": 3.0},
    ),
    "float": ({}, {}),
}


def sentences(rows: int) -> tuple[NDArray, NDArray, NDArray]:
    """ids, places and offsets of ``rows`` tokens in at most two sentences."""
    ids = (np.arange(rows, dtype=np.int32) * 13 + 5) % WORDS
    cut = max(1, rows - 2)
    places = np.concatenate([np.arange(cut), np.arange(rows - cut)]).astype(np.int32)
    return ids, places, np.array([0, cut, rows] if cut < rows else [0, rows], np.int32)


@cache
def encoder_graphs() -> tuple[nn.Module, Any]:
    module = seeded(Encoder())
    rows, starts = Dim("rows", min=1), Dim("starts", min=2)
    inputs = tuple(map(torch.from_numpy, sentences(5)))
    return module, import_program(
        export_program(module, inputs, ({0: rows}, {0: rows}, {0: starts})), "encode"
    )


@pytest.fixture(scope="module")
def encoder(lowered: Any, make_plan: Any) -> Callable[..., Any]:
    """The encoder of a plan, compiled once."""

    @cache
    def make(kind: str, tables: str, level: str | None = None) -> Any:
        module, graphs = encoder_graphs()
        bits, options = ENCODER_PLANS[kind]
        return lowered(graphs, make_plan(bits, **options), state(module), tables, level=level)

    return make


@pytest.mark.parametrize(
    ("kind", "tables"),
    [
        ("words", "int8"),
        ("words", "exact"),
        ("groups", "int8"),
        ("groups", "exact"),
        ("pow2", "int8"),
        ("float", "exact"),
    ],
)
def test_encoder_equals_torch_on_dequantized_weights(
    encoder: Any, close: Any, kind: str, tables: str
) -> None:
    """Embedding, positions, shared tables, ragged attention, fused norms, tied head; 1, 2 and 5 tokens.

    Equal layers share a kernel whatever their bits.
    """
    program = encoder(kind, tables)
    assert set(program.dequantized) == {n for n, b in ENCODER_PLANS[kind][0].items() if b != 32}
    for rows in (1, 2, 5):
        inputs = sentences(rows)
        (found,) = program("encode", *inputs)
        close(found, reference(encoder_graphs()[0], program.dequantized, *inputs), tables)


def test_the_fallback_level_agrees_with_the_best(encoder: Any) -> None:
    """Sums of integers are exact; only float sums round differently."""
    best, fallback = detect_host()[0], detect_host()[-1]
    if best == fallback:
        pytest.skip("this CPU runs one level only")
    programs = encoder("words", "int8", fallback), encoder("words", "int8")
    found, expected = (program("encode", *sentences(5))[0] for program in programs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.ptp(expected))


class PreNorm(nn.Module):
    """A user's block: pre-norm, torch's attention, products by matrices, gelu, what cannot be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.plain = nn.LayerNorm(32, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up = nn.Parameter(torch.zeros(32, 56))
        self.down = nn.Linear(56, 32)
        self.register_buffer("shift", torch.linspace(-1, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        *lead, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(*lead, 3, 4, 8).unbind(-3)
        heads = (part.transpose(-3, -2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(*heads).transpose(-3, -2).reshape(*lead, width)
        x = x + self.out(attended)
        x = x + self.down(F.gelu(self.norm2(x) @ self.up))
        return self.plain(x + self.shift * F.relu(self.out(x) + torch.ones(32)))


@cache
def prenorm_graphs(rank: int) -> tuple[nn.Module, Any]:
    module = seeded(PreNorm())
    shapes: Any = {0: Dim("b", min=1), 1: Dim("t", min=1)} if rank == 3 else {0: Dim("t", min=1)}
    x = torch.zeros((3, 5, 32) if rank == 3 else (5, 32))
    return module, import_program(export_program(module, (x,), (shapes,)), "forward")


@pytest.mark.parametrize(("rank", "tables"), [(2, "exact"), (3, "int8")])
def test_a_users_block_equals_torch_on_dequantized_weights(
    lowered: Any, make_plan: Any, close: Any, rank: int, tables: str
) -> None:
    """Leading axes, a weight used twice, a [inputs, outputs] matrix, values that several read."""
    module, graphs = prenorm_graphs(rank)
    plan = make_plan({"qkv.weight": 4, "out.weight": 3, "up": 3, "down.weight": 32})
    program = lowered(graphs, plan, state(module), tables)
    assert program.dequantized["up"].shape == (32, 56)
    generator = np.random.default_rng(1)
    for lead in [(1, 1), (2, 3), (1, 5)] if rank == 3 else [(1,), (2,), (5,)]:
        x = generator.standard_normal((*lead, 32), np.float32)
        (found,) = program("forward", x)
        close(found, reference(module, program.dequantized, x), tables)


def test_every_pass_gives_well_formed_modules(make_plan: Any) -> None:
    module = encoder_graphs()[1]
    bits, options = ENCODER_PLANS["words"]
    plan, target = make_plan(bits, **options), get_target("x86_64_v3")
    with target.to_tvm():
        for phase in [*pipeline.common_phases(plan), *pipeline.target_phases(plan, target, "int8")]:
            for step in phase.passes:
                before = structural_hash(module)
                after = step(module)
                assert structural_hash(module) == before, f"{step} changed its input"
                relax.analysis.well_formed(after)
                module = after


def test_dump_writes_every_phase(tmp_path: Path, make_plan: Any) -> None:
    """One file a phase, Python text; without kernels, TVM reads it back as the same graph."""
    _, graphs = encoder_graphs()
    bits, options = ENCODER_PLANS["words"]
    plan, target = make_plan(bits, **options), get_target("x86_64_v3")
    phases = [*pipeline.common_phases(plan), *pipeline.target_phases(plan, target, "int8")]
    pipeline.run(graphs, phases, target.to_tvm(), tmp_path)
    names = ["0-imported", "1-annotated", "2-lowered-x86_64_v3", "3-fused-x86_64_v3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.py" for name in names]
    texts = [(tmp_path / f"{name}.py").read_text(encoding="utf-8") for name in names]
    assert [sum(call in text for text in texts) for call in ("R.matmul(", "tvmq.linear", "def lut_gemm")] == [
        2,
        1,
        2,
    ]
    for text in texts:
        assert text.endswith("\n")
        ast.parse(text)
    for text, phase in zip(texts[:2], phases, strict=False):
        graphs = pipeline.run(graphs, [phase], target.to_tvm())
        read = tvm.script.from_source(text)
        assert {v.name_hint for v in read.functions} == {v.name_hint for v in graphs.functions}
        assert len(read["encode"].params) == len(graphs["encode"].params)


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: Any, make_plan: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _, graphs = encoder_graphs()
    plan = make_plan({})
    pipeline.run(graphs, pipeline.common_phases(plan), get_target("x86_64_v3").to_tvm())
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_cannot_be_carried_out_is_refused(lowered: Any, make_plan: Any) -> None:
    """A planned matrix that is also read in another way would ship twice."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.fc.weight.sum()

    module = seeded(Both())
    graphs = import_program(export_program(module, (torch.zeros(2, 8),)), "forward")
    with pytest.raises(ValueError, match=r"fc\.weight is still a float parameter of forward"):
        lowered(graphs, make_plan({"fc.weight": 2}), state(module))
