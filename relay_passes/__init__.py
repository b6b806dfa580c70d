# SPDX-License-Identifier: Apache-2.0
"""Relax passes: Relax in, Relax and TensorIR out. One pass a file: a frozen dataclass with its options.

``tvmq.pipeline`` orders them. Importing this package imports no TVM; ``get_pass`` imports one pass.
"""

from __future__ import annotations

from typing import Any

_NAMES = (
    "annotate_bits",
    "annotate_ranges",
    "check_bits",
    "check_integer",
    "choose_exponents",
    "fold_transpose",
    "legalize",
    "lower_attention",
    "lower_block_int",
    "lower_embedding",
    "lower_linear",
    "lower_norm",
    "lower_pooling",
    "lower_search",
    "plan_buffers",
    "share_tables",
)


def pass_names() -> tuple[str, ...]:
    """Names of all passes, which are also the names of their files."""
    return _NAMES


def get_pass(name: str) -> type[Any]:
    """The class of the pass called ``name``; ValueError with the known names otherwise."""
    match name:
        case "annotate_bits":
            from .annotate_bits import AnnotateBits

            return AnnotateBits
        case "annotate_ranges":
            from .annotate_ranges import AnnotateRanges

            return AnnotateRanges
        case "check_bits":
            from .check_bits import CheckBits

            return CheckBits
        case "check_integer":
            from .check_integer import CheckInteger

            return CheckInteger
        case "choose_exponents":
            from .choose_exponents import ChooseExponents

            return ChooseExponents
        case "fold_transpose":
            from .fold_transpose import FoldTranspose

            return FoldTranspose
        case "legalize":
            from .legalize import Legalize

            return Legalize
        case "lower_attention":
            from .lower_attention import LowerAttention

            return LowerAttention
        case "lower_block_int":
            from .lower_block_int import LowerBlockInt

            return LowerBlockInt
        case "lower_embedding":
            from .lower_embedding import LowerEmbedding

            return LowerEmbedding
        case "lower_linear":
            from .lower_linear import LowerLinear

            return LowerLinear
        case "lower_norm":
            from .lower_norm import LowerNorm

            return LowerNorm
        case "lower_pooling":
            from .lower_pooling import LowerPooling

            return LowerPooling
        case "lower_search":
            from .lower_search import LowerSearch

            return LowerSearch
        case "plan_buffers":
            from .plan_buffers import PlanBuffers

            return PlanBuffers
        case "share_tables":
            from .share_tables import ShareTables

            return ShareTables
        case _:
            raise ValueError(f"unknown pass {name!r}; known: {', '.join(_NAMES)}")
