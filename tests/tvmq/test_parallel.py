# SPDX-License-Identifier: Apache-2.0
"""Jobs run in order on every kind of joblib backend, as many as are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from joblib import delayed, parallel_config

from tvmq import parallel
from tvmq.parallel import run_jobs


def square(value: int) -> tuple[int, int]:
    return value * value, os.getpid()


def calls(started: list[int]) -> Iterator[object]:
    for value in range(6):
        started.append(value)
        yield delayed(square)(value)


def results(jobs: int | None) -> tuple[list[int], int]:
    """The values, and how many other processes they came from."""
    found = list(run_jobs(calls([]), jobs))
    return [value for value, _ in found], len({process for _, process in found} - {os.getpid()})


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_order_on_every_backend(backend: str) -> None:
    """multiprocessing, on which Ray's backend is built, hands results on only at the end."""
    with parallel_config(backend=backend, n_jobs=2):
        values, others = results(None)
    assert values == [0, 1, 4, 9, 16, 25]
    assert (others > 0) == (backend != "threading")


def test_one_job_stays_here() -> None:
    assert results(1) == ([0, 1, 4, 9, 16, 25], 0)


def test_no_number_is_one_per_core_unless_joblib_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "usable_cores", lambda: 1)
    assert results(None)[1] == 0
    with parallel_config(n_jobs=2):
        assert results(None)[1] > 0
        assert results(1)[1] == 0


def test_results_come_one_by_one() -> None:
    started: list[int] = []
    found = run_jobs(calls(started), 1)
    assert next(found)[0] == 0
    assert len(started) < 6
    assert [value for value, _ in found] == [1, 4, 9, 16, 25]
