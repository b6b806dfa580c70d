# SPDX-License-Identifier: Apache-2.0
"""What measured sensitivities say about a plan, and about the plans it could have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan
from schedules.packing import BLOCK_ROWS
from tvmq.allocated_plan import Allocation, Budget, allocate, expected_damage
from tvmq.errors import InputError, UsageError
from tvmq.families import TensorInfo, decodes
from tvmq.planning import make_plan
from tvmq.sensitivity_table import Coding, Sensitivities, UnitSensitivity
from tvmq.size import entry_bytes
from tvmq.timing import Timing, timing_of
from tvmq.word_bits import Clusters

from .subject import Matrix, Subject, clusters_of

PAPER = ("chung2020-2.5-1.8-3.7", "chung2020-1.3-1.8-3.7", "chung2020-1.1-1.8-3.7")
"""The paper's mixes with every block quantized."""
TIME_BUDGETS = 12
"""Points of the curve over milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A plan on a curve.

    Attributes:
        name: what to call it; "" on the curve itself.
        bytes: of the whole model.
        ms: milliseconds per token in the matrices.
        loss: expected, see ``Losses.measure``.
    """

    name: str = ""
    bytes: int
    ms: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Expected losses.

    Attributes:
        measure: what losses are, in words.
        measured: block -> bits -> loss of that block alone, the paper's Table 1 by KL.
        by_tensor: of the plan's matrices, by name.
        plan: the plan itself.
        curve: the best plans by size.
        time_curve: the best plans by milliseconds; empty without measured times.
        references: one width for all, and the paper's mixes.
        coding: how the measured matrices were quantized.
        same_coding: the plan quantizes in the same way.
        same_model: the measurement is known to be of this model.
        sentences: how many were read.
        around: the other matrices were quantized meanwhile.
        estimated: by gradients instead of measured.
    """

    measure: str
    measured: Mapping[str, Mapping[int, float]]
    by_tensor: Mapping[str, float]
    plan: Point
    curve: tuple[Point, ...]
    time_curve: tuple[Point, ...]
    references: tuple[Point, ...]
    coding: Coding
    same_coding: bool
    same_model: bool
    sentences: int
    around: bool
    estimated: bool

    def by_block(self, subject: Subject) -> dict[str, float]:
        """Expected loss of the plan's blocks."""
        found: dict[str, float] = {}
        for matrix in subject.matrices:
            block = matrix.info.block
            found[block] = found.get(block, 0.0) + self.by_tensor[matrix.info.name]
        return found


