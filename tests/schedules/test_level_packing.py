# SPDX-License-Identifier: Apache-2.0
"""Levels, alphas and exponents unpack to what they came from; matrices that cannot be levels are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schedules.level_packing import (
    LevelPlanes,
    pack_group_shifts,
    pack_level_keys,
    pack_levels,
    pack_row_exponents,
    pack_rows,
)
from schedules.packing import BitPlanes, pack_keys

ROWS = st.sampled_from([1, 15, 16, 17, 32, 33, 63, 64, 65, 130])


@st.composite
def level_planes(draw: st.DrawFn) -> LevelPlanes:
    groups = draw(st.integers(1, 3))
    k = 64 * groups * draw(st.integers(1, 2)) if groups > 1 else draw(st.integers(1, 200))
    n, bits = draw(ROWS), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = 127 // bits
    return LevelPlanes(
        planes=np.packbits(rng.integers(0, 2, (bits, n, k), dtype=np.uint8), axis=2, bitorder="little"),
        alphas=rng.integers(-most, most + 1, (bits, n, groups)).astype(np.int8),
        shape=(n, k),
    )


@settings(max_examples=40, deadline=None)
@given(level_planes())
def test_levels_are_the_sum_of_signed_alphas(weight: LevelPlanes) -> None:
    n, k = weight.shape
    bits = np.unpackbits(weight.planes, axis=2, count=k, bitorder="little").astype(int)
    alphas = np.repeat(weight.alphas.astype(int), k // weight.groups, axis=2)
    assert np.array_equal(weight.levels(), ((2 * bits - 1) * alphas).sum(axis=0))
    assert weight.levels().shape == (n, k)


@settings(max_examples=40, deadline=None)
@given(level_planes())
def test_keys_are_those_of_the_table_kernels(weight: LevelPlanes) -> None:
    n, k = weight.shape
    keys, alphas = pack_level_keys(weight)  # alphas [blocks, bits, groups, 64]
    scales = np.ones((weight.bits, n, weight.groups), np.float32)
    planes = BitPlanes(
        planes=weight.planes, scales=scales, offsets=None, shape=(n, k), group_size=k // weight.groups
    )
    assert np.array_equal(keys, pack_keys(planes))
    back = alphas.transpose(1, 0, 3, 2).reshape(weight.bits, -1, weight.groups)
    assert alphas.dtype == np.int8
    assert np.array_equal(back[:, :n], weight.alphas)
    assert not back[:, n:].any()


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 200), st.integers(0, 2**32))
def test_levels_round_trip(n: int, k: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(-127, 128, (n, k)).astype(np.int8)
    packed = pack_levels(levels)
    panels, steps = packed.shape[:2]
    assert packed.shape[2:] == (2, 1024)
    assert panels % 2 == 0
    # Byte 64 q + 4 r + c of a tile is row r, column 4 q + c.
    back = np.zeros((panels, 2, 16, steps, 64), np.int8)
    for byte in range(1024):
        q, r, c = byte // 64, byte // 4 % 16, byte % 4
        back[:, :, r, :, 4 * q + c] = packed[:, :, :, byte].transpose(0, 2, 1)
    plain = back.reshape(panels * 32, steps * 64)
    assert np.array_equal(plain[:n, :k], levels)
    assert not plain[n:].any()
    assert not plain[:, k:].any()


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(0, 2**32))
def test_exponents_and_shifts_round_trip(n: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    exponents = rng.integers(-128, 128, n).astype(np.int8)
    shifts, top = pack_row_exponents(exponents)
    assert (shifts.dtype, top.dtype, top.shape) == (np.uint8, np.int32, (1,))
    assert np.array_equal(top[0] - shifts.reshape(-1)[:n].astype(int), exponents)
    assert not shifts.reshape(-1)[n:].any()
    groups_of = rng.integers(0, 256, (n, groups)).astype(np.uint8)
    back = pack_group_shifts(groups_of).transpose(0, 2, 1).reshape(-1, groups)
    assert np.array_equal(back[:n], groups_of)
    assert not back[n:].any()
    bias = rng.integers(-(1 << 31), 1 << 31, n).astype(np.int32)
    assert np.array_equal(pack_rows(bias).reshape(-1)[:n], bias)
    assert not pack_rows(bias).reshape(-1)[n:].any()


def small(**changes: Any) -> LevelPlanes:
    weight = LevelPlanes(
        planes=np.zeros((2, 3, 2), np.uint8), alphas=np.full((2, 3, 1), 63, np.int8), shape=(3, 10)
    )
    return replace(weight, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planes": np.zeros((8, 3, 2), np.uint8)}, "levels of 8 planes, expected 1 to 7"),
        ({"planes": np.zeros((2, 3, 3), np.uint8)}, r"are uint8\(2, 3, 3\), expected uint8\(2, 3, 2\)"),
        ({"alphas": np.zeros((2, 3, 1), np.int16)}, r"alphas are int16\(2, 3, 1\), expected int8\(2, 3, gr"),
        ({"alphas": np.zeros((2, 2, 1), np.int8)}, "alphas are int8"),
        ({"alphas": np.full((2, 3, 1), -64, np.int8)}, "add up to a level of 128, expected 127 at most"),
        ({"alphas": np.zeros((2, 3, 2), np.int8)}, "10 columns are not 2 groups of a multiple of 64 columns"),
    ],
)
def test_bad_planes_are_refused(changes: dict[str, NDArray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_levels_without_a_negative_are_refused() -> None:
    with pytest.raises(ValueError, match="levels hold -128, expected -127 to 127"):
        pack_levels(np.full((1, 1), -128, np.int8))
