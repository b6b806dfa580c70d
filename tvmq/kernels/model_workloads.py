# SPDX-License-Identifier: Apache-2.0
"""The products of a plan as workloads of the tuning log, and the schedules that a log has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from schedules.describe import describe
from schedules.lut_table import Tables
from schedules.problem import check_memory
from schedules.tuned import tuned
from schedules.tuning_log import Choice, TuningLog
from schedules.workload import Workload
from targets.spec import TargetSpec
from tvmq.errors import InputError
from tvmq.families.family import TABLES, TensorInfo, decodes
from tvmq.manifest import KernelSchedule


def plan_workloads(
    plan: BitPlan, shapes: Mapping[str, tuple[int, int]], tables: Tables, tokens: Sequence[int] = (1,)
) -> list[Workload]:
    """The products of the planned matrices among ``shapes``, each once."""
    from relay_passes.lower_linear import (
        float_workload,
        kernel_segments,
        stored_segments,
        table_workload,
    )

    found: dict[Workload, None] = {}
    for entry in plan.entries():
        if entry.tensor not in shapes:
            continue
        n, k = shapes[entry.tensor]
        if isinstance(entry, BlockBits) and entry.bits == FLOAT_BITS:
            products = [float_workload(n, k)]
        elif not _is_integer(plan, entry):
            segments = kernel_segments(stored_segments(entry, n, k), k)
            products = [table_workload(segment, k, tables) for segment in segments]
        elif isinstance(entry, BlockBits):
            products = [_integer_workload(entry, n, k)]
        else:
            products = []
        found |= dict.fromkeys(products)
    return [replace(workload, m=m) for workload in found for m in tokens]


def _is_integer(plan: BitPlan, entry: BlockBits | WordBits) -> bool:
    """Whether integer kernels compute with an entry: the body's, in mode block-int."""
    if plan.mode == "float":
        return False
    from relay_passes.integer_body import HEAD  # imports TVM, which float plans do without

    return entry.block != HEAD


def _integer_workload(entry: BlockBits, n: int, k: int) -> Workload:
    from relay_passes.lower_block_int import dequant_workload, matrix_spec

    return dequant_workload(matrix_spec(entry, n, k, bias=False))


def product_shapes(infos: Sequence[TensorInfo]) -> dict[str, tuple[int, int]]:
    """Matrices that activations are multiplied by; tables only are where a decoder scores words."""
    scores = decodes(infos)
    tables = {info.name for info in infos if info.is_embedding or info.block == TABLES}
    return {info.name: info.shape for info in infos if scores or info.name not in tables}


def kernel_schedules(
    log: TuningLog,
    infos: Sequence[TensorInfo],
    plan: BitPlan,
    tables: Tables,
    levels: Sequence[TargetSpec],
) -> tuple[KernelSchedule, ...]:
    """The schedule of every kind of product of a plan on every level, and where it comes from."""
    workloads = plan_workloads(plan, product_shapes(infos), tables)
    return tuple(_schedule(log, workload, level.name) for level in levels for workload in workloads)


def _schedule(log: TuningLog, workload: Workload, target: str) -> KernelSchedule:
    result = tuned(log, workload, target)
    sources = [_source(choice, m) for m, choice in result.choices.items()]
    return KernelSchedule(
        kernel=workload.op,
        n=workload.n,
        k=workload.k,
        bits=workload.bits,
        target=target,
        source=", ".join(sources) or "rule",
        schedule=describe(result.schedule),
    )


def _source(choice: Choice, m: int) -> str:
    modelled = choice.record is not None and choice.record.basis == "modelled"
    return f"{choice.source} at {m}{' (modelled)' if modelled else ''}"


class _PlainWorkload(msgspec.Struct, forbid_unknown_fields=True):
    """A workload as people write it; what is left out is the usual."""

    op: str
    n: int
    k: int
    m: int
    bits: int
    group: int = 0
    layout: str | None = None


def read_workloads(plain: Any, where: str) -> list[Workload]:
    """Workloads of a JSON list of objects with ``op n k m bits`` and, if not usual, ``group layout``."""
    if not isinstance(plain, list) or not plain:
        raise InputError(f"{where}: expected a list of workloads")
    found = []
    for index, item in enumerate(plain):
        try:
            facts = msgspec.convert(item, _PlainWorkload)
            op: Any = facts.op
            workload = Workload.of(op, facts.n, facts.k, facts.m, facts.bits, facts.group)
            if facts.layout is not None:
                workload = replace(workload, layout=facts.layout)
            check_memory(workload)
        except ValueError as error:
            raise InputError(f"{where}: workload {index}: {error}") from None
        found.append(workload)
    return found
