# SPDX-License-Identifier: Apache-2.0
"""The products of a plan as workloads of the tuning log, and the schedules that a log has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits
from schedules.describe import describe
from schedules.lut_table import Tables
from schedules.tuned import tuned
from schedules.tuning_log import TuningLog
from schedules.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleChoice:
    """The schedule of one kind of product on one ISA level.

    Attributes:
        kernel: its family.
        n, k, bits: rows, columns, bits of a weight.
        target: ISA level.
        source: ``tuned``, ``nearest`` or ``rule`` for each bucket of tokens that has a record.
        schedule: in words.
    """

    kernel: str
    n: int
    k: int
    bits: int
    target: str
    source: str
    schedule: str


def plan_workloads(
    plan: BitPlan, shapes: Mapping[str, tuple[int, int]], tables: Tables, tokens: Sequence[int] = (1,)
) -> list[Workload]:
    """The products of all planned matrices, each once; tables that are only looked up in are among them."""
    from relay_passes.lower_linear import (
        float_workload,
        kernel_segments,
        stored_segments,
        table_workload,
    )

    found: dict[Workload, None] = {}
    for entry in plan.entries():
        n, k = shapes[entry.tensor]
        if isinstance(entry, BlockBits) and entry.bits == FLOAT_BITS:
            products = [float_workload(n, k)]
        elif plan.mode == "float":
            segments = kernel_segments(stored_segments(entry, n, k), k)
            products = [table_workload(segment, k, tables) for segment in segments]
        elif isinstance(entry, BlockBits):
            products = [_integer_workload(entry, n, k)]
        else:
            products = []
        found |= dict.fromkeys(products)
    return [replace(workload, m=m) for workload in found for m in tokens]


def _integer_workload(entry: BlockBits, n: int, k: int) -> Workload:
    from relay_passes.lower_block_int import matrix_spec

    spec = matrix_spec(entry, n, k, bias=False)
    return Workload.of("dequant", n, k, 1, spec.bits, k // spec.groups)


def choices(log: TuningLog, workloads: Sequence[Workload], target: str) -> list[ScheduleChoice]:
    """What the log has for each workload."""
    found = []
    for workload in workloads:
        result = tuned(log, workload, target)
        sources = [f"{choice.source} for {m} tokens" for m, choice in result.choices.items()]
        found.append(
            ScheduleChoice(
                kernel=workload.op,
                n=workload.n,
                k=workload.k,
                bits=workload.bits,
                target=target,
                source=", ".join(sources) or "rule",
                schedule=describe(result.schedule),
            )
        )
    return found


def read_workloads(plain: Any, where: str) -> list[Workload]:
    """Workloads of a JSON list of objects with ``op n k m bits`` and, if not usual, ``group layout``."""
    import msgspec

    from tvmq.errors import InputError

    if not isinstance(plain, list) or not plain:
        raise InputError(f"{where}: expected a list of workloads")
    found = []
    for index, item in enumerate(plain):
        try:
            facts = dict(item)
            facts.setdefault("group", facts.get("k"))
            if "layout" not in facts:
                sizes = (facts.pop(name) for name in ("op", "n", "k", "m", "bits", "group"))
                workload = Workload.of(*sizes)
            else:
                workload = msgspec.convert(facts, Workload)
            if set(item) - {"op", "n", "k", "m", "bits", "group", "layout"}:
                raise ValueError("unknown field")
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(f"{where}: workload {index}: {error}") from None
        found.append(workload)
    return found
