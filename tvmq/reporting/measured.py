# SPDX-License-Identifier: Apache-2.0
"""Losses and scores that were measured elsewhere, such as the rows of ``benchmarks.quality``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmq.errors import InputError
from tvmq.store import read_json, show

from .subject import Subject

MAX_BYTES = 16 << 20
MAX_ROWS = 1000
_SCORES = ("loss", "bleu", "value")
_FORM = '{"name": "retrained", "size_mb": 19.6, "bleu": 33.4}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measured model.

    Attributes:
        name: what to call it.
        bytes: of the whole model.
        loss: KL per token, or None where a score was measured.
        score: BLEU or another score, higher is better; None where the loss was.
        metric: the score's name.
        interval: its 95 % interval, where there is one.
    """

    name: str
    bytes: float
    loss: float | None
    score: float | None
    metric: str
    interval: tuple[float, float] | None


def read_measured(path: Path, subject: Subject) -> tuple[Measured, ...]:
    """The rows of a JSON list, or of the ``results`` of an object.

    A row has ``name`` (or ``setting`` and ``codes``), one of ``size_mb``, ``size_bytes`` and
    ``bits_per_weight``, and one of ``loss``, ``bleu`` and ``value`` (with ``metric``, ``value_interval``);
    other keys are not read.

    Raises:
        InputError: not such a file.
    """
    document = read_json(path, MAX_BYTES)
    rows = document.get("results") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of rows such as {_FORM}")
    if len(rows) > MAX_ROWS:
        raise InputError(f"{path}: {len(rows)} rows, expected at most {MAX_ROWS}")
    return tuple(_row(f"{path}: row {number}", row, subject) for number, row in enumerate(rows, 1))


def _row(where: str, row: Mapping[str, Any], subject: Subject) -> Measured:
    name = row.get("name") or " ".join(str(row[key]) for key in ("setting", "codes") if row.get(key))
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no name; expected a row such as {_FORM}")
    score = next((key for key in _SCORES if key in row), None)
    if score is None:
        raise InputError(f"{where} has none of {', '.join(_SCORES)}; expected a row such as {_FORM}")
    value = _number(where, row, score)
    return Measured(
        name=name,
        bytes=_bytes(where, row, subject),
        loss=value if score == "loss" else None,
        score=None if score == "loss" else value,
        metric={"loss": "KL", "bleu": "BLEU"}.get(score) or str(row.get("metric", "score")).upper(),
        interval=_interval(where, row) if "value_interval" in row else None,
    )


def _bytes(where: str, row: Mapping[str, Any], subject: Subject) -> float:
    if "size_mb" in row:
        return _number(where, row, "size_mb") * 1e6
    if "size_bytes" in row:
        return _number(where, row, "size_bytes")
    if "bits_per_weight" in row:
        return _number(where, row, "bits_per_weight") * subject.weights / 8 + subject.other_bytes
    raise InputError(
        f"{where} has none of size_mb, size_bytes and bits_per_weight; expected a row such as {_FORM}"
    )


def _interval(where: str, row: Mapping[str, Any]) -> tuple[float, float]:
    value = row["value_interval"]
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{where}: value_interval is {show(str(value))}, expected two numbers")
    low, high = (_number(where, {"value_interval": part}, "value_interval") for part in value)
    return low, high


def _number(where: str, row: Mapping[str, Any], key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise InputError(f"{where}: {key} is {show(str(value))}, expected a number of at least 0")
    return float(value)
