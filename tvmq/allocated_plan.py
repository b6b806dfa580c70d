# SPDX-License-Identifier: Apache-2.0
"""From measured sensitivities and budgets to a bit plan: which choices there are, and what the best ones say.

``sensitivity`` measures, ``allocation`` solves; here their numbers meet the model's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import FLOAT_BITS, SCHEMA, BitPlan, BlockBits, WordBits

from .allocation import Choice, Item, Solution, pareto, solve
from .errors import InputError
from .families.family import TensorInfo, decodes
from .sensitivity_table import Coding, Sensitivities, UnitSensitivity
from .size import entry_bytes
from .timing import Timing
from .word_bits import (
    Clusters,
    WordCurve,
    algorithm1_clusters,
    lookup_curve,
    optimal_clusters,
    word_curve,
)

Words = Literal["optimum", "algorithm1"]
CurveOf = Callable[[Sequence[int], Sequence[int], NDArray[np.float64], NDArray[np.integer]], WordCurve]
RATIOS = (1.0, 2.0, 4.0, 8.0)
"""Ratios of Algorithm 1 that are offered: those of the paper."""
PER_BIT = 0.28
"""What one more bit leaves of the damage, for widths beyond the measured ones."""
_PRICES = 400
"""Prices at which word cuts are made; the solver then mixes them with everything else."""
CURVE = tuple(np.arange(1.25, 4.76, 0.25).tolist())
"""Bits per weight at which the Pareto curve is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan may cost; at least one of both.

    Attributes:
        bytes: planes, scales, offsets and orders of all planned matrices.
        ms: milliseconds per token in them.
    """

    bytes: float = math.inf
    ms: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A plan and what is expected of it.

    Attributes:
        plan: the bits.
        damage: expected loss of each tensor, by name, in the sensitivities' measure.
        ms: expected milliseconds per token of each tensor.
        solution: totals and the Lagrangian bound.
        curve: the best totals at other sizes.
    """

    plan: BitPlan
    damage: Mapping[str, float]
    ms: Mapping[str, float]
    solution: Solution
    curve: tuple[Solution, ...]


def allocate(
    tensors: Sequence[TensorInfo],
    sensitivities: Sensitivities,
    budget: Budget,
    *,
    source: str,
    coding: Coding | None = None,
    frequencies: NDArray[np.integer] | None = None,
    fixed: Mapping[str, int] | None = None,
    words: Words = "optimum",
    timing: Timing | None = None,
) -> Allocation:
    """The plan of least expected damage within ``budget``.

    Args:
        tensors: all quantizable matrices, covered by the sensitivities.
        sensitivities: measured damages.
        budget: bytes, milliseconds or both.
        source: how the plan was made, in words, for the plan itself.
        coding: how the plan's tensors are stored; None is as they were measured.
        frequencies: counts per word; without them embeddings get one width.
        fixed: bits of tensors that the user decided.
        words: how embeddings may be cut.
        timing: milliseconds per byte; by default memory bandwidth.

    Raises:
        UsageError: the budget cannot be kept.
    """
    timing, coding = timing or Timing(), coding or sensitivities.coding
    known = sensitivities.by_tensor()
    curve = word_curve if decodes(tensors) else lookup_curve
    items = [
        _item(
            info,
            known[info.name],
            coding,
            timing,
            (fixed or {}).get(info.name, None),
            frequencies,
            words,
            curve,
        )
        for info in tensors
    ]
    solution = solve(items, max_bytes=budget.bytes, max_ms=budget.ms)
    chosen = {item.tensor: item.choices[pick] for item, pick in zip(items, solution.picks, strict=True)}
    entries = [_entry(info, chosen[info.name].clusters, coding) for info in tensors]
    weights = sum(math.prod(info.shape) for info in tensors)
    return Allocation(
        plan=BitPlan(
            schema=SCHEMA,
            blocks=tuple(entry for entry in entries if isinstance(entry, BlockBits)),
            words=tuple(entry for entry in entries if isinstance(entry, WordBits)),
            source=source,
        ),
        damage={name: choice.damage for name, choice in chosen.items()},
        ms={name: choice.ms for name, choice in chosen.items()},
        solution=solution,
        curve=tuple(pareto(items, [bits * weights / 8 for bits in CURVE])),
    )