def expected_losses(
    subject: Subject,
    sensitivities: Sensitivities,
    frequencies: NDArray[np.integer] | None,
    times: Path | None,
) -> Losses:
    """The plan and its alternatives under ``sensitivities``.

    Args:
        subject: the model with its plan.
        sensitivities: measured on the float model.
        frequencies: counts per word.
        times: file of measured milliseconds.

    Raises:
        InputError: the sensitivities are of another model, or the times cannot be used.
        MissingToolError: scipy is not installed.
    """
    known = sensitivities.by_tensor()
    tensors = [_exact(matrix, known.get(matrix.info.name, [])) for matrix in subject.matrices]
    sensitivities.check(tensors, subject.model_sha256 or sensitivities.model_sha256)
    model = _Model(
        tensors=tensors,
        known=known,
        coding=sensitivities.coding,
        frequencies=_counts(tensors, frequencies),
        timing=_timing(tensors, sensitivities, times),
        other_bytes=subject.other_bytes,
    )
    by_tensor = {
        info.name: model.damage(info, matrix.clusters)
        for info, matrix in zip(tensors, subject.matrices, strict=True)
    }
    whole = model.allocate(sensitivities, Budget())
    codings = {matrix.coding for matrix in subject.matrices if matrix.coding is not None}
    measured: dict[str, dict[int, float]] = {}
    for unit in sensitivities.units:
        row = measured.setdefault(unit.block, {})
        for bits, kl in zip(unit.bits, unit.kl, strict=True):
            row[bits] = row.get(bits, 0.0) + kl
    return Losses(
        measure=sensitivities.measure,
        measured=measured,
        by_tensor=by_tensor,
        plan=replace(model.point("this plan", subject.plan), bytes=subject.bytes),
        curve=tuple(
            Point(bytes=found.bytes + model.other_bytes, ms=found.ms, loss=found.damage)
            for found in whole.curve
        ),
        time_curve=model.time_curve(sensitivities) if times is not None else (),
        references=model.references(sorted({bits for unit in sensitivities.units for bits in unit.bits})),
        coding=sensitivities.coding,
        same_coding=codings <= {sensitivities.coding},
        same_model=subject.model_sha256 is not None,
        sentences=sensitivities.sentences,
        around=bool(sensitivities.around),
        estimated=sensitivities.method == "fisher",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What every plan of one model is judged by."""

    tensors: Sequence[TensorInfo]
    known: Mapping[str, list[UnitSensitivity]]
    coding: Coding
    frequencies: NDArray[np.integer] | None
    timing: Timing
    other_bytes: int

    def allocate(self, sensitivities: Sensitivities, budget: Budget) -> Allocation:
        """The best plan."""
        return allocate(
            self.tensors,
            sensitivities,
            budget,
            source="report",
            frequencies=self.frequencies,
            timing=self.timing,
        )

    def damage(self, info: TensorInfo, clusters: Clusters) -> float:
        """The expected loss of one matrix."""
        known, looked_up = self.known[info.name], not decodes(self.tensors)
        return expected_damage(info, known, clusters, self.frequencies, looked_up=looked_up)

    def point(self, name: str, plan: BitPlan) -> Point:
        """Where a plan of these tensors lies."""
        entries = {entry.tensor: entry for entry in plan.entries()}
        size, ms, loss = self.other_bytes, 0.0, 0.0
        for info in self.tensors:
            entry = entries[info.name]
            clusters = clusters_of(entry, info.shape[0])
            stored = entry_bytes(entry, info.shape)
            size += stored
            ms += self.timing.ms(info, clusters, stored)
            loss += self.damage(info, clusters)
        return Point(name=name, bytes=size, ms=ms, loss=loss)

    def references(self, widths: Sequence[int]) -> tuple[Point, ...]:
        """One width for all tensors, and the paper's mixes where they fit the model."""
        found = [
            self.point("1 bit" if bits == 1 else f"{bits} bits", self._plan(uniform=bits)) for bits in widths
        ]
        for preset in PAPER:
            try:
                found.append(self.point(preset, self._plan(preset=preset)))
            except UsageError:  # another family's blocks, or no counts of its words
                continue
        return tuple(found)

    def time_curve(self, sensitivities: Sensitivities) -> tuple[Point, ...]:
        """The best plans between the fastest and the one without a limit."""
        slowest = self.allocate(sensitivities, Budget()).solution.ms
        fastest = self.point("", self._plan(uniform=1)).ms
        found = []
        for limit in np.geomspace(fastest * (1 + 1e-9), max(slowest, fastest * 1.01), TIME_BUDGETS):
            try:
                best = self.allocate(sensitivities, Budget(ms=float(limit))).solution
            except UsageError:  # 1 bit was not measured
                continue
            found.append(Point(bytes=best.bytes + self.other_bytes, ms=best.ms, loss=best.damage))
        return tuple(dict.fromkeys(found))

    def _plan(self, *, uniform: int | None = None, preset: str | None = None) -> BitPlan:
        return make_plan(
            self.tensors,
            uniform=uniform,
            preset=preset,
            quantizer=self.coding.quantizer,
            group_size=self.coding.group_size or 0,
            offset=self.coding.offset,
            scale_dtype=self.coding.scale_dtype,
            outliers=self.coding.outliers,
            frequencies=self.frequencies,
        )


def _exact(matrix: Matrix, units: Sequence[UnitSensitivity]) -> TensorInfo:
    """The matrix without the rows that only pad it: as many as were measured."""
    info = matrix.info
    rows = sum(unit.rows for unit in units)
    padded = -(-rows // BLOCK_ROWS) * BLOCK_ROWS == info.shape[0]
    return replace(info, shape=(rows, info.shape[1])) if padded and len(matrix.clusters) == 1 else info


def _counts(
    tensors: Sequence[TensorInfo], frequencies: NDArray[np.integer] | None
) -> NDArray[np.integer] | None:
    """The counts, where they are of the words of every embedding."""
    fit = all(
        frequencies is not None and len(frequencies) == info.shape[0] for info in tensors if info.is_embedding
    )
    return frequencies if fit else None


def _timing(tensors: Sequence[TensorInfo], sensitivities: Sensitivities, times: Path | None) -> Timing:
    if sensitivities.sentences < 1 or sensitivities.tokens < 1:
        raise InputError("the sensitivities were measured on no sentences; measure again")
    return timing_of(tensors, sensitivities.tokens / sensitivities.sentences, sensitivities.coding, times)
