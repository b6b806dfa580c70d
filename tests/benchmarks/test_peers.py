# SPDX-License-Identifier: Apache-2.0
"""Every float peer finds the translation of transformers' generate, and all keep a forced length."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.engines import Engine, Setup, build
from benchmarks.make_base import BaseShape, write_base

SHAPE = BaseShape(layers=2, width=128, ffn=256, heads=2, vocabulary=300)
BEAMS = (1, 4)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root = tmp_path_factory.mktemp("peers")
    return Setup(model=write_base(root / "base", seed=1, shape=SHAPE), work=root / "work")


@pytest.fixture(scope="module")
def original(setup: Setup) -> Engine:
    pytest.importorskip("transformers")
    return build("pytorch-fp32", setup)


def sources() -> list[list[int]]:
    rows = np.random.default_rng(0).integers(2, SHAPE.vocabulary - 1, size=(3, 9)).tolist()
    return [[*row, 0] for row in rows]


@pytest.mark.parametrize(
    ("name", "package"), [("onnxruntime-fp32", "onnxruntime"), ("ctranslate2-fp32", "ctranslate2")]
)
@pytest.mark.parametrize("beams", BEAMS)
def test_float_peer_equals_transformers(
    setup: Setup, original: Engine, name: str, package: str, beams: int
) -> None:
    pytest.importorskip(package)
    engine = build(name, setup)
    for source in sources():
        expected = original.translate(source, beams=beams, forced=7)[:6]
        # The seventh word is the forced end token in transformers and a free one elsewhere.
        assert engine.translate(source, beams=beams, forced=7)[:6] == expected


@pytest.mark.parametrize("name", ["onnxruntime-2bit", "onnxruntime-4bit", "ctranslate2-int8", "pytorch-int8"])
def test_quantized_peer_keeps_the_forced_length(setup: Setup, name: str) -> None:
    pytest.importorskip(name.split("-")[0].replace("pytorch", "transformers"))
    engine = build(name, setup)
    for beams in BEAMS:
        for source in sources():
            assert len(engine.translate(source, beams=beams, forced=11)) == 11


def test_unknown_engine_lists_the_known(setup: Setup) -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'fast' .*ctranslate2-int8"):
        build("fast", setup)
