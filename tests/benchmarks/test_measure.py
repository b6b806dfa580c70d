# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from benchmarks.measure import Series, run_rounds
from benchmarks.report import rows
from benchmarks.workload import Workload, random_workload


class Echo:
    """Produces ``length`` tokens and remembers who was asked when."""

    def __init__(self, name: str, length: int, log: list[str]) -> None:
        self.name, self.length, self.log = name, length, log

    def translate(self, source: list[int], *, beams: int, forced: int | None) -> list[int]:
        self.log.append(self.name)
        return [1] * self.length


WORKLOAD = Workload(sources=((2, 3, 0), (4, 0)), forced=5, label="two")


def test_rounds_are_interleaved_and_warmed() -> None:
    log: list[str] = []
    engines = {name: Echo(name, 5, log) for name in ("a", "b")}
    series = run_rounds(engines, WORKLOAD, beams=(1,), rounds=2, progress=lambda text: None)
    # Warm-up of each, then per round one untimed and two timed sentences of each in turn.
    assert "".join(log) == "aabb" + "aaabbb" * 2
    assert [entry.tokens for entry in series] == [[10, 10], [10, 10]]


def test_wrong_number_of_forced_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="b, beam 1: 4 tokens instead of 5"):
        run_rounds({"b": Echo("b", 4, [])}, WORKLOAD, beams=(1,), rounds=1, progress=lambda text: None)


def test_ratio_is_the_median_of_paired_rounds() -> None:
    fast = Series(engine="tvmq", beams=1, seconds=[1.0, 2.0, 1.0], tokens=[60, 60, 60])
    slow = Series(engine="peer", beams=1, seconds=[3.0, 6.0, 30.0], tokens=[60, 60, 60])
    assert slow.ratio(fast) == 3.0
    table = rows([fast, slow], {"tvmq": 1, "peer": 2}, {}, "tvmq")
    assert [(row["tokens_per_s"], row["speedup"]) for row in table] == [(60.0, 1.0), (10.0, 3.0)]


def test_random_sources_have_the_asked_shape_and_no_special_ids() -> None:
    workload = random_workload(vocabulary=50, eos=0, sentences=4, length=20, forced=24, seed=1)
    assert [len(source) for source in workload.sources] == [20] * 4
    assert all(source[-1] == 0 and set(source[:-1]) <= set(range(2, 49)) for source in workload.sources)
