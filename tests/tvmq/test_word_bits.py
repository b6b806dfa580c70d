# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1, the optimum beside it, and the counts both sort by."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.errors import InputError
from tvmq.word_bits import (
    Clusters,
    WordCurve,
    algorithm1_clusters,
    cluster_sizes,
    count_tokens,
    frequency_order,
    optimal_clusters,
    word_curve,
)


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


def curve_of(v: int, exponent: float) -> WordCurve:
    """Zipf counts; damage of each of three clusters at 1..4 bits."""
    counts = (1e6 / (np.arange(v) + 1) ** exponent).astype(np.int64)
    ends = [v // 8 // 64 * 64, v // 2 // 64 * 64, v]
    share = np.diff([0, *(counts.cumsum()[np.array(ends) - 1] / counts.sum())]) + 0.1
    damage = share * np.array([[1.0], [0.3], [0.08], [0.02]])
    return word_curve(ends, (1, 2, 3, 4), damage, counts)


def test_the_curve_keeps_what_was_measured() -> None:
    counts = np.random.default_rng(0).permutation((1e6 / (np.arange(320) + 1)).astype(np.int64))
    damage = np.array([[3.0, 2.0, 1.0], [1.0, 0.9, 0.2], [0.5, 0.95, 0.1]])
    curve = word_curve([64, 128, 320], (1, 2, 3), damage, counts)
    falling = np.minimum.accumulate(damage, 0)
    np.testing.assert_allclose(curve.damage[:, [64, 128, 320]], np.cumsum(falling, 1))
    assert (np.diff(curve.damage, axis=1) > 0).all()
    assert curve.of(((64, 3), (64, 2), (192, 1))) == pytest.approx(0.5 + 0.9 + 1.0)


@given(st.integers(512, 900), st.floats(0.3, 1.5), st.floats(-7, -3))
@settings(max_examples=25, deadline=None)
def test_the_optimum_is_one(v: int, exponent: float, log_price: float) -> None:
    """Against every cut whose bits do not rise, at one price."""
    curve = curve_of(v, exponent)
    price = 10.0**log_price
    (found,) = optimal_clusters(curve, (9, 18, 27, 36), np.array([price]))
    widths = [bits for _, bits in found]
    assert widths == sorted(set(widths), reverse=True)
    assert sum(rows for rows, _ in found) == v
    assert all(rows % 64 == 0 for rows, _ in found[:-1])

    def cost(clusters: Clusters) -> float:
        return curve.of(clusters) + price * sum(9 * rows * bits for rows, bits in clusters)

    edges = [*range(0, v, 64), v]
    others = []
    for cuts in itertools.combinations_with_replacement(edges, 3):
        rows = np.diff([0, *cuts, v]).tolist()
        others.append(tuple((n, bits) for n, bits in zip(rows, (4, 3, 2, 1), strict=True) if n))
    assert cost(found) == pytest.approx(min(map(cost, others)))


def test_the_optimum_beats_algorithm_1() -> None:
    """Less damage than every cut of Algorithm 1 at its size, on the line between neighbouring optima."""
    curve = curve_of(16000, 1.0)
    best = optimal_clusters(curve, (66, 132, 198, 264), np.geomspace(1e-9, 1e-4, 2000))
    points = sorted((sum(66 * rows * bits for rows, bits in cut), curve.of(cut)) for cut in best)
    for cut in algorithm1_clusters(16000, (2, 3, 4), (1.0, 2.0, 4.0, 8.0)):
        if len(cut) == 1:
            continue
        size, damage = sum(66 * rows * bits for rows, bits in cut), curve.of(cut)
        assert np.interp(size, *zip(*points, strict=True)) < damage


def test_every_cut_of_algorithm_1_once() -> None:
    cuts = algorithm1_clusters(1000, (1, 2), (1.0, 4.0))
    assert cuts == [((1000, 1),), ((1000, 2),), ((500, 2), (500, 1)), ((200, 2), (800, 1))]
