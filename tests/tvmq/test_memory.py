# SPDX-License-Identifier: Apache-2.0
"""What loading and translating adds to the bare interpreter stays near the size of the weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.make_base import BaseShape, write_base
from tvmq import machine
from tvmq.cli import main
from tvmq.tokenizer import MarianTokenizer

ROOT = Path(__file__).parents[2]
MB = 1_000_000
START = """
import random, sys
from tvmq import machine, runtime
runtime.load_libraries()
bare = machine.resident_bytes()
machine.reset_peak()
"""

pytestmark = pytest.mark.skipif(machine.resident_bytes() is None, reason="needs /proc/self/status")


def above_bare(code: str, *words: object) -> list[int]:
    """The numbers that ``code`` prints, in bytes, from a process of its own after ``START``."""
    command = [sys.executable, "-c", START + code, *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    return [int(word) for word in run.stdout.split()]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = BaseShape(layers=2, width=128, ffn=256, heads=4, vocabulary=2000)
    model = write_base(tmp_path_factory.mktemp("base"), shape=shape)
    path = tmp_path_factory.mktemp("compiled") / "small.tvmq"
    assert main(["compile", str(model), "-o", str(path), "--preset", "fp32", "-q"]) == 0
    return path


def test_translating_takes_little_more_than_the_weights(artifact: Path) -> None:
    code = """
translator = runtime.load(sys.argv[1])
def translate(length, count, beams):
    draw = random.Random(length)
    sources = [[draw.randrange(2, 1999) for _ in range(length)] for _ in range(count)]
    translator.translate_ids(sources, beams=beams, forced_length=4)
translate(20, 1, 4)
print(machine.peak_bytes() - bare)
for length in range(21, 60):
    translate(length, 16, 1)
print(machine.peak_bytes() - bare)
"""
    one, many = above_bare(code, artifact)
    weights = (artifact / "weights.safetensors").stat().st_size
    assert one < weights + 8 * MB
    assert many < weights + 20 * MB  # keeping the buffers of every length takes 90


def test_the_tokenizer_keeps_no_python_strings(tmp_path: Path) -> None:
    for name, data in MarianTokenizer.open(ROOT / "models" / "nmt-en-de").packed().items():
        (tmp_path / name).write_bytes(data)
    code = """
from tvmq.tokenizer import MarianTokenizer
tokenizer = MarianTokenizer.open(sys.argv[1])
machine.return_freed_memory()
print(machine.resident_bytes() - bare)
"""
    (kept,) = above_bare(code, tmp_path)
    assert kept < 9 * MB / 2  # a dict of the pieces and its inverse take 6.8
