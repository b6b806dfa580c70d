# SPDX-License-Identifier: Apache-2.0
"""Buffers that live at the same time do not overlap, and memory is reused."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.native.pools import Span, place

SPANS = st.builds(
    lambda first, length, size: Span(first, first + length, size),
    st.integers(0, 20),
    st.integers(0, 5),
    st.integers(1, 9),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(SPANS, max_size=25))
def test_live_buffers_do_not_overlap(spans: list[Span]) -> None:
    offsets, size = place(spans)
    for (a, i), (b, j) in combinations(zip(spans, offsets, strict=True), 2):
        together = a.first <= b.last and b.first <= a.last
        assert not together or i + a.size <= j or j + b.size <= i
    assert size == max((o + s.size for o, s in zip(offsets, spans, strict=True)), default=0)
    assert size <= sum(span.size for span in spans)


def test_memory_is_reused_after_the_last_use() -> None:
    assert place([Span(0, 1, 8), Span(1, 2, 4), Span(2, 3, 8)]) == ([0, 8, 0], 12)
