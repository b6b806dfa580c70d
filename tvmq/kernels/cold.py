# SPDX-License-Identifier: Apache-2.0
"""How weights are kept out of the caches: copies that are used in turn, more than the caches hold."""

from __future__ import annotations

from schedules.workload import Workload

MEMORY = 256 << 20
"""Bytes that ``bench kernels`` goes through: eight times the last-level cache of large servers' cores."""
TUNING_MEMORY = 96 << 20
"""Bytes that a candidate goes through: more than a core's share of any last-level cache, and sooner there."""
MOST_COPIES = 4096
"""Copies of small weights, which then lie apart."""
MOST_TUNING_COPIES = 1500


def copies_of(weight_bytes: int, memory: int, most: int) -> tuple[int, int]:
    """Number of copies of weights, and the bytes from one to the next."""
    copies = min(most, max(2, -(-memory // max(1, weight_bytes))))
    return copies, memory // copies


def tuning_copies(workload: Workload, weight_bytes: int) -> tuple[int, int]:
    """The same for a candidate: several tokens are timed with the weights in the caches."""
    if workload.m > 1:
        return 1, 0
    return copies_of(weight_bytes, TUNING_MEMORY, MOST_TUNING_COPIES)