def expected_damage(
    info: TensorInfo,
    units: Sequence[UnitSensitivity],
    clusters: Clusters,
    frequencies: NDArray[np.integer] | None,
    *,
    looked_up: bool = False,
) -> float:
    """The loss that is expected of ``info`` stored as ``clusters``.

    Args:
        info: the matrix.
        units: what was measured on it, rows ascending.
        clusters: (rows, bits), most frequent words first; one pair for a whole matrix.
        frequencies: counts per word; needed for more than one cluster.
        looked_up: the rows of tables are only looked up, as in models without a decoder.

    Raises:
        InputError: more than one cluster and no counts for these words.
    """
    widths, damage = _measured(units)
    if len(clusters) == 1:
        return _extended(widths, damage.sum(1), clusters[0][1])
    if frequencies is None or len(frequencies) != info.shape[0]:
        raise InputError(
            f"{info.name} has bits by word, whose loss follows from counts of its {info.shape[0]} words; "
            "give --frequencies FILE"
        )
    known = sorted({*widths, *(bits for _, bits in clusters)})
    wider = np.array([[_extended(widths, column, bits) for column in damage.T] for bits in known])
    ends = np.cumsum([unit.rows for unit in units]).tolist()
    return (lookup_curve if looked_up else word_curve)(ends, known, wider, frequencies).of(clusters)


def _measured(units: Sequence[UnitSensitivity]) -> tuple[list[int], NDArray[np.float64]]:
    """The widths that all units were measured at, and float64[widths, units], never rising with the bits."""
    widths = sorted(set.intersection(*(set(unit.bits) for unit in units)))
    damage = np.array([[unit.kl[unit.bits.index(bits)] for unit in units] for bits in widths])
    return widths, np.minimum.accumulate(damage, 0)


def _item(
    info: TensorInfo,
    units: Sequence[UnitSensitivity],
    coding: Coding,
    timing: Timing,
    fixed: int | None,
    frequencies: NDArray[np.integer] | None,
    words: Words,
    curve_of: CurveOf,
) -> Item:
    rows = info.shape[0]
    widths, damage = _measured(units)
    if fixed is not None:
        cuts: list[Clusters] = [((rows, fixed),)]
        expected = [_extended(widths, damage.sum(1), fixed)]
    elif not info.is_embedding or frequencies is None or len(units) == 1:
        cuts = [((rows, bits),) for bits in widths]
        expected = damage.sum(1).tolist()
    else:
        ends = np.cumsum([unit.rows for unit in units]).tolist()
        curve = curve_of(ends, widths, damage, frequencies)
        cuts = _word_cuts(info, curve, coding, words)
        expected = [curve.of(cut) for cut in cuts]
    sizes = [entry_bytes(_entry(info, cut, coding), info.shape) for cut in cuts]
    return Item(
        tensor=info.name,
        choices=tuple(
            Choice(clusters=cut, bytes=size, ms=timing.ms(info, cut, size), damage=value)
            for cut, size, value in zip(cuts, sizes, expected, strict=True)
        ),
    )


def _word_cuts(info: TensorInfo, curve: WordCurve, coding: Coding, words: Words) -> list[Clusters]:
    """The cuts worth a look: one width, and those that are best at some price or that Algorithm 1 makes."""
    single: list[Clusters] = [((info.shape[0], bits),) for bits in curve.bits]
    if words == "algorithm1":
        return list(dict.fromkeys([*single, *algorithm1_clusters(info.shape[0], curve.bits, RATIOS)]))
    row_bytes = [entry_bytes(coding.entry(info, bits), (1, info.shape[1])) for bits in curve.bits]
    per_byte = curve.damage[0, -1] / (row_bytes[0] * info.shape[0])
    prices = per_byte * np.geomspace(1e-5, 1e3, _PRICES)
    return list(dict.fromkeys([*single, *optimal_clusters(curve, row_bytes, prices)]))


def _extended(widths: Sequence[int], damage: NDArray[np.float64], bits: int) -> float:
    """Damage at a width that may not have been measured: none in FP32, else a constant factor per bit."""
    if bits == FLOAT_BITS:
        return 0.0
    if bits in widths:
        return float(damage[widths.index(bits)])
    near = min(range(len(widths)), key=lambda i: abs(widths[i] - bits))
    return float(damage[near] * PER_BIT ** (bits - widths[near]))


def _entry(info: TensorInfo, clusters: Clusters, coding: Coding) -> BlockBits | WordBits:
    first = coding.entry(info, clusters[0][1])
    if len(clusters) == 1:
        plain = BlockBits(tensor=info.name, block=info.block, bits=FLOAT_BITS)
        return plain if first.bits == FLOAT_BITS else first
    return first.by_word(clusters)
