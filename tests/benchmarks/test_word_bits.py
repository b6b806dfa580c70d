# SPDX-License-Identifier: Apache-2.0
"""The rows of the word-bit table: their mean widths, and everything else FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import word_bits
from relay_passes.bit_plan import FLOAT_BITS, decode_plan, plan_hash

COUNTS = (1e6 / np.arange(1, 3201) ** 1.1).astype(np.int64)


def test_algorithm_1_gives_the_means_of_the_paper() -> None:
    means = [word_bits.mean_bits(clusters) for clusters in word_bits.algorithm1(32768).values()]
    assert means == pytest.approx([1.14, 1.32, 1.73, 2.5], abs=0.005)


@pytest.mark.parametrize("target", [1.14, 1.32, 1.73, 2.0, 2.5])
def test_the_optimum_meets_its_mean_and_never_gives_rarer_words_more(target: float) -> None:
    clusters = word_bits.optimum(COUNTS, 512, target, "alternating")
    assert sum(rows for rows, _ in clusters) == len(COUNTS)
    assert target - 0.08 < word_bits.mean_bits(clusters) <= target + 1e-9
    bits = [width for _, width in clusters]
    assert bits == sorted(bits, reverse=True)


def test_only_the_words_are_quantized(tiny_model: Path, tmp_path: Path) -> None:
    rows = word_bits.settings(tiny_model, "greedy", tmp_path)
    assert len({row.name for row in rows}) == len(rows) >= 8
    for row in rows:
        assert row.plan.plan is not None
        plan = decode_plan(row.plan.plan.read_bytes())
        assert {entry.quantizer for entry in plan.words} == {"greedy"}
        assert plan.words
        assert row.sha256 == plan_hash(plan)
        assert {entry.bits for entry in plan.blocks} == {FLOAT_BITS}
