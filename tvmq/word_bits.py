# SPDX-License-Identifier: Apache-2.0
"""Bits by word frequency: Algorithm 1 of Chung et al. 2020, the optimum beside it, and the token counts.

Words are in the order of falling frequency throughout; a word's place in it is its rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Clusters = tuple[tuple[int, int], ...]
"""(rows, bits), most frequent words first."""
KERNEL_ROWS = 64
"""Clusters of the optimum end at multiples of this: kernels work on whole blocks of so many rows."""

PRIOR_SHARE = 0.01


class TextEncoder(Protocol):
    """What counting needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of one line."""
        ...


def frequency_order(counts: NDArray[np.integer]) -> NDArray[np.int32]:
    """Word ids by falling count, equal counts by id: int32[v]."""
    wide = np.asarray(counts, np.int64)
    if wide.ndim != 1 or not len(wide) or wide.min() < 0:
        raise InputError(f"token counts of shape {wide.shape} (expected one count of at least 0 per word)")
    return np.argsort(-wide, kind="stable").astype(np.int32)


def cluster_sizes(v: int, b: int, r: float) -> tuple[int, ...]:
    """Rows of each of ``b`` clusters of ``v`` words, most frequent first, each ``r`` times the one before.

    Cluster i gets floor(v r^i / sum_k r^k) rows and b - i bits in Algorithm 1; the last takes the rest.
    Small vocabularies can leave the first clusters empty.
    """
    if v < 1 or b < 1 or not r > 0:
        raise ValueError(f"no clusters for {v} words, b = {b}, r = {r} (expected all above 0)")
    total = sum(r**k for k in range(b))
    sizes = [int(v * r**i // total) for i in range(b - 1)]
    return (*sizes, v - sum(sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class WordCurve:
    """Expected damage of the words up to each rank: what any cut into clusters costs.

    Attributes:
        bits: the widths, ascending.
        damage: float64[widths, v + 1], running totals of p_v err_v(q) over the ranks; rising bits lower it.
    """

    bits: tuple[int, ...]
    damage: NDArray[np.float64]

    @property
    def words(self) -> int:
        return self.damage.shape[1] - 1

    def of(self, clusters: Clusters) -> float:
        """The damage of all words with these bits."""
        total, first = 0.0, 0
        for rows, bits in clusters:
            running = self.damage[self.bits.index(bits)]
            total += float(running[first + rows] - running[first])
            first += rows
        return total


def word_curve(
    ends: Sequence[int], bits: Sequence[int], damage: NDArray[np.float64], counts: NDArray[np.integer]
) -> WordCurve:
    """Spread the damage that was measured on clusters over their words.

    Within a cluster it goes by p_v = a f_v + b sqrt(f_v), f_v the share of word v in the text: a word matters
    where it occurs, and rare ones also disturb the scores of others. a and b are fitted to all clusters.

    Args:
        ends: rank after the last word of each cluster, ascending to the number of words.
        bits: widths, ascending.
        damage: float64[widths, clusters].
        counts: occurrences of each word, by word id.
    """
    used = np.sort(np.asarray(counts, np.float64))[::-1] + 1
    edges = np.array([0, *ends])
    weight = _word_weights(edges, damage.mean(0), used / used.sum())
    curve = np.zeros((len(bits), len(used) + 1))
    falling = np.minimum.accumulate(damage, 0)
    for cluster, (first, last) in enumerate(pairwise(edges)):
        inside = np.cumsum(weight[first:last])
        curve[:, first + 1 : last + 1] = (
            curve[:, first, None] + falling[:, cluster, None] * inside / inside[-1]
        )
    return WordCurve(bits=tuple(bits), damage=curve)


def lookup_curve(
    ends: Sequence[int], bits: Sequence[int], damage: NDArray[np.float64], counts: NDArray[np.integer]
) -> WordCurve:
    """As ``word_curve``, for a table whose rows are only looked up: p_v is how often word v is expected.

    Words that the text lacks are expected by Good and Turing: together as often as those that it holds once.
    A cluster's damage per occurrence is what was measured, drawn to the mean where its words are too rare for
    that: as if each also had ``PRIOR_SHARE`` of the text with the mean damage.
    """
    used = np.sort(np.asarray(counts, np.float64))[::-1]
    edges = np.array([0, *ends])
    share, seen = _expected_shares(used), used / max(used.sum(), 1)
    falling = np.minimum.accumulate(damage, 0)
    mean = falling.sum(1, keepdims=True)
    each = (falling + PRIOR_SHARE * mean) / (np.add.reduceat(seen, edges[:-1]) + PRIOR_SHARE)
    curve = np.cumsum(share * np.repeat(each, np.diff(edges), axis=1), axis=1)
    return WordCurve(bits=tuple(bits), damage=np.pad(curve, ((0, 0), (1, 0))))


def _expected_shares(used: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of further text that each word will be, from its counts in falling order."""
    total, missing, once = used.sum(), int((used == 0).sum()), int((used == 1).sum())
    if not total:
        return np.full(len(used), 1 / len(used))
    unseen = min(once / total, 0.5) if missing else 0.0
    return np.where(used > 0, used / total * (1 - unseen), unseen / max(missing, 1))


