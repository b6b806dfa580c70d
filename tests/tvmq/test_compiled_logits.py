# SPDX-License-Identifier: Apache-2.0
"""Whole artifacts against PyTorch on the dequantized weights: the same logits at every decode step.

Libraries that ship only search; here ``decode``, which gives logits, is compiled in too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tvmq
from tvmq.options import CompileOptions, PlanOptions

MODEL = Path(__file__).resolve().parents[2] / "models" / "nmt-en-de"
PAPER = PlanOptions(preset="chung2020-2.5-1.8-3.7", quantizer="alternating")
PLANS = {
    "fp32": PlanOptions(preset="fp32"),
    "3-bit": PlanOptions(preset="3-bit"),
    "row scales": PlanOptions(preset="3-bit", group_size=0, scale_dtype="float32"),
    "offsets": PlanOptions(preset="2-bit", group_size=32, offset=True),
    "by word": PAPER,
    "by word, groups": PlanOptions(bits=2.6),
    "mixed": PlanOptions(preset="4-bit", overrides=(("Dec_ffn", 1), ("*.v_proj.weight", 2), ("Enc_ffn", 32))),
}
STEPS = 6

Compare = Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]]


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """``compare(model, plan, "int8", sources)``: cosine and relative error of the logits of every step."""

    def run(
        model: Path, plan: PlanOptions, tables: Any, sources: Sequence[Sequence[int]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        path = tmp_path_factory.mktemp("logits") / "x.tvmq"
        with pytest.MonkeyPatch.context() as patch:
            add_decode(patch)
            options = CompileOptions(plan=plan, tables=tables, isa_levels=(tvmq_level(),))
            tvmq.compile(model, path, options)
        found = compiled_logits(path, sources)
        expected = torch_logits(model, plan, sources, found[1])
        a, b = found[0].astype(np.float64), expected.astype(np.float64)
        norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        return (a * b).sum(-1) / (norms[0] * norms[1]), np.linalg.norm(a - b, axis=-1) / norms[1]

    return run


def tvmq_level() -> str:
    from targets import detect_host

    return detect_host()[0]


def add_decode(patch: pytest.MonkeyPatch) -> None:
    """Makes ``tvmq.compile`` build ``decode`` besides what ships."""
    import tvm

    from tvmq import graphs

    shipped = graphs.translation_module

    def with_decode(programs: Any, banned: int, beams: int) -> Any:
        module = shipped(programs, banned, beams)
        module.update(tvm.IRModule({"decode": graphs.logits_module(programs)["decode"]}))
        return module

    patch.setattr(graphs, "translation_module", with_decode)


def compiled_logits(
    path: Path, sources: Sequence[Sequence[int]]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Greedy decoding with the artifact: (logits [steps, m, V], tokens fed [steps, m])."""
    from tvmq.loading import open_checked
    from tvmq.translation import TranslationModel

    opened = open_checked(path, threads=1, isa=None)
    model = TranslationModel(opened.artifact, opened.library)
    session = model.begin(sources, rows=len(sources), steps=STEPS)
    rows = np.arange(len(sources), dtype=np.int32)
    tokens = np.full(len(sources), model.start_id, np.int32)
    logits, fed = [], []
    for _ in range(STEPS):
        fed.append(tokens)
        logits.append(session.logits(tokens, rows, rows).copy())
        tokens = logits[-1].argmax(-1).astype(np.int32)
    return np.stack(logits), np.stack(fed)


def torch_logits(
    model: Path, plan: PlanOptions, sources: Sequence[Sequence[int]], fed: NDArray[np.int32]
) -> NDArray[np.float32]:
    """The same steps in PyTorch, every planned tensor replaced by what its planes stand for."""
    from tvmq.checkpoint import Checkpoint
    from tvmq.families import get_family
    from tvmq.families.executor import TorchExecutor
    from tvmq.quantization import quantize_model

    checkpoint = Checkpoint.open(model)
    quantized = quantize_model(checkpoint, tvmq.plan(model, plan), checkpoint.frequencies())
    weights = {name: planes.dequantize() for name, planes in quantized.items()}
    loaded = get_family(checkpoint.config).load(checkpoint)
    session = TorchExecutor(loaded, weights=weights).begin(sources, max_new_tokens=STEPS)
    rows = np.arange(len(sources), dtype=np.int32)
    return np.stack([session.logits(tokens, rows, rows).numpy() for tokens in fed])


TINY_SOURCES = [[40, 41, 100, 7, 0], [319, 5, 0], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 0]]


@pytest.mark.parametrize("plan", PLANS)
def test_int8_tables(compare: Compare, tiny_model: Path, plan: str) -> None:
    cosine, _ = compare(tiny_model, PLANS[plan], "int8", TINY_SOURCES)
    assert cosine.min() > 0.9995


@pytest.mark.parametrize("plan", ["row scales", "by word, groups", "offsets"])
def test_exact_tables(compare: Compare, tiny_model: Path, plan: str) -> None:
    _, error = compare(tiny_model, PLANS[plan], "exact", TINY_SOURCES)
    assert error.max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("plan", [PLANS["3-bit"], PAPER], ids=["3-bit", "paper"])
@pytest.mark.parametrize("tables", ["int8", "exact"])
def test_the_embedded_model(compare: Compare, plan: PlanOptions, tables: str) -> None:
    from tvmq.tokenizer import MarianTokenizer

    tokenizer = MarianTokenizer.open(MODEL)
    lines = (MODEL / "sample" / "dev.tsv").read_text(encoding="utf-8").splitlines()[:6]
    sources = [tokenizer.encode(line.partition("\t")[0]) for line in lines]
    cosine, error = compare(MODEL, plan, tables, sources)
    print(f"cosine min {cosine.min():.6f} mean {cosine.mean():.6f}, relative error max {error.max():.2e}")
    if tables == "int8":
        assert cosine.min() > 0.9995
    else:
        assert error.max() < 1e-5
