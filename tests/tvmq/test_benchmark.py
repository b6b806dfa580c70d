# SPDX-License-Identifier: Apache-2.0
"""Bench: memory readings, random sources, errors of the measured process."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace

import pytest

from tvmq import machine
from tvmq.benchmark import bench, random_sources
from tvmq.errors import UsageError
from tvmq.options import BenchOptions

SPECIAL = {"eos_token_id": 0, "pad_token_id": 99, "decoder_start_token_id": 99, "unk_token_id": 1}


def translator(vocabulary: int = 100) -> SimpleNamespace:
    return SimpleNamespace(
        manifest=SimpleNamespace(architecture={"vocab": vocabulary}, generation=SPECIAL)
    )


def test_peak_follows_an_allocation() -> None:
    before = machine.resident_bytes()
    if before is None:
        pytest.skip("no /proc/self/status here")
    machine.reset_peak()
    start = machine.peak_bytes()
    assert start is not None
    size = 64 << 20
    with mmap.mmap(-1, size) as block:
        block.write(b"x" * size)
    peak = machine.peak_bytes()
    assert peak is not None
    assert peak - start >= size * 0.9


def test_random_sources_repeat_and_hold_no_special_token() -> None:
    options = BenchOptions(sentences=7, source_tokens=5, seed=3)
    sources = random_sources(translator(), options)
    assert sources == random_sources(translator(), options)
    assert [len(source) for source in sources] == [5] * 7
    for source in sources:
        assert source[-1] == 0
        assert not set(source[:-1]) & {0, 1, 99}
        assert max(source) < 100
    other = BenchOptions(sentences=7, source_tokens=5, seed=4)
    assert sources != random_sources(translator(), other)


@pytest.mark.parametrize("field", ["rounds", "sentences", "source_tokens", "forced_length"])
def test_counts_below_one_are_refused(field: str) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        bench(Path("anything"), BenchOptions(**{field: 0}))
