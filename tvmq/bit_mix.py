# SPDX-License-Identifier: Apache-2.0
"""A mix of widths for a requested average (``--bits 2.6``), from priors alone: no data, no model run.

Every matrix, and every cluster of words of an embedding, starts at one bit. Bits are then added where
they remove the most expected damage per byte, until the budget is spent. Damage = a power of the relative
error of the width x sensitivity of the block x share of the block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BlockBits

from .errors import UsageError
from .families.family import TensorInfo
from .size import order_bytes, planes_bytes
from .word_bits import frequency_order

Clusters = tuple[tuple[int, int], ...]

TOP_BITS = 4
RELATIVE_ERROR = {
    "alternating": (0.357, 0.115, 0.0339, 0.0099),
    "greedy": (0.357, 0.127, 0.0563, 0.0316),
    "rtn": (6.36, 0.398, 0.0713, 0.0155),
}
"""Mean squared error over mean square at 1..4 bits, with one scale per row, on trained weights."""
REFERENCE_ERROR = 0.115
"""The error that ``SENSITIVITY`` belongs to: alternating codes at 2 bits."""
SENSITIVITY = {"Emb": 1.0, "Enc_ee": 0.29, "Enc_ffn": 0.27, "Dec_dd": 0.22, "Dec_ed": 0.56, "Dec_ffn": 0.29}
"""Damage of a whole block at 2 bits. The geometric mean of two models: mean BLEU lost over 1..4 bits (Chung
et al. 2020, Table 1) and KL(p_FP32 || p_q) per token of the shipped en-de model, which is itself the mean of
the block alone and beside others of 2.3 bits."""
DAMAGE_POWER = 1.25
WORD_POWER = 1.75
"""How damage grows with the error, of matrices and of words: fitted to the same measurement."""
TOLERANCE = 0.05
"""How far above the largest mix a request may lie."""
FREQUENT = 0.6
"""Part of an embedding's damage that goes by the counts of words; the rest goes by their roots."""
WORD_CLUSTERS = 16
"""Equal parts of an embedding; the first is cut three times more, as word counts fall fast."""
CLUSTER_ROWS = 64
"""Clusters end at multiples of this: kernels work on whole blocks of so many rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """Rows that get one width: a matrix, or a cluster of words.

    Attributes:
        damage: expected loss at 1..4 bits.
        sizes: bytes at 1..4 bits.
    """

    tensor: str
    rows: int
    damage: tuple[float, ...]
    sizes: tuple[int, ...]


def mix_bits(
    tensors: Sequence[TensorInfo],
    entries: Mapping[str, BlockBits],
    *,
    average: float,
    fixed: Mapping[str, int],
    frequencies: NDArray[np.integer] | None,
) -> dict[str, int | Clusters]:
    """Bits of every tensor, or word clusters, whose total comes to at most ``average`` bits per weight.

    A larger ``average`` never gives a smaller model.

    Args:
        tensors: all quantizable matrices.
        entries: group size, quantizer, offset and scale dtype of each tensor; bits are ignored.
        average: bits per weight over all tensors, counting scales, offsets and word orders.
        fixed: tensors whose bits the user chose; they count towards the average.
        frequencies: counts per word, for clusters; None gives embeddings one width.

    Raises:
        UsageError: ``average`` lies outside what 1 to 4 bits (and the fixed tensors) can reach.
    """
    weights = sum(info.shape[0] * info.shape[1] for info in tensors)
    free = [info for info in tensors if info.name not in fixed]
    sensitivity = _sensitivity(tensors)
    units = [
        unit
        for info in free
        for unit in _units(info, entries[info.name], sensitivity[info.name], frequencies)
    ]
    fixed_bytes = sum(
        planes_bytes(entries[t.name], *t.shape, fixed[t.name]) for t in tensors if t.name in fixed
    )
    path = _path(units)
    bits_per_weight = (fixed_bytes + _sizes_along(units, path)) * 8 / weights
    fitting = np.flatnonzero(bits_per_weight <= average + 1e-9)
    low, high = bits_per_weight[0], bits_per_weight[-1]
    if not len(fitting) or average > high + TOLERANCE:
        raise UsageError(
            f"{average:g} bits per weight cannot be reached: this model and these settings reach "
            f"{math.ceil(low * 100) / 100:.2f} to {math.floor(high * 100) / 100:.2f}, counting scales"
        )
    budget = average * weights / 8 - fixed_bytes
    return _by_tensor(units, _spend(units, path, int(fitting[-1]), budget))


def _sensitivity(tensors: Sequence[TensorInfo]) -> dict[str, float]:
    """Each tensor's share of its block's sensitivity; blocks without a prior go by their size."""
    sizes = {info.name: info.shape[0] * info.shape[1] for info in tensors}
    blocks: dict[str, int] = {}
    for info in tensors:
        blocks[info.block] = blocks.get(info.block, 0) + sizes[info.name]
    per_weight = sum(SENSITIVITY.values()) / sum(blocks.values())
    return {
        info.name: SENSITIVITY.get(info.block, per_weight * blocks[info.block])
        * sizes[info.name]
        / blocks[info.block]
        for info in tensors
    }


def _units(
    info: TensorInfo, entry: BlockBits, sensitivity: float, frequencies: NDArray[np.integer] | None
) -> list[_Unit]:
    errors = RELATIVE_ERROR.get(entry.quantizer, RELATIVE_ERROR["alternating"])
    rows, columns = info.shape
    power = WORD_POWER if info.is_embedding else DAMAGE_POWER
    shares = {rows: 1.0}
    if info.is_embedding and frequencies is not None:
        shares = _word_shares(rows, frequencies)
    units, first = [], 0
    for last, share in shares.items():
        sizes = tuple(planes_bytes(entry, last - first, columns, bits) for bits in range(1, TOP_BITS + 1))
        damage = tuple(sensitivity * share * (error / REFERENCE_ERROR) ** power for error in errors)
        units.append(_Unit(tensor=info.name, rows=last - first, damage=damage, sizes=sizes))
        first = last
    return units


def _word_shares(rows: int, frequencies: NDArray[np.integer]) -> dict[int, float]:
    """End row of each cluster and how much of the embedding's damage falls on it.

    It goes by how often words occur and by the root of that: a rare word also disturbs the scores of others.
    """
    counts = np.asarray(frequencies, np.float64)[frequency_order(frequencies)] + 1e-9
    root = np.sqrt(counts)
    weight = FREQUENT * counts / counts.sum() + (1 - FREQUENT) * root / root.sum()
    parts = [1 / 8, 1 / 4, 1 / 2, *range(1, WORD_CLUSTERS)]
    ends = {int(rows * part / WORD_CLUSTERS) // CLUSTER_ROWS * CLUSTER_ROWS for part in parts}
    shares, first = {}, 0
    for last in sorted((ends | {rows}) - {0}):
        shares[last] = float(weight[first:last].sum())
        first = last
    return shares


def _path(units: Sequence[_Unit]) -> list[int]:
    """Units in the order in which they get one more bit: falling gain per byte."""
    steps = []
    for index, unit in enumerate(units):
        for level in range(TOP_BITS - 1):
            gain = unit.damage[level] - unit.damage[level + 1]
            steps.append((gain / (unit.sizes[level + 1] - unit.sizes[level]), index))
    return [index for _, index in sorted(steps, key=lambda step: -step[0])]


def _sizes_along(units: Sequence[_Unit], path: Sequence[int]) -> NDArray[np.float64]:
    """Bytes after 0, 1 .. len(path) steps; word orders count wherever an embedding's clusters differ."""
    clusters: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        clusters.setdefault(unit.tensor, []).append(index)
    level = [0] * len(units)
    planes, order = sum(unit.sizes[0] for unit in units), 0
    sizes = [planes]
    for index in path:
        together = clusters[units[index].tensor]
        order_size = order_bytes(sum(units[i].rows for i in together))
        order -= order_size * (len({level[i] for i in together}) > 1)
        planes += units[index].sizes[level[index] + 1] - units[index].sizes[level[index]]
        level[index] += 1
        order += order_size * (len({level[i] for i in together}) > 1)
        sizes.append(planes + order)
    return np.asarray(sizes, np.float64)


