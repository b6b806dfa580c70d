# SPDX-License-Identifier: Apache-2.0
"""The knobs of every kernel family as data: how the work is cut, never what comes out.

A schedule without arguments is the rule that holds where nothing was measured. Whatever the values, a kernel
gives the same bits: sums are added in the order that the family's meaning states.
"""

from __future__ import annotations

from dataclasses import dataclass

from .workload import Workload

MOST_TOKENS = 16
"""Tokens of a tile: more would need more registers than any level has."""
MOST_PREFETCH = 1 << 16
STEP_CHOICES = (1, 2, 4)
CHUNK_STEPS = 12
"""Steps of 64 columns in a part of one long group: a panel of 32 rows of it is 24 KB."""
MOST_CHUNK_STEPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTile:
    """How a tile of tokens meets a block of rows.

    Attributes:
        tokens: tokens that share each load of weights.
        row_tiles: tiles of 16 rows summed at once (1, 2, 4); 0 takes what the level's registers hold.
        unroll: steps of 32 columns in one pass of the innermost loop (1, 2, 4).
        prefetch: bytes that weights are asked for ahead of their use; 0 leaves it to the hardware.
    """

    tokens: int
    row_tiles: int = 0
    unroll: int = 1
    prefetch: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise ValueError(f"{self.tokens} tokens in a tile, expected 1 to {MOST_TOKENS}")
        if self.row_tiles not in (0, *STEP_CHOICES) or self.unroll not in STEP_CHOICES:
            raise ValueError(f"row tiles {self.row_tiles} and unroll {self.unroll}, expected 1, 2 or 4")
        if not 0 <= self.prefetch <= MOST_PREFETCH:
            raise ValueError(f"prefetch of {self.prefetch} bytes, expected 0 to {MOST_PREFETCH}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How one product is computed.

    Attributes:
        tiles: token tiles, largest first; the last has one token.
        spread: whether row blocks are spread over threads; None goes by the amount of work.
    """

    tiles: tuple[TokenTile, ...]
    spread: bool | None = None

    def __post_init__(self) -> None:
        counts = [tile.tokens for tile in self.tiles]
        if not counts or counts[-1] != 1 or counts != sorted(set(counts), reverse=True):
            raise ValueError(f"token tiles of {counts}, expected falling numbers that end with 1")

    def over(self, tile: TokenTile) -> Schedule:
        """This schedule with ``tile`` instead of its own tile of as many tokens, or beside the others."""
        others = [own for own in self.tiles if own.tokens != tile.tokens]
        tiles = tuple(sorted([*others, tile], key=lambda t: -t.tokens))
        return Schedule(tiles=tiles, spread=self.spread)


LUT_RULE = Schedule(tiles=(TokenTile(tokens=4), TokenTile(tokens=1, prefetch=4096)))
"""Two and three tokens run one by one: a tile of 2 would gain them 15 % for half as much code again."""
FLOAT_RULE = Schedule(tiles=(TokenTile(tokens=4), TokenTile(tokens=1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantSchedule:
    """How an integer product on vectors is cut; AMX has tiles of its own.

    Attributes:
        tokens: sizes of the token tiles, falling, the last is 1; empty takes the level's own.
        chunk_steps: steps of 64 columns in a part of one long group.
        spread: whether panels are spread over threads; None goes by the amount of work.
    """

    tokens: tuple[int, ...] = ()
    chunk_steps: int = CHUNK_STEPS
    spread: bool | None = None

    def __post_init__(self) -> None:
        if self.tokens and (
            self.tokens[-1] != 1
            or self.tokens[0] > 8
            or list(self.tokens) != sorted(set(self.tokens), reverse=True)
        ):
            raise ValueError(f"token tiles of {self.tokens}, expected falling numbers, 8 at most, 1 last")
        if not 1 <= self.chunk_steps <= MOST_CHUNK_STEPS:
            raise ValueError(f"chunks of {self.chunk_steps} steps, expected 1 to {MOST_CHUNK_STEPS}")


DEQUANT_RULE = DequantSchedule()


AnySchedule = Schedule | DequantSchedule


def schedule_type(op: str) -> type[Schedule] | type[DequantSchedule]:
    """The type of a kernel family's schedules."""
    return DequantSchedule if op == "dequant" else Schedule


def rule(workload: Workload) -> AnySchedule:
    """The schedule of a workload where nothing was measured."""
    match workload.op:
        case "dequant":
            return DEQUANT_RULE
        case "float":
            return FLOAT_RULE
        case _:
            return LUT_RULE
