# SPDX-License-Identifier: Apache-2.0
"""Schedules in a few words, for tables and manifests."""

from __future__ import annotations

from .schedule import AnySchedule, DequantSchedule, TokenTile


def describe(schedule: AnySchedule) -> str:
    """Such as ``4 tokens; 1 token: 2 row tiles, unroll 2, prefetch 4096``; what is left out is the rule."""
    if isinstance(schedule, DequantSchedule):
        tokens = "/".join(str(count) for count in schedule.tokens)
        parts = [f"tokens {tokens}" if tokens else "", f"chunks of {schedule.chunk_steps}"]
    else:
        parts = ["; ".join(_tile(tile) for tile in schedule.tiles)]
    spread = {None: "", True: "spread over threads", False: "one thread"}[schedule.spread]
    return ", ".join(part for part in (*parts, spread) if part)


def _tile(tile: TokenTile) -> str:
    knobs = [
        f"{tile.row_tiles} row tiles" if tile.row_tiles else "",
        f"unroll {tile.unroll}" if tile.unroll > 1 else "",
        f"prefetch {tile.prefetch}" if tile.prefetch else "",
    ]
    name = f"{tile.tokens} token{'s' if tile.tokens > 1 else ''}"
    said = ", ".join(knob for knob in knobs if knob)
    return f"{name}: {said}" if said else name
