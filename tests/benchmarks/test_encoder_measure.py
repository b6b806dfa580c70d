# SPDX-License-Identifier: Apache-2.0
"""Rounds of encoders are interleaved and paired; workloads and distances are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.embeddings import fidelity
from benchmarks.encoder_choice import Choice
from benchmarks.encoder_engines import Batch, EncoderSetup
from benchmarks.encoder_measure import Timing, run_rounds
from benchmarks.encoder_report import print_report, rows
from benchmarks.encoder_texts import every, read_texts
from benchmarks.encoder_workload import EncoderWorkload, fixed_workload, mixed_workloads
from benchmarks.memory_process import Memory

WORKLOAD = EncoderWorkload(label="two", calls=(((1, 2, 3),), ((4,),)))


class Echo:
    """Remembers who was asked when."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, batch: Batch) -> Any:
        self.log.append(f"{self.name}{len(batch[0])}")
        return np.zeros((len(batch), 1), np.float32)


def test_rounds_are_interleaved_and_warmed() -> None:
    log: list[str] = []
    engines = {name: Echo(name, log) for name in ("a", "b")}
    timings = run_rounds(engines, [WORKLOAD], rounds=2, progress=lambda text: None)
    # Warm-up of each, then per round the first batch untimed and both timed, of each in turn.
    assert log == ["a3", "a1", "b3", "b1"] + ["a3", "a3", "a1", "b3", "b3", "b1"] * 2
    assert [len(timing.seconds) for timing in timings] == [2, 2]


def test_rows_compare_with_the_fastest_peer_round_by_round() -> None:
    setup = EncoderSetup(model=Path("m"), work=Path("w"))
    engines = {"ours": "tvmq", "quick": "openvino-int8", "slow": "pytorch-fp32"}
    choices = {label: Choice(engine=name, setup=setup) for label, name in engines.items()}
    seconds = {"ours": [1.0, 2.0, 1.0], "quick": [3.0, 6.0, 30.0], "slow": [9.0, 18.0, 90.0]}
    timings = [Timing(engine=name, workload=WORKLOAD, seconds=found) for name, found in seconds.items()]
    memory = {"ours": Memory(baseline_mb=10, load_peak_mb=17, run_peak_mb=15)}
    table = rows(timings, choices, dict.fromkeys(engines, 1), memory)
    assert [row["speed"] for row in table] == [3.0, 1.0, 0.333]
    assert [row["ms_per_text"] for row in table] == [500.0, 3000.0, 9000.0]
    assert table[0]["tokens_per_s"] == 4.0
    assert (table[0]["peak_above_mb"], table[0]["run_peak_above_mb"]) == (7, 5)


def test_report_shows_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    setup = EncoderSetup(model=Path("m"), work=Path("w"))
    choices = {
        "ours": Choice(engine="tvmq", setup=setup),
        "openvino-int8": Choice(engine="openvino-int8", setup=setup),
    }
    timings = [Timing(engine=name, workload=WORKLOAD, seconds=[0.2]) for name in choices]
    machine = {
        "cpu": "some CPU", "cores": 2, "threads": 1, "read_gbps": 1.0, "read_method": "sum",
        "load_before": [0], "load_after": [0], "versions": {"tvmq": "1", "nncf": None},
    }  # fmt: skip
    found = rows(timings, choices, dict.fromkeys(choices, 2_000_000), {})
    print_report({"model": "m", "rounds": 1, "machine": machine, "results": found}, choices)
    text = capsys.readouterr().out
    assert "some CPU" in text
    assert text.count("openvino-int8") == text.count("ours") == 2  # times, then sizes
    assert "1.00 x" in text
    assert "2.0" in text


def test_fixed_texts_have_their_length_and_shape() -> None:
    workload = fixed_workload(vocabulary=50, tokens=8, texts=3, seed=0)
    assert [[len(ids) for ids in batch] for batch in workload.calls] == [[8], [8], [8]]
    assert workload.shapes == ((1, 8),)
    assert (workload.texts, workload.tokens) == (3, 24)
    assert all(5 <= token < 50 for batch in workload.calls for ids in batch for token in ids)


def test_mixed_texts_are_the_same_together_and_alone() -> None:
    together, alone = mixed_workloads(vocabulary=50, lengths=(2, 9), texts=6, seed=0)
    assert (len(together.calls), len(alone.calls)) == (1, 6)
    assert list(together.calls[0]) == [ids for batch in alone.calls for ids in batch]
    assert together.tokens == alone.tokens
    assert len({len(ids) for ids in together.calls[0]}) > 1
    assert together.shapes == alone.shapes == ()


def test_texts_are_first_columns(tmp_path: Path) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("one\t1\n\t0\nonly\na b\tc\td\n", encoding="utf-8")
    assert read_texts([path]) == ["one", "only", "a b"]
    assert every(list("abcdefg"), 3) == ["a", "c", "e"]
    assert every(["a"], 3) == ["a"]


def test_fidelity_of_equal_turned_and_shuffled_embeddings() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((40, 8)).astype(np.float32)
    same = fidelity(2 * reference, reference)
    assert (same.mean_cosine, same.neighbours) == (pytest.approx(1), 1.0)
    assert same.spearman == pytest.approx(1)
    # A common rotation keeps all cosines between texts, but not those to the reference.
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
    turned = fidelity(reference @ turn, reference)
    assert turned.spearman == pytest.approx(1, abs=1e-3)
    assert turned.neighbours > 0.99
    assert turned.mean_cosine < 0.9
    shuffled = fidelity(np.roll(reference, 1, axis=0), reference)
    assert shuffled.neighbours < 0.5
    assert abs(shuffled.spearman) < 0.3
    assert shuffled.lowest_cosine <= shuffled.mean_cosine
    with pytest.raises(ValueError, match="11 texts are too few, expected at least 12"):
        fidelity(reference[:11], reference[:11])