def _word_weights(
    edges: NDArray[np.integer], damage: NDArray[np.float64], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """p_v by rank: the mix of f and sqrt(f) that fits the clusters' damages best, relatively."""
    root = np.sqrt(share) / np.sqrt(share).sum()
    parts = np.stack([np.add.reduceat(use, edges[:-1]) for use in (share, root)], 1)
    scale = np.maximum(damage, 1e-12 * max(float(damage.max()), 1e-300))[:, None]
    both = np.linalg.lstsq(parts / scale, np.ones(len(parts)), rcond=None)[0]
    if both.min() < 0:
        both = np.array([0.5, 0.5])
    return both[0] * share + both[1] * root


def optimal_clusters(
    curve: WordCurve, row_bytes: Sequence[int], prices: NDArray[np.float64]
) -> list[Clusters]:
    """The cuts that minimise damage + price x bytes, for each price: the optimum of sum p_v err_v(q_v).

    Bits never rise with the rank; a dynamic program over blocks of ``KERNEL_ROWS`` words.

    Args:
        curve: damages.
        row_bytes: bytes of one word at each of the curve's widths.
        prices: float64[n], damage per byte.

    Returns:
        The different cuts, in the order of the prices.
    """
    edges = np.unique([*range(0, curve.words, KERNEL_ROWS), curve.words])
    rows = np.diff(edges)
    damage = np.diff(curve.damage[:, edges])[::-1]
    sizes = np.asarray(row_bytes, np.float64)[::-1, None] * rows
    cost = damage[None] + prices[:, None, None] * sizes[None]  # [prices, widths from the widest, blocks]
    best, came = cost[:, :, 0], np.zeros(cost.shape, np.intp)
    for block in range(1, len(rows)):
        running = np.minimum.accumulate(best, 1)
        wider = np.where(best <= running, np.arange(best.shape[1]), 0)
        came[:, :, block] = np.maximum.accumulate(wider, 1)
        best = running + cost[:, :, block]
    level = np.argmin(best, 1)
    levels = np.empty((len(prices), len(rows)), np.intp)
    for block in reversed(range(len(rows))):
        levels[:, block] = level
        level = came[np.arange(len(prices)), level, block]
    widths = curve.bits[::-1]
    found = {
        tuple(
            (sum(int(rows[block]) for block in blocks), widths[width]) for width, blocks in _runs(chosen)
        ): None
        for chosen in levels.tolist()
    }
    return list(found)


def _runs(values: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Each run of equal values with its places."""
    return [(value, list(places)) for value, places in groupby(range(len(values)), values.__getitem__)]


def algorithm1_clusters(words: int, widths: Sequence[int], ratios: Sequence[float]) -> list[Clusters]:
    """Every cut that Algorithm 1 gives for b in ``widths`` and r in ``ratios``, single widths included."""
    cuts = []
    for b in widths:
        cuts.append(((words, b),))
        for r in ratios:
            sizes = cluster_sizes(words, b, r)
            cuts.append(tuple((rows, b - i) for i, rows in enumerate(sizes) if rows))
    return list(dict.fromkeys(cuts))


def count_tokens(path: Path, tokenizer: TextEncoder, vocabulary: int) -> NDArray[np.int64]:
    """How often each of ``vocabulary`` token ids occurs in a UTF-8 text file of one sentence a line."""
    counts = np.zeros(vocabulary, np.int64)
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                ids = np.asarray(tokenizer.encode(line.strip()), np.int64)
                if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary):
                    raise InputError(
                        f"{path}:{number}: token id {ids.max()} for a vocabulary of {vocabulary}; "
                        "take the model's own tokenizer"
                    )
                counts += np.bincount(ids, minlength=vocabulary)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return counts
