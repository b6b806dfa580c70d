# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of several encoder engines in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .encoder_engines import EncoderEngine
from .encoder_workload import EncoderWorkload


@dataclass(kw_only=True)
class Timing:
    """Seconds of one engine for one workload, one entry per round."""

    engine: str
    workload: EncoderWorkload
    seconds: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> list[float]:
        """Milliseconds per text of every round."""
        return [1e3 * seconds / self.workload.texts for seconds in self.seconds]

    @property
    def tokens_per_s(self) -> float:
        """Median over the rounds; real tokens only."""
        return self.workload.tokens / statistics.median(self.seconds)

    def times_as_fast_as(self, other: Timing) -> float:
        """Median over the rounds of ``other``'s seconds by this engine's: paired, so drift cancels."""
        pairs = zip(other.seconds, self.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def run_rounds(
    engines: Mapping[str, EncoderEngine],
    workloads: Sequence[EncoderWorkload],
    *,
    rounds: int,
    progress: Callable[[str], None],
) -> list[Timing]:
    """Time every engine on every workload, one after the other, ``rounds`` times.

    Before each timed part the engine encodes the first batch untimed, so that caches left by the engine
    before it do not count.
    """
    timings = [Timing(engine=name, workload=workload) for workload in workloads for name in engines]
    for timing in timings:
        progress(f"warming up {timing.engine}, {timing.workload.label}")
        _encode(engines[timing.engine], timing.workload)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for timing in timings:
                progress(f"round {number + 1} of {rounds}: {timing.engine}, {timing.workload.label}")
                engine = engines[timing.engine]
                engine.run(timing.workload.calls[0])
                start = time.perf_counter()
                _encode(engine, timing.workload)
                timing.seconds.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return timings


def _encode(engine: EncoderEngine, workload: EncoderWorkload) -> None:
    for batch in workload.calls:
        engine.run(batch)
