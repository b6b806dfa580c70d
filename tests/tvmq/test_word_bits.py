# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 and the counts it sorts by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmq.errors import InputError
from tvmq.word_bits import cluster_sizes, count_tokens, frequency_order


class Letters:
    """a, b, c .. as 0, 1, 2 .., with the end token 0."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text] + [0]


def test_order_is_falling_with_ties_by_id() -> None:
    order = frequency_order(np.array([3, 5, 3, 0, 5], np.int64))
    assert order.tolist() == [1, 4, 0, 2, 3]
    assert order.dtype == np.int32


@pytest.mark.parametrize("counts", [np.array([1, -1]), np.zeros((2, 2), np.int64), np.zeros(0, np.int64)])
def test_impossible_counts(counts: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected one count of at least 0 per word"):
        frequency_order(counts)


@pytest.mark.parametrize(
    ("r", "sizes", "average"),
    [
        (1, (8192, 8192, 8192, 8192), 2.5),
        (2, (2184, 4369, 8738, 17477), 1.733),
        (4, (385, 1542, 6168, 24673), 1.3176),
        (8, (56, 448, 3584, 28680), 1.1419),
    ],
)
def test_clusters_of_the_paper(r: int, sizes: tuple[int, ...], average: float) -> None:
    assert cluster_sizes(32768, 4, r) == sizes
    mean = sum(rows * (4 - i) for i, rows in enumerate(sizes)) / 32768
    assert mean == pytest.approx(average, abs=1e-3)


@given(st.integers(1, 100_000), st.integers(1, 8), st.floats(0.25, 16))
def test_clusters_hold_every_word(v: int, b: int, r: float) -> None:
    sizes = cluster_sizes(v, b, r)
    assert len(sizes) == b
    assert sum(sizes) == v
    assert min(sizes) >= 0


@pytest.mark.parametrize(("v", "b", "r"), [(0, 4, 1), (9, 0, 1), (9, 4, 0), (9, 4, float("nan"))])
def test_impossible_clusters(v: int, b: int, r: float) -> None:
    with pytest.raises(ValueError, match="expected all above 0"):
        cluster_sizes(v, b, r)


def test_counting_a_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abc\r\n\ncc\n", encoding="utf-8")
    assert count_tokens(path, Letters(), 4).tolist() == [4, 1, 3, 0]


def test_counting_what_cannot_be_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        count_tokens(tmp_path / "missing", Letters(), 4)
    path = tmp_path / "text"
    path.write_bytes(b"ab\xff\n")
    with pytest.raises(InputError, match="not UTF-8 text"):
        count_tokens(path, Letters(), 4)
    path.write_text("aa\naz\n", encoding="utf-8")
    with pytest.raises(InputError, match="text:2: token id 25 for a vocabulary of 4"):
        count_tokens(path, Letters(), 4)
