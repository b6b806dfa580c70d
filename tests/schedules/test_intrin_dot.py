# SPDX-License-Identifier: Apache-2.0
"""The emitters of int8 dot products by themselves, as other kernels use them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.intrin_amx import AmxDot
from schedules.intrin_dot_x86 import DotProduct, Levels, Rows, dot_product, preferred_bias
from schedules.level_packing import pack_levels
from schedules.tir import KernelBuilder, T, body, store

COLUMNS = 192


def kernel(isa: str, rows: int, first: int, bias: int = 0) -> Any:
    """y[t, r]: columns from 64 on of x times those of the rows from ``first`` on, in two accumulates."""
    made = KernelBuilder("dot")
    with made.define():
        m = T.int64()
        x = made.param("x", (m, COLUMNS), "int8")
        levels = made.param("levels", (4, COLUMNS // 64, 2, 1024), "int8")
        y = made.param("y", (m, rows), "int32")
        with body([y], [x, levels]):
            if isa == "amx":
                _amx(x, levels, y, m, rows // 16, first)
            else:
                _vector(dot_product(isa, rows // 16, bias), x, levels, y, m, rows // 16, first)
    return made.result


def _vector(dot: DotProduct, x: Any, levels: Any, y: Any, m: Any, vectors: int, first: int) -> None:
    done: Any = T.int64(0)
    for tokens in dot.token_tiles:
        count = T.floordiv(m - done, tokens)
        with T.serial(0, count) as i:
            row = T.Bind(done + i * tokens)
            dot.begin(tokens)
            for step in (1, 2):
                dot.accumulate(Rows(x, row, 64 * step), Levels(levels, (), first // 32, step), 1)
            for t in range(tokens):
                for v in range(vectors):
                    store(y, (row + t, 16 * v), dot.total(t, v), 16)
        done = T.Bind(done + count * tokens)


def _amx(x: Any, levels: Any, y: Any, m: Any, vectors: int, first: int) -> None:
    """Token tiles of 16 that overlap at the end; fewer than 16 tokens are one smaller tile."""
    dot = AmxDot(vectors)
    rows = T.Bind(T.min(m, T.int64(16)))
    with dot.session(rows), T.serial(0, T.floordiv(m + 15, 16)) as i:
        row = T.Bind(T.min(16 * i, m - rows))
        dot.begin()
        for step in (1, 2):
            dot.accumulate(Rows(x, row, 64 * step), Levels(levels, (), first // 32, step), 1)
        dot.finish()
        with T.serial(0, rows) as t:
            for v in range(vectors):
                store(y, (row + t, 16 * v), dot.total(t, v), 16)


def operands(m: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    rng = np.random.default_rng(m)
    x = rng.integers(-127, 128, (m, COLUMNS)).astype(np.int8)
    levels = rng.integers(-127, 128, (128, COLUMNS)).astype(np.int8)
    x[0], levels[:2], levels[2:4] = 127, 127, -127
    return x, levels


@pytest.mark.emulated
@pytest.mark.parametrize(("rows", "first"), [(64, 0), (64, 64), (32, 32)])
def test_products(build: Any, kernel_level: Any, rows: int, first: int) -> None:
    compiled = build(kernel(kernel_level.kernel_isa, rows, first), kernel_level)
    for m in (1, 2, 7, 15, 16, 33):
        x, levels = operands(m)
        y = compiled([x, pack_levels(levels)], ((m, rows), "int32"))[0]
        wanted = x[:, 64:].astype(np.int32) @ levels[first : first + rows, 64:].astype(np.int32).T
        assert np.array_equal(y, wanted)


@pytest.mark.isa("x86_64_v4_vnni")
def test_biased_levels(build: Any) -> None:
    from targets import get_target

    level = get_target("x86_64_v4_vnni")
    bias = preferred_bias(level.kernel_isa)
    x, levels = operands(9)
    biased = (pack_levels(levels).view(np.uint8) ^ np.uint8(bias)).view(np.int8)
    y = build(kernel(level.kernel_isa, 64, 0, bias), level)([x, biased], ((9, 64), "int32"))[0]
    assert np.array_equal(y, x[:, 64:].astype(np.int32) @ levels[:64, 64:].astype(np.int32).T)
