# SPDX-License-Identifier: Apache-2.0
"""The registry of passes: equal to the folder, lazy, every pass documented, tested and immutable."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import relay_passes
from relay_passes import get_pass, pass_names

FOLDER = Path(relay_passes.__file__).parent
SHARED = {"__init__", "bit_plan", "composite", "fusible", "integer_body", "lowering"}
"""Modules that hold no pass."""


def test_registry_is_the_folder() -> None:
    assert set(pass_names()) == {path.stem for path in FOLDER.glob("*.py")} - SHARED
    assert list(pass_names()) == sorted(set(pass_names()))


@pytest.mark.parametrize("name", pass_names())
def test_every_pass(name: str) -> None:
    found = get_pass(name)
    assert found.__module__ == f"relay_passes.{name}"
    assert found.__name__ == name.title().replace("_", "")
    assert dataclasses.is_dataclass(found)
    assert found.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert found.__doc__
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    summary = text.split('"""')[1]
    assert summary.startswith(f"{found.__name__}: ")
    assert Path(__file__).with_name(f"test_{name}.py").exists()


def test_unknown_pass() -> None:
    with pytest.raises(ValueError, match=r"unknown pass 'fuse'; known: annotate_bits, annotate_ranges"):
        get_pass("fuse")


def test_the_registry_imports_no_tvm() -> None:
    code = "import relay_passes, sys; relay_passes.pass_names(); sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, check=False).returncode == 0
