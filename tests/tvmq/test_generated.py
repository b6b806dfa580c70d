# SPDX-License-Identifier: Apache-2.0
"""Computed and widened weights: exact, or refused with a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvmq.generated import PositionTable, complete, halved, inverse, sinusoidal
from tvmq.manifest import Inverse, Sinusoidal
from tvmq.weights import computed_orders


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("count", [0, 1, 777])
def test_inverse(dtype: str, count: int) -> None:
    rank = np.random.default_rng(0).permutation(count).astype(dtype)
    order = inverse(rank)
    assert order.dtype == dtype
    np.testing.assert_array_equal(order, np.argsort(rank))


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (np.array([0, 2, 2], np.uint16), r"does not name each of 0\.\.2 once"),
        (np.array([0, 3, 1], np.uint16), r"outside 0\.\.2"),
        (np.array([0, -1, 1], np.int32), r"outside 0\.\.2"),
        (np.array([[0, 1]], np.int32), "no list of integers"),
        (np.array([0, 1], np.float32), "no list of integers"),
    ],
)
def test_what_is_no_permutation(rank: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inverse(rank)


@given(arrays(np.float16, st.integers(0, 40), elements=st.floats(width=16, allow_nan=False)))
def test_halves_are_stored_as_such_and_come_back_to_the_bit(values: np.ndarray) -> None:
    vector = values.astype(np.float32)  # zeros of both signs, subnormals and infinities too
    stored = halved("x.bias", vector)
    assert stored.dtype == np.float16
    back = complete({"x.bias": stored}, {})["x.bias"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back.view(np.uint32), vector.view(np.uint32))


@pytest.mark.parametrize("value", [0.1, 65536.0, 1e-8, 1 + 2**-11, 3e38])
def test_vectors_that_need_all_bits_keep_them(value: float) -> None:
    vector = np.array([1, value], np.float32)
    assert halved("x.bias", vector) is vector
    assert complete({"x.bias": vector}, {})["x.bias"] is vector


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("w:scales", np.ones(3, np.float32)),
        ("w", np.ones((2, 3), np.float32)),
        ("banned", np.ones(3, np.int32)),
        ("scalar", np.float32(1)[...]),
    ],
)
def test_only_plain_vectors_are_halved(name: str, array: np.ndarray) -> None:
    assert halved(name, array) is array


@pytest.mark.parametrize("name", ["w:scales", "w:0:offsets"])
def test_stored_half_scales_stay(name: str) -> None:
    scales = np.ones(3, np.float16)
    assert complete({name: scales}, {})[name] is scales


def test_rules() -> None:
    rank = np.array([2, 0, 1], np.uint16)
    found = complete(
        {"w:rank": rank}, {"w:order": Inverse(source="w:rank"), "p": Sinusoidal(rows=5, columns=4)}
    )
    assert found["w:order"].tolist() == [1, 2, 0]
    np.testing.assert_array_equal(found["p"], sinusoidal(5, 4))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Inverse(source="v:rank"), "'w:order' cannot be computed: its source 'v:rank' is not stored"),
        (Inverse(source="w:order"), "its source 'w:order' is not stored"),
        (Inverse(source="twice"), "its source 'twice' is no permutation"),
        (Sinusoidal(rows=1 << 20, columns=1 << 16), "expected at most"),
    ],
)
def test_rules_that_cannot_be_followed(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        complete({"twice": np.zeros(3, np.uint16)}, {"w:order": rule})


def test_a_tensor_is_stored_or_computed() -> None:
    with pytest.raises(ValueError, match="'p' is both stored and computed"):
        complete({"p": np.zeros(3)}, {"p": Sinusoidal(rows=5, columns=4)})


def test_orders_follow_from_stored_ranks() -> None:
    names = ["a:order", "a:rank", "b:order", "c:rank", "reorder"]
    assert computed_orders(names) == {"a:order": Inverse(source="a:rank")}


@pytest.mark.parametrize(("rows", "columns"), [(512, 512), (100, 7), (1, 2)])
def test_positions_are_those_of_transformers(rows: int, columns: int) -> None:
    """Marian's formula in NumPy, double precision, to the bit."""
    column = np.arange(columns)
    angles = np.arange(rows)[:, None] / np.power(10000, 2 * (column // 2) / columns)
    expected = np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1)
    np.testing.assert_array_equal(sinusoidal(rows, columns), expected.astype(np.float32))
    half = sinusoidal(rows, columns, start=rows // 2)
    np.testing.assert_array_equal(half, expected.astype(np.float32)[rows // 2 :])


def test_position_table_fills_on_demand_to_the_same_bits() -> None:
    table, whole = PositionTable(37, 24), sinusoidal(37, 24)
    for count in (3, 2, 17, 99):
        table.fill(count)
        np.testing.assert_array_equal(table.array[:count], whole[:count])
    with pytest.raises(ValueError, match="expected at most"):
        PositionTable(1 << 20, 1 << 16)
