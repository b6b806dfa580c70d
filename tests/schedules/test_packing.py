# SPDX-License-Identifier: Apache-2.0
"""Packed keys, scales and offsets unpack to the planes they came from; bad planes are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schedules.packing import (
    BitPlanes,
    ColumnLayout,
    WordPlanes,
    pack_exponents,
    pack_keys,
    pack_offsets,
    pack_scales,
    row_blocks,
)
from schedules.pow2 import pow2_scales, scale_storage


@st.composite
def bit_planes(draw: st.DrawFn) -> BitPlanes:
    group = draw(st.sampled_from([1, 3, 4, 10, 31, 32, 33, 48, 64]))
    k = group * draw(st.integers(1, 4))
    n = draw(st.sampled_from([1, 15, 16, 17, 63, 64, 65, 130]))
    bits = draw(st.integers(1, 8))
    dtype = draw(st.sampled_from(["float16", "float32", "pow2"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    params, exponents = rng.standard_normal((bits + 1, n, k // group)), None
    if dtype == "pow2":
        params, exponents = pow2_scales(params)
    params = params.astype(scale_storage(dtype))
    return BitPlanes(
        planes=np.packbits(rng.integers(0, 2, (bits, n, k), dtype=np.uint8), axis=2, bitorder="little"),
        scales=params[:bits],
        offsets=params[bits] if draw(st.booleans()) else None,
        shape=(n, k),
        group_size=group,
        exponents=exponents,
    )


def unpack_keys(keys: NDArray[np.uint8], planes: BitPlanes) -> NDArray[np.uint8]:
    """Key bytes back to bits [bits, padded rows, groups, padded group], from the documented layout."""
    blocks, bits, steps, _, _ = keys.shape
    out = np.zeros((bits, blocks * 64, steps * 32), np.uint8)
    for j in range(64):
        for high in range(2):
            key = keys[:, :, :, :, j] >> (4 * high) & 15  # [block, bits, step, tile]
            for t in range(4):
                column = 4 * (j % 4 + 4 * high) + t
                bit = (key >> t & 1).transpose(1, 0, 3, 2)  # [bits, block, tile, step]
                rows = (np.arange(blocks)[:, None] * 64 + np.arange(4) * 16 + j // 4).reshape(-1)
                out[:, rows[:, None], np.arange(steps) * 32 + column] = bit.reshape(bits, -1, steps)
    layout = ColumnLayout(k=planes.shape[1], group_size=planes.group_size)
    return out.reshape(bits, blocks * 64, layout.groups, layout.padded_group)


@settings(max_examples=40, deadline=None)
@given(bit_planes())
def test_keys_round_trip(planes: BitPlanes) -> None:
    n, k = planes.shape
    keys = pack_keys(planes)
    assert keys.shape[0] == row_blocks(n)
    assert keys.flags.c_contiguous
    bits = unpack_keys(keys, planes)
    plain = bits[:, :n, :, : planes.group_size].reshape(planes.bits, n, k)
    assert np.array_equal(np.packbits(plain, axis=2, bitorder="little"), planes.planes)
    assert not bits[:, n:].any()
    assert not bits[:, :, :, planes.group_size :].any()


@settings(max_examples=40, deadline=None)
@given(bit_planes())
def test_scales_exponents_and_offsets_round_trip(planes: BitPlanes) -> None:
    n = planes.shape[0]
    scales = pack_scales(planes)  # [blocks, bits, groups, 64]
    assert scales.dtype == planes.scales.dtype
    back = scales.transpose(1, 0, 3, 2).reshape(planes.bits, -1, scales.shape[2])
    assert np.array_equal(back[:, :n], planes.scales)
    assert not back[:, n:].any()
    pairs = ((pack_offsets(planes), planes.offsets), (pack_exponents(planes), planes.exponents))
    for packed, plain in pairs:
        assert (packed is None) == (plain is None)
        if packed is not None:  # [blocks, groups, 64]
            back = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])
            assert np.array_equal(back[:n], plain)
            assert not back[n:].any()


@settings(max_examples=20, deadline=None)
@given(bit_planes())
def test_dequantize_is_the_sum_of_scaled_signs(planes: BitPlanes) -> None:
    n, k = planes.shape
    signs = planes.signs()
    assert set(np.unique(signs)) <= {-1, 1}
    power = np.float64(1) if planes.exponents is None else 2.0 ** planes.exponents.astype(np.float64)
    scales = np.repeat(planes.scales * power, planes.group_size, axis=2)
    expected = (signs * scales).sum(axis=0)
    if planes.offsets is not None:
        expected += np.repeat(planes.offsets * power, planes.group_size, axis=1)
    assert planes.dequantize().shape == (n, k)
    np.testing.assert_allclose(planes.dequantize(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 8))
def test_column_layout(group: int, groups: int) -> None:
    layout = ColumnLayout(k=group * groups, group_size=group)
    assert layout.padded_group - group < 32
    assert layout.padded_group % layout.chunk == 0
    assert layout.chunk % 32 == 0
    assert layout.chunk <= 128
    assert layout.chunks * layout.chunk == layout.steps * 32 == layout.padded_k
    assert layout.dense == (group % 32 == 0)
    columns = np.arange(1, layout.k + 1)
    padded = layout.pad(columns)
    assert np.array_equal(padded[padded > 0], columns)


def small(**changes: object) -> BitPlanes:
    fields: dict[str, object] = {
        "planes": np.zeros((2, 3, 2), np.uint8),
        "scales": np.zeros((2, 3, 2), np.float16),
        "offsets": np.zeros((3, 2), np.float16),
        "shape": (3, 10),
        "group_size": 5,
    }
    return BitPlanes(**(fields | changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 4}, "group size 4 does not divide 10 columns"),
        ({"group_size": 0}, "group size 0 does not divide"),
        (
            {"planes": np.zeros((2, 3, 3), np.uint8)},
            r"are uint8\(2, 3, 3\), expected uint8\(2, 3, 2\)",
        ),
        ({"planes": np.zeros((2, 3, 2), np.int8)}, "planes are int8"),
        ({"scales": np.zeros((2, 3, 1), np.float16)}, r"scales are \(2, 3, 1\), expected \(2, 3, 2\)"),
        ({"scales": np.zeros((1, 3, 2), np.float16)}, "scales are"),
        ({"offsets": np.zeros((2, 2), np.float16)}, r"offsets are \(2, 2\), expected \(3, 2\)"),
        ({"exponents": np.zeros((3, 2), np.int8)}, "mantissas in int8 and exponents belong together"),
        ({"scales": np.zeros((2, 3, 2), np.int8)}, "mantissas in int8 and exponents belong together"),
        (
            {"scales": np.zeros((2, 3, 2), np.int8), "exponents": np.zeros((2, 3), np.int8)},
            r"exponents are \(2, 3\), expected \(3, 2\)",
        ),
    ],
)
def test_bad_planes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_nbytes_counts_every_array() -> None:
    assert small().nbytes == 2 * 3 * 2 + 2 * 3 * 2 * 2 + 3 * 2 * 2
    assert small(offsets=None).nbytes == 2 * 3 * 2 + 2 * 3 * 2 * 2
    mantissas, exponents = np.zeros((2, 3, 2), np.int8), np.zeros((3, 2), np.int8)
    pow2 = small(scales=mantissas, offsets=None, exponents=exponents)
    assert pow2.nbytes == 2 * 3 * 2 + (2 + 1) * 3 * 2


def test_word_planes_put_rows_at_their_words() -> None:
    first, second = small(offsets=None), small()
    first = replace(first, scales=np.full((2, 3, 2), 1, np.float16))
    second = replace(second, offsets=np.full((3, 2), 7, np.float16))
    words = WordPlanes(order=np.array([5, 0, 3, 1, 2, 4], np.int32), segments=(first, second))
    assert words.shape == (6, 10)
    assert words.dequantize()[:, 0].tolist() == [-2, 7, 7, -2, 7, -2]
    with pytest.raises(ValueError, match="segments hold 6 rows, the order names 5"):
        WordPlanes(order=np.arange(5, dtype=np.int32), segments=(first, second))


@pytest.mark.parametrize(("k", "group"), [(10, 3), (10, 0)])
def test_bad_column_layout(k: int, group: int) -> None:
    with pytest.raises(ValueError, match="does not divide 10 columns"):
        ColumnLayout(k=k, group_size=group)
