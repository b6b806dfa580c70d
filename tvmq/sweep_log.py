# SPDX-License-Identifier: Apache-2.0
"""The finished units of a running measurement, so that a killed one goes on: a line each, written at once.

The first line says what is measured. A log of anything else is begun anew; a line that a kill cut off, and
whatever follows it, is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from relay_passes.bit_plan import MAX_JSON_BYTES, strict_struct

from .sensitivity_table import UnitSensitivity
from .store import read_bytes

_LINE = strict_struct(UnitSensitivity)


class SweepLog:
    """Units by (tensor, first row). ``path`` None keeps nothing."""

    def __init__(self, path: Path | None, facts: Iterable[Any]) -> None:
        """Reads what is there.

        Args:
            path: the log.
            facts: everything that a measured value depends on besides its unit.
        """
        self._path = path
        text = json.dumps([str(fact) for fact in facts], ensure_ascii=False)
        self._head = hashlib.sha256(text.encode()).hexdigest()
        self._known: dict[tuple[str, int], UnitSensitivity] = {}
        self._end = self._read() if path is not None and path.is_file() else 0

    def get(self, tensor: str, first: int) -> UnitSensitivity | None:
        """The unit, if it was measured."""
        return self._known.get((tensor, first))

    def add(self, unit: UnitSensitivity) -> None:
        """Keep a unit; InputError or OSError where the log cannot be written."""
        if self._path is None:
            return
        line = msgspec.json.encode(unit) + b"\n"
        with self._path.open("r+b" if self._end else "wb") as file:
            file.truncate(self._end)
            file.seek(self._end)
            if not self._end:
                file.write(self._head.encode() + b"\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()

    def _read(self) -> int:
        """Takes whole lines of the same measurement; the byte after the last of them."""
        assert self._path is not None
        head, *lines = read_bytes(self._path, MAX_JSON_BYTES).split(b"\n")
        if not lines or head.decode("utf-8", "replace") != self._head:
            return 0
        end = len(head) + 1
        for line in lines[:-1]:
            try:
                values = msgspec.structs.asdict(msgspec.json.decode(line, type=_LINE))
                unit = UnitSensitivity(**values)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
                break
            self._known[unit.tensor, unit.first] = unit
            end += len(line) + 1
        return end
