# SPDX-License-Identifier: Apache-2.0
"""Offsets of buffers that share memory: those that live at the same time do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A buffer: the first and last call that touch it, and its size in any unit."""

    first: int
    last: int
    size: int


def place(spans: Sequence[Span]) -> tuple[list[int], int]:
    """(offset of every span, size of the whole), largest first, each at the lowest place that is free."""
    offsets = [0] * len(spans)
    placed: list[int] = []
    for index in sorted(range(len(spans)), key=lambda i: (-spans[i].size, spans[i].first, i)):
        span = spans[index]
        taken = sorted(
            (offsets[other], offsets[other] + spans[other].size)
            for other in placed
            if spans[other].first <= span.last and span.first <= spans[other].last
        )
        offset = 0
        for begin, end in taken:
            if begin >= offset + span.size:
                break
            offset = max(offset, end)
        offsets[index] = offset
        placed.append(index)
    return offsets, max((o + s.size for o, s in zip(offsets, spans, strict=True)), default=0)
