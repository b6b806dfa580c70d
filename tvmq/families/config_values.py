# SPDX-License-Identifier: Apache-2.0
"""Values of a config.json, checked before they are believed; every defect is an InputError of one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvmq.errors import InputError

LARGEST = 1 << 31


def require_keys(config: Mapping[str, Any], keys: Sequence[str]) -> None:
    """All of ``keys`` have a value."""
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise InputError(f"config.json lacks {', '.join(missing)}; use the file saved with the model")


def positive(config: Mapping[str, Any], key: str, limit: int = LARGEST - 1) -> int:
    """A whole number from 1 to ``limit``."""
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < LARGEST:
        raise InputError(f"config.json: {key} is {value!r}, expected a positive whole number")
    if value > limit:
        raise InputError(f"config.json: {key} is {value}, expected at most {limit}")
    return value


def token(config: Mapping[str, Any], key: str, vocab: int) -> int:
    """A token id below ``vocab``, plain or alone in a list."""
    value = config[key]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab:
        raise InputError(f"config.json: {key} is {value!r}, expected one token id below {vocab}")
    return value


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {key} is {value!r}, expected true or false")
    return value


def epsilon(config: Mapping[str, Any], key: str, default: float) -> float:
    """A small positive number."""
    value = config.get(key, default)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not (math.isfinite(value) and 0 < value < 1):
        raise InputError(f"config.json: {key} is {value!r}, expected a number between 0 and 1")
    return float(value)


def only(config: Mapping[str, Any], supported: Mapping[str, object]) -> None:
    """Keys with one value that is supported, which is also what their absence means."""
    for key, value in supported.items():
        found = config.get(key)
        if found is not None and (found != value or type(found) is not type(value)):
            raise InputError(f"config.json: {key}={found!r} is not supported, only {key}={value} is")


def heads_divide(width: int, heads: int, key: str, what: str = "heads") -> None:
    """Heads share the width evenly."""
    if width % heads:
        raise InputError(f"config.json: {key} {width} is not divisible by {heads} {what}")
