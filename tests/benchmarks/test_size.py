# SPDX-License-Identifier: Apache-2.0
"""Every byte of a compiled folder is accounted for: listed, counted once, and in the right part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import size
from benchmarks.make_base import BaseShape, write_base
from relay_passes.bit_plan import BitPlan, BlockBits, WordBits
from tvmq.artifact import inspect, open_artifact
from tvmq.checkpoint import Checkpoint
from tvmq.compiler import compile_checkpoint
from tvmq.families import get_family
from tvmq.tensor_file import open_weights
from tvmq.word_bits import cluster_sizes

SHAPE = BaseShape(layers=1, width=32, ffn=64, heads=2, vocabulary=300)


def plan(model: Path) -> BitPlan:
    """Bits by word, and 2 bits for all other matrices."""
    family = get_family(Checkpoint.open(model).config)
    infos = family.tensors(family.read_config(Checkpoint.open(model).config))
    clusters = tuple(zip(cluster_sizes(SHAPE.vocabulary, 3, 2), (3, 2, 1), strict=True))
    words = WordBits(tensor=infos[0].name, block="Emb", clusters=clusters, quantizer="greedy")
    blocks = [BlockBits(tensor=i.name, block=i.block, bits=2, quantizer="greedy") for i in infos[1:]]
    return BitPlan(schema=1, blocks=tuple(blocks), words=(words,), source="test")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), shape=SHAPE)


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "tiny.tvmq"
    compile_checkpoint(model, path, plan=plan(model))
    return path


def test_every_file_is_listed_with_its_size(artifact: Path) -> None:
    files = {p.relative_to(artifact).as_posix(): p.stat().st_size for p in artifact.rglob("*") if p.is_file()}
    del files["manifest.json"]
    assert {name: info.size for name, info in open_artifact(artifact).manifest.files.items()} == files


def test_inspect_counts_the_arrays_of_the_weights_file(artifact: Path) -> None:
    arrays = open_weights(artifact / "weights.safetensors")
    facts = inspect(artifact)
    assert facts["size_bytes"] == sum(array.nbytes for array in arrays.values())
    planned = sum(block["params"] for block in facts["blocks"])
    vectors = sum(array.size for name, array in arrays.items() if ":" not in name)
    assert facts["fp32_bytes"] == 4 * (planned + vectors)


def test_what_is_not_stored(model: Path, artifact: Path) -> None:
    stored = open_weights(artifact / "weights.safetensors")
    taken = open_artifact(artifact).weights()
    assert taken.keys() - stored.keys() == {"positions", "model.shared.weight:order"}
    assert not [name for name in taken if "final_logits_bias" in name]  # all zero
    checkpoint = Checkpoint.open(model)
    for name in checkpoint.names():
        if len(checkpoint.shape(name)) == 1:
            np.testing.assert_array_equal(taken[name], checkpoint.tensor(name))
            assert taken[name].dtype == np.float32
    order, rank = (taken[f"model.shared.weight:{kind}"] for kind in ("order", "rank"))
    assert order[rank].tolist() == list(range(SHAPE.vocabulary))


def test_parts_add_up_to_the_folder(model: Path, artifact: Path) -> None:
    app = typer.Typer()
    app.command()(size.main)
    words = ["--model", str(model), "--artifact", str(artifact)]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert found == size.report(model, artifact)
    assert found["fp32_bytes"] == sum(4 * v.size for v in open_tensors(model))
    parts = found["parts"]
    assert found["artifact_bytes"] == sum(parts.values()) == tree_bytes(artifact)
    weights = sum(parts[name] for name in ("planes", "scales", "FP32 matrices", "vectors", "word order"))
    assert weights == inspect(artifact)["size_bytes"]
    assert parts["libraries"] == tree_bytes(artifact / "lib") - (artifact / "lib").stat().st_size
    assert min(parts[name] for name in parts if name != "FP32 matrices") > 0
    shown = CliRunner().invoke(app, words).output
    rows = ("FP32 checkpoint", *(name for name in size.PARTS if parts[name]), "artifact", "times smaller")
    assert all(f" {name} " in shown for name in rows)


def open_tensors(model: Path) -> list[np.ndarray]:
    checkpoint = Checkpoint.open(model)
    return [checkpoint.tensor(name) for name in checkpoint.names()]


def tree_bytes(folder: Path) -> int:
    return sum(place.stat().st_size for place in (folder, *folder.rglob("*")))
