# SPDX-License-Identifier: Apache-2.0
"""Which schedules are worth trying for a workload: the rule first, then all others, likely ones early."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import product

from .same_code import code_of
from .schedule import AnySchedule, DequantSchedule, Schedule, TokenTile, rule
from .workload import Workload

ONE_TOKEN = {
    "row_tiles": (4, 2, 1),
    "unroll": (1, 2, 4),
    "prefetch": (0, 2048, 4096, 8192),
}
MANY_TOKENS = {"row_tiles": (1, 2, 4), "unroll": (1, 2, 4), "prefetch": (0, 4096)}
TOKEN_TILES = (4, 2, 3, 6, 8)
DEQUANT_TOKENS = ((), (4, 1), (2, 1), (3, 1), (6, 1), (8, 4, 1))
DEQUANT_CHUNKS = (12, 4, 8, 24)


def candidates(workload: Workload, threads: int, isa: str) -> list[AnySchedule]:
    """All schedules that come to different code for this workload; the rule is the first.

    Whether work is spread over threads only matters where there are several.
    """
    found = [rule(workload), *_schedules(workload)]
    if threads > 1:
        found = [replace(schedule, spread=spread) for schedule in found for spread in (None, True, False)]
    different: dict[Hashable, AnySchedule] = {}
    for schedule in found:
        different.setdefault(code_of(workload, isa, schedule), schedule)
    return list(different.values())


def same_prefetch(schedules: Sequence[AnySchedule]) -> list[AnySchedule]:
    """Those that fetch ahead as the first of them does: for times that do not tell what memory costs."""

    def ahead(schedule: AnySchedule) -> dict[int, int]:
        return {t.tokens: t.prefetch for t in schedule.tiles} if isinstance(schedule, Schedule) else {}

    own = ahead(schedules[0])
    return [s for s in schedules if all(own.get(count, 0) == far for count, far in ahead(s).items())]


def _schedules(workload: Workload) -> list[AnySchedule]:
    match workload.op, workload.m:
        case "dequant", _:
            return _dequant(workload)
        case "float", 1:
            return [_with(workload, tokens=1, prefetch=ahead) for ahead in ONE_TOKEN["prefetch"]]
        case "float", m:
            tiles = product(_fitting(m), MANY_TOKENS["prefetch"])
            return [_with(workload, tokens=tokens, prefetch=ahead) for tokens, ahead in tiles]
        case _, 1:
            return [_with(workload, tokens=1, **knobs) for knobs in _grid(ONE_TOKEN)]
        case _, m:
            grid = product(_fitting(m), _grid(MANY_TOKENS))
            return [_with(workload, tokens=tokens, **knobs) for tokens, knobs in grid]


def _dequant(workload: Workload) -> list[AnySchedule]:
    chunks = DEQUANT_CHUNKS if workload.group == workload.k else DEQUANT_CHUNKS[:1]
    tiles = DEQUANT_TOKENS if workload.m > 1 else DEQUANT_TOKENS[:1]
    return [
        DequantSchedule(tokens=tokens, chunk_steps=steps) for tokens, steps in product(tiles, chunks)
    ]


def _fitting(m: int) -> tuple[int, ...]:
    """Token tiles that m tokens fill."""
    return tuple(tokens for tokens in TOKEN_TILES if tokens <= m)


def _grid(knobs: dict[str, tuple[int, ...]]) -> list[dict[str, int]]:
    return [dict(zip(knobs, values, strict=True)) for values in product(*knobs.values())]


def _with(workload: Workload, **knobs: int) -> Schedule:
    own = rule(workload)
    assert isinstance(own, Schedule)
    tile = TokenTile(**knobs)
    if tile.tokens == 1:
        return own.over(tile)
    # Smaller tiles of the rule take what is left over; larger ones would take all.
    smaller = tuple(t for t in own.tiles if t.tokens < tile.tokens)
    return Schedule(tiles=smaller).over(tile)
