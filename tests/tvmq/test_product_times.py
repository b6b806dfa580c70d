# SPDX-License-Identifier: Apache-2.0
"""Times of matrices from a tuning log: whose record counts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schedules.schedule import rule
from schedules.tuning_log import Key, TuningRecord, append
from schedules.workload import Workload
from tvmq.errors import InputError
from tvmq.families.family import TensorInfo
from tvmq.product_times import log_times
from tvmq.sensitivity_table import Coding
from tvmq.timing import timing_of

ROWS = Coding()
DECODER = TensorInfo(name="d", block="Dec_ffn", shape=(256, 512), is_embedding=False)
ENCODER = TensorInfo(name="e", block="Enc_ffn", shape=(256, 512), is_embedding=False)
EMBEDDING = TensorInfo(name="w", block="Emb", shape=(1024, 512), is_embedding=True)
POSITIONS = TensorInfo(name="p", block="Emb", shape=(128, 512), is_embedding=False)
MODEL = (EMBEDDING, ENCODER, DECODER)


def record(
    shape: tuple[int, int],
    m: int,
    bits: int,
    us: float,
    *,
    target: str = "x86_64_v3",
    gain: float = 1.0,
    threads: int = 1,
    group: int = 0,
    scale: str = "float16",
) -> TuningRecord:
    workload = Workload.of("lut", *shape, m, bits, group, scale)
    return TuningRecord(
        key=Key.of(workload, target, threads),
        schedule=rule(workload),
        status="ok",
        us=us,
        rule_us=us * gain,
        stage="final",
        cpu="test",
    )


def log_of(path: Path, *records: TuningRecord) -> Path:
    append(path, records)
    return path


def test_own_records_by_width_and_tokens(tmp_path: Path) -> None:
    shape = DECODER.shape
    log = log_of(
        tmp_path / "log.jsonl",
        *(record(shape, 1, bits, 10.0 * bits) for bits in (1, 2, 4)),
        record(shape, 64, 2, 640.0),
    )
    timing = timing_of(MODEL, 24, ROWS, log)
    assert timing.ms(DECODER, ((256, 2),), 1) == pytest.approx(0.020)
    assert timing.ms(DECODER, ((256, 3),), 1) == pytest.approx(0.030)  # between its neighbours
    assert timing.ms(DECODER, ((128, 1), (128, 4)), 1) == pytest.approx(0.025)
    assert timing.ms(ENCODER, ((256, 2),), 1) == pytest.approx(0.010)  # 64 tokens share a call


def test_the_nearest_product_of_the_same_width_counts_by_weight(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log.jsonl", record((512, 512), 1, 2, 8.0), record((4096, 4096), 1, 2, 999.0))
    times = log_times(log, [DECODER, EMBEDDING], 24, ROWS)
    assert times["d"] == {2: pytest.approx(8.0e-3 / 512 / 512)}
    assert times["w"] == times["d"]  # the output table is half as far from the small product


def test_records_of_the_same_groups_and_scales_come_first(tmp_path: Path) -> None:
    shape = DECODER.shape
    log = log_of(
        tmp_path / "log.jsonl",
        record(shape, 1, 2, 5.0),
        record(shape, 1, 2, 7.0, group=128),
        record(shape, 1, 2, 9.0, group=128, scale="pow2"),
    )
    for coding, us in (
        (ROWS, 5.0),
        (Coding(group_size=128), 7.0),
        (Coding(group_size=128, scale_dtype="pow2"), 9.0),
    ):
        assert log_times(log, [DECODER], 24, coding)["d"][2] == pytest.approx(us / 1e3 / (256 * 512))


def test_the_schedule_that_compiling_takes_counts(tmp_path: Path) -> None:
    shape = DECODER.shape
    for gain, us in ((1.02, 10.2), (1.5, 10.0)):
        log = log_of(tmp_path / f"{gain}.jsonl", record(shape, 1, 2, 10.0, gain=gain))
        assert log_times(log, [DECODER], 24, ROWS)["d"][2] == pytest.approx(us / 1e3 / (256 * 512))


def test_looked_up_tables_and_far_products_go_by_bandwidth(tmp_path: Path) -> None:
    matrix = replace(ENCODER, block="Ffn")
    log = log_of(tmp_path / "log.jsonl", record(matrix.shape, 16, 2, 16.0))
    timing = timing_of([EMBEDDING, POSITIONS, matrix], 12, ROWS, log)
    assert set(timing.measured) == {"e"}
    assert timing.ms(EMBEDDING, ((1024, 2),), 1024) == pytest.approx(1024 / timing.bandwidth * 1e3 / 1024)
    far = log_of(tmp_path / "far.jsonl", record((65536, 16384), 1, 2, 1.0))
    with pytest.raises(InputError, match="no product near"):
        log_times(far, MODEL, 24, ROWS)


def test_other_threads_do_not_count_and_one_target_is_needed(tmp_path: Path) -> None:
    shape = DECODER.shape
    log = log_of(tmp_path / "log.jsonl", record(shape, 1, 2, 1.0, threads=2), record(shape, 1, 2, 3.0))
    assert log_times(log, [DECODER], 24, ROWS)["d"][2] == pytest.approx(3e-3 / (256 * 512))
    append(log, [record(shape, 1, 2, 2.0, target="x86_64_v2")])
    with pytest.raises(InputError, match="times of x86_64_v2, x86_64_v3"):
        log_times(log, [DECODER], 24, ROWS)


@pytest.mark.parametrize("text", ["", "{}\n", "not a log\n"])
def test_what_is_no_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"log\.jsonl"):
        log_times(path, MODEL, 24, ROWS)
