# SPDX-License-Identifier: Apache-2.0
"""Heads of integer attention: int8 mantissas of keys and values as the dot product reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .block_format import PACKED, emit_down_shift, magnitude, pack_bytes
from .dequant_vector import workspace
from .integer_tables import PROBABILITY_BITS
from .level_packing import PANEL_ROWS, QUAD, TILE_BYTES, TILE_COLUMNS, padded_columns
from .lut_table import tree_reduce
from .packing import BLOCK_ROWS, TILE_ROWS
from .rounding_shift import clamp_shifts, psrav, rounding_half, vector_shift_round
from .tir import LANES, T, as_type, isplat, load, put, scratch, splat, store

MOST_WEIGHT_BITS = 14
_NEVER = -(1 << 30)
"""Below all exponents."""
_FIELDS = 5
KEY_EXPONENT, VALUE_EXPONENT, THERE, WEIGHT_SHIFT, WEIGHT_HALF = range(_FIELDS)
"""What is kept of every key; there: all bits set if the sentence has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAttentionSpec:
    """Heads, model width, and the longest sentence (in tokens), which sizes the scratch memory."""

    heads: int
    width: int
    longest: int

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % LANES or self.head_width > 256:
            raise ValueError(
                f"{self.heads} heads of {self.width} columns: integer attention needs head widths that are "
                f"multiples of {LANES}, 256 at most"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def keys(self) -> int:
        """Tokens of the longest sentence, in whole blocks of 64."""
        return padded_columns(self.longest)

    @property
    def score_up(self) -> int:
        """Scores, at most 127 * 127 * head width, move up so far before they move down to Q16."""
        return 30 - int(127 * 127 * self.head_width).bit_length()

    @property
    def weight_bits(self) -> int:
        """Bits after the point of a value's weight: sums of weights times 127 fit int32."""
        return min(MOST_WEIGHT_BITS, 24 - (self.longest - 1).bit_length())


class PackedHead:
    """Emits the packing of one head of one sentence of ``count`` tokens from ``first`` on."""

    def __init__(self, spec: BlockAttentionSpec, isa: str, first: Any, count: Any, head: Any) -> None:
        self.spec, self.isa = spec, isa
        self.first, self.count, self.base = first, count, T.Bind(head * spec.head_width)
        self.blocks = T.Bind(T.floordiv(count + (BLOCK_ROWS - 1), BLOCK_ROWS))
        self.packs = isa in ("avx512_vbmi", "amx")
        self.padded = padded_columns(spec.head_width)
        self.steps = self.padded // TILE_COLUMNS
        self.value_blocks = self.padded // BLOCK_ROWS
        key_steps = spec.keys // TILE_COLUMNS
        self.keys = workspace((spec.keys // PANEL_ROWS, self.steps, 2, TILE_BYTES), "int8")
        self.values = workspace((self.padded // PANEL_ROWS, key_steps, 2, TILE_BYTES), "int8")
        self.of_keys = workspace((_FIELDS, spec.keys), "int32")
        self.four = workspace((QUAD, self.padded), "int8")

    def pack(self, k: Any, k_exponents: Any, v: Any, v_exponents: Any) -> None:
        """Quantizes keys and values into the layout that the dot product reads."""
        tops = scratch((3,), "int32")
        for i in range(3):
            put(tops, (i,), T.int32(_NEVER))
        with T.serial(0, T.floordiv(self.count + (QUAD - 1), QUAD)) as quad, T.serial(0, QUAD) as i:
            t = T.Bind(quad * QUAD + i)
            with T.If(t < self.count), T.Then():
                self.quantize(k, k_exponents, t, self.four, i, self.of_keys, (KEY_EXPONENT, t))
                self._scatter_key(i, t)
                self.quantize(v, v_exponents, t, self.four, i, self.of_keys, (VALUE_EXPONENT, t))
                key = T.Bind(self.of_keys[KEY_EXPONENT, t])
                for place, value in enumerate((self.of_keys[VALUE_EXPONENT, t], key, T.int32(0) - key)):
                    put(tops, (place,), T.max(tops[place], value))
            with T.If(i == QUAD - 1), T.Then():
                self._interleave_values(quad)
        self.top, self.key_top = T.Bind(tops[0]), T.Bind(tops[1])
        self.key_bottom = T.Bind(T.int32(0) - tops[2])
        self._clear_values()
        self._prepare_keys()

    def _prepare_keys(self) -> None:
        """What all queries need of 16 keys each: which are there, and the shifts of their weights."""
        base = T.Bind(splat(self.top + (PROBABILITY_BITS - self.spec.weight_bits)))
        with T.serial(0, self.blocks * (BLOCK_ROWS // LANES)) as v:
            key = T.Bind(v * LANES)
            lanes = T.Bind(self._lanes(key))
            store(self.of_keys, (THERE, key), lanes, LANES)
            known = T.Select(lanes < isplat(0), self.field(KEY_EXPONENT, key), splat(self.key_top))
            store(self.of_keys, (KEY_EXPONENT, key), known, LANES)
            shifts = T.Bind(clamp_shifts(base - self.field(VALUE_EXPONENT, key), LANES))
            store(self.of_keys, (WEIGHT_SHIFT, key), shifts, LANES)
            store(self.of_keys, (WEIGHT_HALF, key), rounding_half(shifts, LANES), LANES)

    def field(self, field: int, key: Any) -> Any:
        return load(self.of_keys, (field, key), LANES)

    def quantize(
        self, x: Any, x_exponents: Any, t: Any, out: Any, row: Any, places: Any, place: tuple[Any, ...]
    ) -> None:
        """One head of token t as int8 mantissas; columns beyond the head are zero."""
        vectors = range(0, self.spec.head_width, LANES)
        loaded = [T.Bind(load(x, (self.first + t, self.base + c), LANES)) for c in vectors]
        peak: Any = magnitude(loaded[0])
        for vector in loaded[1:]:
            peak = T.max(peak, magnitude(vector))
        shift = emit_down_shift(T.Bind(tree_reduce(peak, LANES, T.max)))
        put(places, place, x_exponents[self.first + t] + shift)
        wide = T.Bind(splat(shift))
        half = T.Bind(splat(T.Bind(rounding_half(shift, 1))))
        if self.packs and len(loaded) % PACKED == 0:
            for i in range(0, len(loaded), PACKED):
                parts = [psrav(vector + half, wide) for vector in loaded[i : i + PACKED]]
                store(out, (row, i * LANES), pack_bytes(parts), PACKED * LANES)
        else:
            for c, vector in zip(vectors, loaded, strict=True):
                store(out, (row, c), T.Cast("int8x16", vector_shift_round(vector, wide, half)), LANES)
        for c in range(self.spec.head_width, self.padded, LANES):
            store(out, (row, c), T.broadcast(T.int8(0), LANES), LANES)

    def _scatter_key(self, row: Any, t: Any) -> None:
        panel = T.Bind(T.floordiv(t, PANEL_ROWS))
        tile = T.Bind(T.floormod(T.floordiv(t, TILE_ROWS), 2))
        lane = T.Bind(T.floormod(t, TILE_ROWS) * QUAD)
        with T.serial(0, self.steps) as step, T.serial(0, TILE_COLUMNS // QUAD) as quad:
            four = load(self.four, (row, step * TILE_COLUMNS + quad * QUAD), QUAD)
            store(self.keys, (panel, step, tile, quad * TILE_COLUMNS + lane), four, QUAD)

    def _interleave_values(self, quad: Any) -> None:
        """Four tokens' columns side by side: 16 x 4 bytes for every 16 columns."""
        step = T.Bind(T.floordiv(quad, TILE_COLUMNS // QUAD))
        place = T.Bind(T.floormod(quad, TILE_COLUMNS // QUAD) * TILE_COLUMNS)
        with T.serial(0, self.padded // PANEL_ROWS) as panel, T.serial(0, 2) as tile:
            column = T.Bind(panel * PANEL_ROWS + tile * TILE_ROWS)
            total: Any = None
            for i in range(QUAD):
                byte = T.Cast("uint32x16", as_type(load(self.four, (i, column), LANES), "uint8x16"))
                byte = T.shift_left(byte, splat(T.uint32(8 * i)))
                total = byte if total is None else T.bitwise_or(total, byte)
            store(self.values, (panel, step, tile, place), as_type(total, "int8x64"), 4 * LANES)

    def _clear_values(self) -> None:
        """What lies between the last quad of tokens and the end of its tile is multiplied by any weights."""
        quads = TILE_COLUMNS // QUAD
        start, last = T.floordiv(self.count + (QUAD - 1), QUAD), T.Bind(self.blocks - 1)
        with T.serial(0, self.padded // PANEL_ROWS) as panel, T.serial(start, self.blocks * quads) as quad:
            for tile in range(2):
                byte = (quad - last * quads) * TILE_COLUMNS
                store(self.values, (panel, last, tile, byte), T.broadcast(T.int8(0), 64), 64)

    def _lanes(self, key: Any) -> Any:
        """All bits set in those of 16 lanes whose keys the sentence has."""
        distance = T.ramp(T.int32(0), 1, LANES) - splat(T.Cast("int32", self.count - key))
        return T.shift_right(distance, isplat(31))
