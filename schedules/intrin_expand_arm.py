# SPDX-License-Identifier: Apache-2.0
"""Binary planes to int8 levels on NEON: tbl spreads a key byte over four columns, cmtst tests their bits."""

from __future__ import annotations

from typing import Any

from .intrin_expand_x86 import ShuffleExpansion
from .tir import T, pinned, splat


class NeonExpansion(ShuffleExpansion):
    """The expansion of ``ShuffleExpansion`` in registers of 16 bytes."""

    def __init__(self) -> None:
        super().__init__(16, "llvm.aarch64.neon.tbl1")

    def _chosen(self, four: Any, bit: Any, plus: Any) -> Any:
        found = T.bitwise_and(four, bit) != splat(T.uint8(0), 16)
        # As a selection it would be an and, a comparison and a selection of its own.
        mask = pinned(T.Select(found, splat(T.uint8(255), 16), splat(T.uint8(0), 16)), "uint8x16")
        return T.bitwise_and(mask, plus)


__all__ = ["NeonExpansion"]
