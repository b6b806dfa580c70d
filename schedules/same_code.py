# SPDX-License-Identifier: Apache-2.0
"""Which schedules come to the same code for a workload on a kernel ISA: only one of them is worth a trial."""

from __future__ import annotations

from collections.abc import Hashable
from math import gcd

from . import dequant_spec, float_gemm, lut_gemm
from .dequant_spec import DequantSpec
from .dequant_vector import level_tokens
from .problem import lut_spec
from .schedule import AnySchedule, DequantSchedule, Schedule, TokenTile
from .workload import Workload


def code_of(workload: Workload, isa: str, schedule: AnySchedule) -> Hashable:
    """What of a schedule shows in the code that runs; equal values are the same code.

    Tiles of more tokens than the workload has never run.
    """
    if isinstance(schedule, DequantSchedule):
        return _dequant_code(workload, isa, schedule)
    tiles = [tile for tile in schedule.tiles if tile.tokens <= workload.m]
    if workload.op == "float":
        spec = float_gemm.FloatSpec(n=workload.n, k=workload.k, bias=False, activation="")
        spread = float_gemm.worth_threads(spec, schedule)
        return spread, tuple((tile.tokens, tile.prefetch) for tile in tiles)
    return _table_code(workload, isa, schedule, tiles)


def _table_code(workload: Workload, isa: str, schedule: Schedule, tiles: list[TokenTile]) -> Hashable:
    spec = lut_spec(workload)
    steps = lut_gemm.chunk_steps(spec, spec.segments[0])
    cut = tuple(
        (tile.tokens, lut_gemm.row_tiles(spec, isa, tile), gcd(tile.unroll, steps), tile.prefetch)
        for tile in tiles
    )
    return lut_gemm.worth_threads(spec, spec.segments[0], schedule), cut


def _dequant_code(workload: Workload, isa: str, schedule: DequantSchedule) -> Hashable:
    groups = workload.k // workload.group
    spec = DequantSpec(n=workload.n, k=workload.k, bits=workload.bits, groups=groups, x_groups=groups)
    if isa == "amx":
        return "tiles of its own"
    tokens = schedule.tokens or level_tokens(spec, isa)
    chunks = dequant_spec.Chunks.of(spec, schedule.chunk_steps)
    return (
        dequant_spec.worth_threads(spec, schedule),
        tuple(count for count in tokens if count <= workload.m),
        chunks,
    )
