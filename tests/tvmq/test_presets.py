# SPDX-License-Identifier: Apache-2.0
"""Every row of the paper's Table 2 is a preset with the paper's average bits."""

from __future__ import annotations

import pytest

from relay_passes.bit_plan import FLOAT_BITS
from tvmq.errors import UsageError
from tvmq.presets import DEFAULT_PRESET, EVERY_BLOCK, WordClusters, get_preset, preset_names
from tvmq.word_bits import cluster_sizes

WEIGHTS = {"Emb": 16.0, "Enc_ee": 6.0, "Enc_ffn": 12.0, "Dec_dd": 6.0, "Dec_ed": 6.0, "Dec_ffn": 12.0}
"""Millions (of 2^20) in the paper's shape."""
AVERAGES = {
    "fp": 32.0, "3bit": 3.0, "2bit": 2.0, "emb2": 23.7,
    "2.5-fp-fp": 23.9, "1.3-fp-fp": 23.5, "1.1-fp-fp": 23.5,
    "2.5-1.8-fp": 11.3, "1.3-1.8-fp": 11.0, "1.1-1.8-fp": 11.0,
    "2.5-1.8-3.7": 2.6, "1.3-1.8-3.7": 2.2, "1.1-1.8-3.7": 2.2,
}  # fmt: skip


def average(bits: int | WordClusters) -> float:
    if isinstance(bits, int):
        return bits
    sizes = cluster_sizes(32768, bits.b, bits.r)
    return sum(rows * (bits.b - i) for i, rows in enumerate(sizes)) / 32768


@pytest.mark.parametrize("row", AVERAGES)
def test_average_bits_of_the_paper(row: str) -> None:
    preset = get_preset(f"chung2020-{row}")
    bits = {block: preset.bits.get(block, preset.bits.get(EVERY_BLOCK, 0)) for block in WEIGHTS}
    mean = sum(average(bits[block]) * size for block, size in WEIGHTS.items()) / sum(WEIGHTS.values())
    assert mean == pytest.approx(AVERAGES[row], abs=0.06)
    assert (preset.quantizer, preset.grouped, preset.scale_dtype) == ("greedy", False, "float32")


def test_the_papers_main_row() -> None:
    assert get_preset("chung2020-2.5-1.8-3.7").bits == {
        "Emb": WordClusters(b=4, r=1), "Enc_ee": 3, "Enc_ffn": 4, "Dec_dd": 2, "Dec_ed": 3, "Dec_ffn": 1
    }  # fmt: skip


def test_names() -> None:
    uniform = ["default", "fp32", "1-bit", "2-bit", "3-bit", "4-bit", "8-bit"]
    assert set(preset_names()) == {*uniform, *(f"chung2020-{row}" for row in AVERAGES)}
    assert DEFAULT_PRESET in preset_names()
    assert all(get_preset(name).name == name for name in preset_names())
    assert get_preset("fp32").bits == {EVERY_BLOCK: FLOAT_BITS}


def test_unknown_preset_lists_the_known() -> None:
    expected = r"unknown preset '3bit': known are default, fp32, 1-bit, .*; did you mean"
    with pytest.raises(UsageError, match=expected):
        get_preset("3bit")
