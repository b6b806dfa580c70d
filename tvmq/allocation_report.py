# SPDX-License-Identifier: Apache-2.0
"""What ``tvmq plan`` found, for people and for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .allocated_plan import Allocation
from .block_scores import BlockScores
from .model_plan import PlanReport
from .sensitivity_table import KL_PER_TOKEN, Sensitivities


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationReport:
    """What ``tvmq plan`` found.

    Attributes:
        sensitivities: the damages it went by; None where none were measured.
        planned: the plan with its size; None without a budget.
        allocation: expected damages and times, the bound and the Pareto curve; None without a budget.
        scores: BLEU by block, if it was asked for.
    """

    sensitivities: Sensitivities | None = None
    planned: PlanReport | None = None
    allocation: Allocation | None = None
    scores: BlockScores | None = None

    @property
    def measure(self) -> str:
        """What losses are, in words."""
        return self.sensitivities.measure if self.sensitivities else KL_PER_TOKEN

    def damage_by_block(self) -> dict[str, float]:
        """Expected loss of each block's chosen bits."""
        return self._by_block(self.allocation.damage if self.allocation else {})

    def ms_by_block(self) -> dict[str, float]:
        """Expected milliseconds per token of each block."""
        return self._by_block(self.allocation.ms if self.allocation else {})

    def measured_by_block(self) -> dict[str, dict[int, float]]:
        """Loss of each block at each width, as the sum over its units: Table 1 by KL."""
        found: dict[str, dict[int, float]] = {}
        for unit in self.sensitivities.units if self.sensitivities else ():
            row = found.setdefault(unit.block, {})
            for bits, kl in zip(unit.bits, unit.kl, strict=True):
                row[bits] = row.get(bits, 0.0) + kl
        return found

    def curve(self) -> list[dict[str, float]]:
        """The best plans at other sizes, on the convex hull: bits per weight, time, expected damage."""
        if self.planned is None or self.allocation is None:
            return []
        return [
            {
                "bits_per_weight": round(point.bytes * 8 / self.planned.size.weights, 4),
                "ms_per_token": round(point.ms, 5),
                "damage": point.damage,
            }
            for point in self.allocation.curve
        ]

    def to_json(self) -> dict[str, Any]:
        """The object that ``tvmq plan --json`` prints."""
        value: dict[str, Any] = {
            "measure": self.measure,
            "sensitivity": {
                block: {str(bits): kl for bits, kl in row.items()}
                for block, row in self.measured_by_block().items()
            },
        }
        if self.scores is not None:
            value["bleu"] = self.scores.to_json()
        if self.planned is not None and self.allocation is not None:
            damage, ms = self.damage_by_block(), self.ms_by_block()
            value |= self.planned.to_json()
            for block in value["blocks"]:
                block |= {"damage": damage[block["name"]], "ms_per_token": ms[block["name"]]}
            solution = self.allocation.solution
            value |= {
                "damage": solution.damage,
                "bound": solution.bound,
                "gap": solution.gap,
                "ms_per_token": solution.ms,
                "pareto": self.curve(),
            }
        return value

    def _by_block(self, values: Mapping[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for entry in self.planned.plan.entries() if self.planned else ():
            found[entry.block] = found.get(entry.block, 0.0) + values[entry.tensor]
        return found
