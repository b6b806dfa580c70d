# SPDX-License-Identifier: Apache-2.0
"""The bit plan: which tensor gets how many bits, groups and which quantizer. JSON form: plan.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ScaleDtype = Literal["float16", "float32"]
FLOAT_BITS = 32
"""Bit width of a tensor that stays FP32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBits:
    """Bits of one weight matrix [n, k].

    ``bits`` is 1..8, or 32 for "stays FP32". ``group_size`` None means one scale per row and plane.
    """

    tensor: str
    block: str
    bits: int
    group_size: int | None = None
    quantizer: str = "alternating"
    offset: bool = False
    scale_dtype: ScaleDtype = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class WordBits:
    """Bits per row of an embedding: ``clusters`` of (rows, bits), most frequent words first."""

    tensor: str
    block: str
    clusters: tuple[tuple[int, int], ...]
    group_size: int | None = None
    quantizer: str = "alternating"
    offset: bool = False
    scale_dtype: ScaleDtype = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class BitPlan:
    """Bits of every quantizable tensor of one model."""

    schema: int
    blocks: tuple[BlockBits, ...]
    words: tuple[WordBits, ...]
    source: str
