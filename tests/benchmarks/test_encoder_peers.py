# SPDX-License-Identifier: Apache-2.0
"""Every float peer computes what transformers computes, alone and in padded batches; int8 ones nearly so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.encoder_choice import Choice, choose, fastest_peer
from benchmarks.encoder_engines import Batch, EncoderSetup, build, disk_bytes, pad, prepare
from benchmarks.encoder_rows import rows_of
from benchmarks.make_bert import BertShape, write_bert

SHAPE = BertShape(layers=2, width=64, ffn=128, heads=2, vocabulary=300, positions=40)
ARCHITECTURES = ("BertModel", "BertForSequenceClassification")
FLOAT = ("openvino-fp32", "onnxruntime-fp32", "ctranslate2-fp32", "pytorch-fp32")
INT8 = ("openvino-int8", "onnxruntime-int8", "ctranslate2-int8", "pytorch-int8")
Make = Callable[..., Path]


def texts(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.integers(5, 128, size=length).tolist()) for length in (7, 1, 20, 12))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert") / "base", shape=SHAPE)


def peer_setup(model: Path, work: Path) -> EncoderSetup:
    return EncoderSetup(model=model, work=work, calibration=tuple(map(tuple, texts(1))))


def expected(setup: EncoderSetup, batch: Batch) -> np.ndarray:
    """Text by text, with transformers' own heads and the mean written out."""
    import torch
    import transformers

    name = "AutoModel" if setup.task == "embed" else "AutoModelForSequenceClassification"
    model = getattr(transformers, name).from_pretrained(setup.model).eval()
    rows = []
    for ids in batch:
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([ids]))
        if setup.task == "embed":
            row = output.last_hidden_state[0].mean(0).numpy()
            rows.append(row / np.linalg.norm(row))
        else:
            rows.append(output.logits[0].numpy())
    return np.stack(rows)


def require(name: str) -> None:
    for package in {"openvino": ("openvino", "nncf")}.get(name.partition("-")[0], (name.partition("-")[0],)):
        pytest.importorskip({"pytorch": "transformers"}.get(package, package))


@pytest.mark.parametrize("name", FLOAT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float_peer_is_transformers(encoder_model: Make, work: Path, architecture: str, name: str) -> None:
    require(name)
    setup = peer_setup(encoder_model(architecture), work / architecture)
    batch = texts(0)
    wanted = expected(setup, batch)
    engine = build(name, setup)
    np.testing.assert_allclose(engine.run(batch), wanted, atol=1e-5)
    for ids, row in zip(batch, wanted, strict=True):
        np.testing.assert_allclose(engine.run((ids,)), row[None], atol=1e-5)


@pytest.mark.parametrize("name", INT8)
def test_int8_peer_is_close_and_smaller(base: Path, work: Path, name: str) -> None:
    require(name)
    setup = peer_setup(base, work / "base")
    batch = texts(0)
    rows, wanted = build(name, setup).run(batch), expected(setup, batch)
    assert np.abs(rows - wanted).max() > 1e-6  # it does compute in int8
    cosines = (rows * wanted).sum(1) / np.linalg.norm(rows, axis=1)
    assert cosines.min() > 0.9
    assert cosines.mean() > 0.98
    if name != "pytorch-int8":
        assert disk_bytes(name, setup) < 0.8 * disk_bytes("pytorch-fp32", setup)


def test_known_shapes_change_nothing(base: Path, work: Path) -> None:
    require("openvino-fp32")
    setup = peer_setup(base, work / "base")
    batch = texts(0)
    known = build("openvino-fp32", replace(setup, shapes=((4, 20), (1, 7))))
    np.testing.assert_allclose(known.run(batch), build("openvino-fp32", setup).run(batch), atol=1e-5)
    np.testing.assert_allclose(known.run(batch[:1]), expected(setup, batch[:1]), atol=1e-5)


def test_quantizing_beforehand_needs_calibration_and_depends_on_it(base: Path, work: Path) -> None:
    require("openvino-int8")
    setup = peer_setup(base, work / "base")
    with pytest.raises(ValueError, match="needs calibration texts"):
        prepare("openvino-int8", replace(setup, calibration=(), work=work / "none"))
    other = replace(setup, calibration=tuple(map(tuple, texts(2))))
    assert setup.calibrated("openvino-int8") != other.calibrated("openvino-int8")


def test_rows_come_in_the_order_of_the_texts(encoder_model: Make, work: Path) -> None:
    require("pytorch-fp32")
    setup = peer_setup(encoder_model("BertModel"), work / "BertModel")
    batch = texts(0)
    rows = rows_of(Choice(engine="pytorch-fp32", setup=setup), ["unused"] * 4, batch)
    np.testing.assert_allclose(rows, expected(setup, batch), atol=1e-5)


def test_artifact_gives_the_rows_of_its_checkpoint(
    encoder_model: Make, compiled_encoder: Make, work: Path
) -> None:
    require("pytorch-fp32")
    for architecture in ARCHITECTURES:
        setup = peer_setup(encoder_model(architecture), work / architecture)
        ours = replace(setup, artifact=compiled_encoder(architecture))
        batch = texts(0)
        np.testing.assert_allclose(build("tvmq", ours).run(batch), expected(setup, batch), atol=1e-4)


def test_padding_is_masked() -> None:
    ids, mask = pad(((7, 8), (9, 9, 9)), 1)
    assert ids.tolist() == [[7, 8, 1], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_choice_of_engines(base: Path, work: Path) -> None:
    import typer

    setup = peer_setup(base, work)
    paths = [Path("a.tvmq"), Path("b.tvmq")]
    found = choose(setup, artifacts=paths, labels=["x", "y"], only=["tvmq", "pytorch-int8"], skip=[])
    assert list(found) == ["x", "y", "pytorch-int8"]
    assert [choice.setup.artifact for choice in found.values()] == [*paths, None]
    assert fastest_peer(found, {"x": 1.0, "y": 2.0, "pytorch-int8": 3.0}) == "pytorch-int8"
    for wrong, message in (
        ({"only": ["fast"]}, "unknown engine 'fast'"),
        ({"only": ["tvmq"], "artifacts": []}, "needs --artifact PATH"),
        ({"labels": ["x"]}, "one --artifact-label per --artifact"),
    ):
        arguments = {"artifacts": paths, "labels": [], "only": [], "skip": [], **wrong}
        with pytest.raises(typer.BadParameter, match=message):
            choose(setup, **arguments)


def test_unknown_engine_lists_the_known(base: Path, work: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'fast' .*openvino-int8"):
        build("fast", peer_setup(base, work))
