# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of several engines in one process, and the machine's streaming read limit."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .engines import Engine
from .workload import Workload

READ_BYTES = 256 << 20
READ_METHOD = "torch.sum over 256 MiB of float32, best of 5"


@dataclass(kw_only=True)
class Series:
    """Figures of one engine at one beam size, one entry per round."""

    engine: str
    beams: int
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Tokens per second of every round."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)

    def ratio(self, other: Series) -> float:
        """Median over the rounds of ``other``'s speed divided by this engine's: paired, so drift cancels."""
        pairs = zip(other.speeds, self.speeds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def run_rounds(
    engines: Mapping[str, Engine],
    workload: Workload,
    *,
    beams: tuple[int, ...],
    rounds: int,
    progress: Callable[[str], None],
) -> list[Series]:
    """Time every engine on the whole workload, one after the other, ``rounds`` times.

    Before each timed part the engine translates the first source untimed, so that caches left by the
    engine before it do not count.

    Raises:
        ValueError: an engine did not produce the forced number of tokens.
    """
    table = {(name, beam): Series(engine=name, beams=beam) for beam in beams for name in engines}
    for beam in beams:
        for name, engine in engines.items():
            progress(f"warming up {name}, beam {beam}")
            _translate_all(engine, workload, beam, name)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for beam in beams:
                for name, engine in engines.items():
                    progress(f"round {number + 1} of {rounds}: {name}, beam {beam}")
                    engine.translate(list(workload.sources[0]), beams=beam, forced=workload.forced)
                    start = time.perf_counter()
                    tokens = _translate_all(engine, workload, beam, name)
                    series = table[name, beam]
                    series.seconds.append(time.perf_counter() - start)
                    series.tokens.append(tokens)
    finally:
        gc.enable()
    return list(table.values())


def _translate_all(engine: Engine, workload: Workload, beams: int, name: str) -> int:
    total = 0
    for source in workload.sources:
        produced = len(engine.translate(list(source), beams=beams, forced=workload.forced))
        if workload.forced is not None and produced != workload.forced:
            raise ValueError(f"{name}, beam {beams}: {produced} tokens instead of {workload.forced}")
        total += produced
    return total


def read_bandwidth(threads: int) -> float:
    """GB/s of reading memory once in order (``READ_METHOD``)."""
    import torch

    torch.set_num_threads(threads)
    data = torch.from_numpy(np.ones(READ_BYTES // 4, np.float32))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return READ_BYTES / best / 1e9