def _spend(units: Sequence[_Unit], path: Sequence[int], taken: int, budget: float) -> list[int]:
    """Bits of each unit: the first ``taken`` steps, then whichever later steps of whole matrices still fit.

    Every larger budget gives at least as many bytes: the first step that it takes and a smaller one
    refuses is larger than all that the smaller one had left.
    """
    bits = [1] * len(units)
    for index in path[:taken]:
        bits[index] += 1
    left = budget - _sizes_along(units, path)[taken]
    tensors = [unit.tensor for unit in units]
    refused = {index for index, name in enumerate(tensors) if tensors.count(name) > 1}
    for index in path[taken:]:
        sizes = units[index].sizes
        step = sizes[bits[index]] - sizes[bits[index] - 1] if index not in refused else np.inf
        if step <= left:
            bits[index] += 1
            left -= step
        else:
            refused.add(index)
    return bits


def _by_tensor(units: Sequence[_Unit], bits: Sequence[int]) -> dict[str, int | Clusters]:
    """Join neighbouring clusters of equal width; a tensor of one width is no cluster."""
    clusters: dict[str, list[tuple[int, int]]] = {}
    for unit, width in zip(units, bits, strict=True):
        known = clusters.setdefault(unit.tensor, [])
        if known and known[-1][1] == width:
            known[-1] = (known[-1][0] + unit.rows, width)
        else:
            known.append((unit.rows, width))
    return {name: found[0][1] if len(found) == 1 else tuple(found) for name, found in clusters.items()}
