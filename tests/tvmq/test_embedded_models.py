# SPDX-License-Identifier: Apache-2.0
"""The models that come with the repository: whole, of one plan, and as good as their recipe says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tvmq
from tvmq import api
from tvmq.checkpoint import Checkpoint
from tvmq.families import get_family
from tvmq.options import SearchOptions

MODELS = Path(__file__).resolve().parents[2] / "models"
FLOAT, RETRAINED = MODELS / "nmt-en-de", MODELS / "nmt-en-de-1.95bit"
FP32_BLEU = 32.90
"""Beam 4 on the 300 test pairs in the repository."""


def test_the_retrained_checkpoint_fits_the_float_model() -> None:
    original, retrained = Checkpoint.open(FLOAT), Checkpoint.open(RETRAINED)
    plan = retrained.plan
    assert plan is not None
    assert original.config == retrained.config
    infos = get_family(original.config).tensors(get_family(original.config).read_config(original.config))
    plan.validate({info.name: info.shape for info in infos})
    assert set(retrained.names()) == set(original.names())
    for info in infos[::7]:
        before, after = original.tensor(info.name).ravel(), retrained.tensor(info.name).ravel()
        assert np.corrcoef(before, after)[0, 1] > 0.6, info.name  # retrained, but still that matrix


def test_the_retrained_checkpoint_is_as_small_as_its_name() -> None:
    report = api.describe_plan(RETRAINED)
    assert report.size.bits_per_weight <= 1.95
    assert (RETRAINED / "model.safetensors").stat().st_size < 13.1e6


def test_both_folders_carry_their_licence_note() -> None:
    notes = {
        folder: (folder / "LICENSE-NOTE.md").read_text(encoding="utf-8") for folder in (FLOAT, RETRAINED)
    }
    assert notes[FLOAT] == notes[RETRAINED]


@pytest.mark.slow
def test_the_retrained_checkpoint_loses_less_than_one_bleu(tmp_path: Path) -> None:
    tvmq.compile(RETRAINED, tmp_path / "m.tvmq")
    found = tvmq.evaluate(tmp_path / "m.tvmq", FLOAT / "sample" / "test.tsv", SearchOptions())
    assert found.n == 300
    assert found.value > FP32_BLEU - 1
