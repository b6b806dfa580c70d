# SPDX-License-Identifier: Apache-2.0
"""A library's registers are asked for before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmq.errors import UsageError
from tvmq.vm import Machine


def test_a_refused_level_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("tvmq.vm.permitted", asked.append)
    message = "this system refuses the registers of ISA level x86_64_v4_amx; choose another --isa"
    with pytest.raises(UsageError, match=message):
        Machine(tmp_path / "x86_64_v4_amx.so")
    assert asked == ["x86_64_v4_amx"]
