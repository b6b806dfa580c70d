# SPDX-License-Identifier: Apache-2.0
"""The search defaults of a model folder (generation_config.json), checked before they are believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError

MAX_BEAMS = 1024
MAX_LENGTH = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What ``translate`` does unless told otherwise.

    Attributes:
        beams: 1 is greedy search.
        length_penalty: exponent of the length that scores are divided by.
        max_length: longest output in tokens, start token included; None leaves it to the positions.
    """

    beams: int = 1
    length_penalty: float = 1.0
    max_length: int | None = None


def read_defaults(config: Mapping[str, Any]) -> GenerationDefaults:
    """The defaults in a generation_config.json ({} has none); InputError for an impossible value."""
    beams, length = config.get("num_beams"), config.get("max_length")
    penalty = config.get("length_penalty")
    return GenerationDefaults(
        beams=1 if beams is None else _whole("num_beams", beams, MAX_BEAMS),
        length_penalty=1.0 if penalty is None else _finite("length_penalty", penalty),
        max_length=None if length is None else _whole("max_length", length, MAX_LENGTH),
    )


def _whole(key: str, value: object, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise InputError(f"generation_config.json: {key} is {value!r}, expected a number from 1 to {largest}")
    return value


def _finite(key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"generation_config.json: {key} is {value!r}, expected a finite number")
    return float(value)
