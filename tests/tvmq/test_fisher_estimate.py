# SPDX-License-Identifier: Apache-2.0
"""Sensitivities by gradients: the formula by loops, near what is measured for small errors, the verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmq.calibration import Calibration, calibrate
from tvmq.errors import InputError
from tvmq.fisher_estimate import estimate_sensitivities, fisher_damage
from tvmq.samples import Sample, Samples
from tvmq.sensitivity import measure_sensitivities
from tvmq.sensitivity_table import Sensitivities

TABLE = "model.shared.weight"
FFN = "model.decoder.layers.1.fc2.weight"


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = np.random.default_rng(0)

    def ids() -> tuple[int, ...]:
        return (*rng.integers(4, 300, rng.integers(4, 9)).tolist(), 0)

    return Samples([Sample(source=ids(), target=ids()) for _ in range(30)])


@pytest.fixture(scope="module")
def made(tiny_model: Path, samples: Samples) -> Calibration:
    return calibrate(tiny_model, samples, fisher=True)


@pytest.fixture(scope="module")
def file(made: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "c.safetensors"
    made.write(path)
    return path


@pytest.mark.parametrize("name", [FFN, TABLE])
def test_damage_is_the_formula(made: Calibration, name: str) -> None:
    outputs, lookups = made.output_gradients(name), made.lookup_gradients(name)
    assert outputs is not None
    moments = made.input_moments(name).astype(np.float64)
    rows = np.array([5, 0, 17])
    error = np.random.default_rng(1).standard_normal((3, len(moments))).astype(np.float32)
    expected = 0.0
    for row, e in zip(rows, error.astype(np.float64), strict=True):
        expected += float(outputs[row] * (e @ moments @ e))
        if lookups is not None:
            expected += float(made.shares(name)[row] * (lookups * e * e).sum())
    assert (lookups is not None) == (name == TABLE)
    assert fisher_damage(made, name, error, rows) == pytest.approx(expected / 2, rel=1e-4)
    whole = np.zeros((len(outputs), len(moments)), np.float32)
    whole[rows] = error
    assert fisher_damage(made, name, whole) == pytest.approx(expected / 2, rel=1e-4)


def test_small_errors_cost_what_is_estimated(tiny_model: Path, samples: Samples, file: Path) -> None:
    estimated = estimate_sensitivities(tiny_model, file, widths=(4, 5))
    measured = measure_sensitivities(tiny_model, samples, widths=(4, 5))
    assert estimated.method == "fisher"
    assert measured.method == "kl"
    ratios = [
        guess / truth
        for a, b in zip(estimated.units, measured.units, strict=True)
        for guess, truth in zip(a.kl, b.kl, strict=True)
        if truth > 1e-7
    ]
    assert len(ratios) > 30
    assert 0.6 < np.median(ratios) < 1.7
    assert [(u.tensor, u.bytes) for u in estimated.units] == [(u.tensor, u.bytes) for u in measured.units]


def test_the_file_says_how_it_was_made(tiny_model: Path, file: Path, tmp_path: Path) -> None:
    found = estimate_sensitivities(tiny_model, file, widths=(2, 3), frequencies=np.arange(320))
    found.write(tmp_path / "s.json")
    assert Sensitivities.read(tmp_path / "s.json") == found
    assert len(found.by_tensor()[TABLE]) > 1


def test_a_calibration_without_gradients(tiny_model: Path, samples: Samples, tmp_path: Path) -> None:
    calibrate(tiny_model, samples).write(tmp_path / "c.safetensors")
    with pytest.raises(InputError, match=r"c\.safetensors: made without gradients; calibrate again"):
        estimate_sensitivities(tiny_model, tmp_path / "c.safetensors")


def test_the_verb(tvmq: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    pairs, out, kept = tmp_path / "pairs.tsv", tmp_path / "plan.json", tmp_path / "c.safetensors"
    pairs.write_text("open the file\tdie Datei\nsave as\tspeichern\n" * 5, encoding="utf-8")
    words = ("--by", "fisher", "--calibration", pairs, "--save-calibration", kept)
    done = tvmq("plan", tiny_model, *words, "--bits", 2.6, "-o", out, "--json", "-j", 1)
    assert done.code == 0, done.err
    value = json.loads(done.out)
    assert 2.4 < value["bits_per_weight"] <= 2.6
    assert "hessian sensitivities by gradients on 10 sentences" in value["source"]
    reused = ("--by", "fisher", "--calibration", kept, "--bits", 2.6)
    again = tvmq("plan", tiny_model, *reused, "--json", "-j", 1)
    assert json.loads(again.out)["damage"] == value["damage"]
    for more in (("--rounds", 2), ("--text", pairs)):
        refused = tvmq("plan", tiny_model, *reused, *more)
        assert refused.code == 2
        assert "--by fisher estimates from a calibration alone" in refused.err
