# SPDX-License-Identifier: Apache-2.0
"""What the integer products on AMX tiles have in common: tokens as tiles, panels spread over threads."""

from __future__ import annotations

from typing import Any

from .dequant_spec import MOST_TOKENS, Buffers, DequantSpec, Tokens, worth_threads
from .dequant_vector import workspace
from .intrin_amx import TOKENS
from .level_packing import TILE_BYTES, TILE_COLUMNS
from .tir import T, load, store

MOST_PARTS = 8
"""Pieces that the panels are spread over threads in."""
PART_PANELS = 6
"""Panels that a piece should have: its first expansion and its last finish have nothing to hide behind."""


def token_tiles(buffers: Buffers, tokens: Tokens, steps: int) -> Any:
    """Emits the copy of a piece of the tokens into int8[16, steps, 1024]: tiles of 16 tokens x 64 columns."""
    tiles = workspace((MOST_TOKENS // TOKENS, steps, TILE_BYTES), "int8")
    with T.serial(0, tokens.count) as t, T.serial(0, steps) as s:
        columns = load(buffers.x, (tokens.first + t, TILE_COLUMNS * s), TILE_COLUMNS)
        place = TILE_COLUMNS * T.floormod(t, TOKENS)
        store(tiles, (T.floordiv(t, TOKENS), s, place), columns, TILE_COLUMNS)
    return tiles


def panel_parts(spec: DequantSpec) -> int:
    """Pieces of the panels, for threads; 1 where threads are not worth it."""
    return max(1, min(MOST_PARTS, spec.panels // PART_PANELS)) if worth_threads(spec) else 1


def share(total: int, part: Any, parts: int) -> tuple[Any, Any]:
    """First item, and the one after the last, of one of equal parts."""
    if parts == 1:
        return T.int64(0), T.int64(total)
    return T.floordiv(part * total, parts), T.floordiv((part + 1) * total, parts)
