# SPDX-License-Identifier: Apache-2.0
"""Quantizers by name. To add one: one file beside this one, one name and one case here."""

from __future__ import annotations

from difflib import get_close_matches

from .quantizer import Quantizer

NAMES = ("alternating", "greedy", "hessian", "rtn", "weighted")
NEED_MOMENTS = ("hessian", "weighted")
"""Names of quantizers that need the second moments of the inputs."""


def quantizer_names() -> tuple[str, ...]:
    """Names that ``get_quantizer`` accepts."""
    return NAMES


def get_quantizer(name: str) -> Quantizer:
    """The quantizer called ``name``; ValueError listing the known ones if there is none."""
    match name:
        case "alternating":
            from .alternating import Alternating

            return Alternating()
        case "greedy":
            from .greedy import Greedy

            return Greedy()
        case "hessian":
            from .hessian import Hessian

            return Hessian()
        case "rtn":
            from .rtn import RoundToNearest

            return RoundToNearest()
        case "weighted":
            from .weighted import Weighted

            return Weighted()
        case _:
            close = get_close_matches(name, NAMES, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown quantizer {name!r}: known are {', '.join(NAMES)}{hint}")
