# SPDX-License-Identifier: Apache-2.0
"""Calibration of a tiny model: equal to sentence by sentence sums, whatever the processes; its file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tvmq import calibration as module
from tvmq.calibration import LOOKUP, Calibration, calibrate
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError, UsageError
from tvmq.families import get_family
from tvmq.samples import Sample, Samples
from tvmq.tensor_file import TensorFile, write_weights
from tvmq.triangles import pack_triangle, unpack_triangle

TABLE = "model.shared.weight"
QUERY, KEY = (f"model.encoder.layers.1.self_attn.{part}_proj.weight" for part in "qk")
CROSS = [f"model.decoder.layers.{i}.encoder_attn.{part}_proj.weight" for i in (0, 1) for part in "kv"]


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = np.random.default_rng(5)

    def side() -> tuple[int, ...]:
        return (*rng.integers(1, 300, int(rng.integers(1, 14))).tolist(), 0)

    return Samples([Sample(source=side(), target=side()) for _ in range(23)])


@pytest.fixture(scope="module")
def made(tiny_model: Path, samples: Samples) -> Calibration:
    return calibrate(tiny_model, samples, fisher=True)


def whole(model: Path) -> Any:
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(model)
    family = get_family(checkpoint.config)
    return family.whole(family.load(checkpoint)).eval()


def test_moments_are_those_of_sentences_without_padding(
    tiny_model: Path, samples: Samples, made: Calibration
) -> None:
    net = whole(tiny_model)
    seen: dict[str, list[np.ndarray]] = defaultdict(list)
    last = f"model.decoder.layers.{net.config.decoder_layers - 1}.final_layer_norm"
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear):
            key = f"{name}.weight"
            layer.register_forward_pre_hook(lambda _, x, key=key: seen[key].append(x[0][0].numpy()))
        if name == last:
            layer.register_forward_hook(lambda _, x, y: seen[TABLE].append(y[0].numpy()))
    with torch.no_grad():
        for sample in samples:
            source, target = torch.tensor([sample.source]), torch.tensor([sample.target])
            net(source, torch.tensor([len(sample.source)]), target)
    assert set(made.names()) == seen.keys()
    for name, parts in seen.items():
        rows = np.concatenate(parts).astype(np.float64)
        expected = rows.T @ rows / len(rows)
        if name == TABLE:
            expected += LOOKUP * np.diag(expected).mean() * np.eye(len(expected))
        np.testing.assert_allclose(made.moments(name), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_counts(samples: Samples, made: Calibration) -> None:
    ids = [i for sample in samples for i in (*sample.source, *sample.target)]
    np.testing.assert_array_equal(made.frequencies, np.bincount(ids, minlength=320))
    assert (made.sentences, made.tokens) == (23, sum(len(sample.target) for sample in samples))


def test_shared_inputs_are_kept_once(made: Calibration) -> None:
    assert made._inputs[QUERY] == made._inputs[KEY]
    assert len({made._inputs[name] for name in CROSS}) == 1
    # 2 encoder layers of 4 inputs, 2 decoder layers of 6, the encoder's output, the head
    assert len(made._packed) == 2 * 4 + 2 * 6 + 2


def test_fisher_predicts_the_divergence(tiny_model: Path, samples: Samples, made: Calibration) -> None:
    name = "model.decoder.layers.1.fc2.weight"
    net = whole(tiny_model)
    weight = net.get_parameter(name)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05 * weight.std()
    fisher = made.fisher(name)
    assert fisher is not None
    total = 0.0
    for sample in samples:
        source, target = torch.tensor([sample.source]), torch.tensor([sample.target])
        inputs = (source, torch.tensor([len(sample.source)]), target)
        with torch.no_grad():
            before = torch.log_softmax(net(*inputs), -1)
            changed = torch.func.functional_call(net, {name: weight + noise}, inputs)
            after = torch.log_softmax(changed, -1)
        total += float((before.exp() * (before - after)).sum())
    predicted = 0.5 * float((fisher * noise.numpy() ** 2).sum())
    assert predicted == pytest.approx(total / made.tokens, rel=0.5)


def test_fisher_is_optional(tiny_model: Path, samples: Samples, made: Calibration) -> None:
    plain = calibrate(tiny_model, samples)
    assert plain.fisher(QUERY) is None
    np.testing.assert_array_equal(plain.moments(CROSS[0]), made.moments(CROSS[0]))


@pytest.mark.slow
def test_result_does_not_depend_on_processes(
    tiny_model: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    from joblib import parallel_config

    monkeypatch.setattr(module, "CHUNK", 7)
    steps: list[int] = []
    one = calibrate(tiny_model, samples, progress=lambda phase, done, total: steps.append(done))
    with parallel_config(backend="loky", n_jobs=2):
        two = calibrate(tiny_model, samples)
    assert steps == [0, 7, 14, 21, 23]
    for a, b in zip(one._packed, two._packed, strict=True):
        assert a.tobytes() == b.tobytes()


def test_file(tmp_path: Path, made: Calibration) -> None:
    path = tmp_path / "calibration.safetensors"
    made.write(path)
    read = Calibration.read(path)
    assert (read.model_sha256, read.sentences, read.tokens) == (made.model_sha256, 23, made.tokens)
    np.testing.assert_array_equal(read.frequencies, made.frequencies)
    for name in made.names():
        np.testing.assert_array_equal(read.moments(name), made.moments(name))
    for name in (QUERY, TABLE):
        np.testing.assert_array_equal(read.fisher(name), made.fisher(name))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"kind": "x"}, {}, "not a calibration file; make one with"),
        ({"schema": "9"}, {}, "schema '?9'?, this version reads 1"),
        ({"inputs": "{}"}, {}, "must map matrices to numbers"),
        ({"inputs": '{"a": 1}'}, {}, "numbered from 0 without gaps"),
        ({"inputs": '{"a": 0, "b": 99}'}, {}, "numbered from 0 without gaps"),
        ({"inputs": "[[["}, {}, "inputs in the header: not valid JSON"),
        ({"tables": '{"a": 1}'}, {}, "tables in the header must be a list"),
        ({"tokens": "-1"}, {}, "tokens in the header is"),
        ({}, {"moments:0": None}, "no tensor '?moments:0"),
        ({}, {"moments:0": np.ones(5, np.float32)}, "5 values is not half a matrix"),
        ({}, {"moments:0": np.full(3, np.nan, np.float32)}, "one row of finite float32"),
        ({}, {"frequencies": np.full(3, -1, np.int32)}, "holds negative values"),
        ({}, {"frequencies": np.ones(3, np.float32)}, "one row of finite int32"),
    ],
)
def test_defects_of_a_file(
    tmp_path: Path, made: Calibration, header: dict[str, str], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "changed.safetensors"
    made.write(tmp_path / "c.safetensors")
    file = TensorFile.open(tmp_path / "c.safetensors")
    held = {n: file.raw(n) for n in file.entries if not n.startswith("__")} | tensors
    write_weights(path, {n: v for n, v in held.items() if v is not None}, file.metadata | header)
    with pytest.raises(InputError, match=message):
        Calibration.read(path)


def test_a_truncated_file(tmp_path: Path, made: Calibration) -> None:
    path = tmp_path / "c.safetensors"
    made.write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        Calibration.read(path)


def test_misuse(tiny_model: Path, made: Calibration) -> None:
    with pytest.raises(InputError, match=r"does not hold .*no such.*again"):
        made.moments("no such")
    with pytest.raises(InputError, match="made from another model than some folder"):
        made.check_model("0" * 64, "some folder")
    made.check_model(Checkpoint.open(tiny_model).sha256, "the tiny model")
    with pytest.raises(UsageError, match="at least one sentence"):
        calibrate(tiny_model, Samples())


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_triangles(k: int) -> None:
    matrix = np.random.default_rng(k).standard_normal((k, k)).astype(np.float32)
    matrix += matrix.T
    packed = pack_triangle(matrix)
    assert packed.shape == (k * (k + 1) // 2,)
    np.testing.assert_array_equal(unpack_triangle(packed), matrix)
