# SPDX-License-Identifier: Apache-2.0
"""Integer attention: equal to its reference on every level, close to softmax, one sentence at a time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from schedules.block_attention import BlockAttentionSpec, block_attention, reference
from schedules.integer_tables import exp2_table

CASES = [
    pytest.param(2, 64, [3, 70, 1], marks=pytest.mark.emulated),
    (1, 64, [64]),
    (2, 256, [5, 130]),
    (4, 64, [9, 65]),
]
"""Heads, width, tokens of each sentence."""


def example(heads: int, width: int, lengths: list[int]) -> tuple[Any, ...]:
    rng = np.random.default_rng([heads, width])
    tokens = sum(lengths)
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    exponents = tuple(rng.integers(-21, -18, tokens).astype(np.int32) for _ in range(3))
    floats = [rng.standard_normal((tokens, width)) for _ in range(3)]
    floats[0] *= 2 * math.log2(math.e) / math.sqrt(width / heads)
    rows = [np.rint(x / 2.0 ** e[:, None]).astype(np.int32) for x, e in zip(floats, exponents, strict=True)]
    return floats, rows, exponents, offsets, BlockAttentionSpec(heads=heads, width=width, longest=140)


@pytest.mark.parametrize(("heads", "width", "lengths"), CASES)
def test_kernel_equals_reference(
    build: Any, kernel_level: Any, heads: int, width: int, lengths: list[int]
) -> None:
    _, rows, exponents, offsets, spec = example(heads, width, lengths)
    wanted = reference(*rows, exponents, offsets, spec)
    pairs = [part for pair in zip(rows, exponents, strict=True) for part in pair]
    tokens = sum(lengths)
    found = build(block_attention(spec, kernel_level.kernel_isa), kernel_level)(
        [*pairs, offsets, exp2_table()], ((tokens, width), np.int32), ((tokens, heads), np.int32)
    )
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.parametrize(("heads", "width", "lengths"), CASES)
def test_reference_is_softmax_attention(heads: int, width: int, lengths: list[int]) -> None:
    """int8 on all sides leaves two digits."""
    (q, k, v), rows, exponents, offsets, spec = example(heads, width, lengths)
    y, scales = reference(*rows, exponents, offsets, spec)
    exact = np.zeros_like(q)
    for start, stop in pairwise(offsets):
        for head in range(heads):
            c = slice(head * spec.head_width, (head + 1) * spec.head_width)
            scores = q[start:stop, c] @ k[start:stop, c].T
            p = 2.0 ** (scores - scores.max(axis=1, keepdims=True))
            exact[start:stop, c] = p / p.sum(axis=1, keepdims=True) @ v[start:stop, c]
    found = np.ldexp(y.astype(float), np.repeat(scales, spec.head_width, axis=1))
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_a_sentence_does_not_see_the_others() -> None:
    _, rows, exponents, offsets, spec = example(2, 64, [3, 70, 1])
    together, _ = reference(*rows, exponents, offsets, spec)
    part = slice(3, 73)
    alone, _ = reference(
        *(x[part] for x in rows), tuple(e[part] for e in exponents), np.array([0, 70], np.int32), spec
    )
    np.testing.assert_array_equal(together[part], alone)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="head widths"):
        BlockAttentionSpec(heads=3, width=64, longest=9)
    with pytest.raises(ValueError, match="multiples of 16"):
        BlockAttentionSpec(heads=8, width=64, longest=9)
