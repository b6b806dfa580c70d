# SPDX-License-Identifier: Apache-2.0
"""Bits by word frequency: Algorithm 1 of Chung et al. 2020 and the token counts it sorts by."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


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
