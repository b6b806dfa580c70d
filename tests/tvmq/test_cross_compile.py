# SPDX-License-Identifier: Apache-2.0
"""Compiling for another architecture: what is written, what is said, what this machine refuses to load."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from targets import host_architecture, levels_of, set_of
from targets.toolchain import find_linker
from tvmq import api
from tvmq.errors import InputError, MissingToolError, UsageError
from tvmq.options import CompileOptions, PlanOptions

OTHER = "aarch64" if host_architecture() == "x86_64" else "x86_64"
TARGET = set_of(OTHER)
LEVELS = [spec.name for spec in levels_of(OTHER)]
MACHINE = {"aarch64": 183, "x86_64": 62}
"""e_machine of ELF files."""
PLAN = PlanOptions(preset="3-bit")


@pytest.fixture(scope="module")
def foreign(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for all levels of the other architecture."""
    if find_linker(levels_of(OTHER)[0]) is None:
        pytest.skip(f"nothing links {OTHER} code here")
    path = tmp_path_factory.mktemp("foreign") / "foreign.tvmq"
    api.compile(tiny_model, path, CompileOptions(plan=PLAN, target=TARGET))
    return path


def test_every_level_is_there_for_the_other_machine(foreign: Path) -> None:
    facts = api.inspect(foreign)
    assert facts["isa_levels"] == LEVELS
    assert facts["target"] == TARGET
    for library in facts["libraries"]:
        head = (foreign / library["library"]).read_bytes()[:20]
        assert head[:5] == b"\x7fELF\x02"
        assert struct.unpack("<H", head[18:20]) == (MACHINE[OTHER],)
    assert api.verify(foreign).ok
    selftest = json.loads((foreign / "selftest.json").read_text())
    assert selftest["source"] == [], "no answer was recorded, so none is compared"


def test_this_machine_refuses_it_in_one_sentence(foreign: Path) -> None:
    own = set_of(host_architecture())
    with pytest.raises(InputError) as caught:
        api.load(foreign)
    message = str(caught.value)
    assert message.endswith(
        f"compiled for {OTHER} machines, this one is {host_architecture()}; compile with --target {own}"
    )
    with pytest.raises(UsageError, match=f"this CPU cannot run ISA level {LEVELS[0]}"):
        api.load(foreign, isa=LEVELS[0])


def test_what_was_not_tested_is_said(foreign: Path, tvmq: Any, tiny_model: Path, tmp_path: Path) -> None:
    words = ("compile", tiny_model, "-o", tmp_path / "one.tvmq", "--isa", LEVELS[0], "--preset", "3-bit")
    done = tvmq(*words, "--json")
    assert done.code == 0
    assert json.loads(done.out)["self_test"] is None
    done = tvmq(*words, "--force")
    assert "not run: this machine runs none of the levels" in " ".join(done.out.split())


def test_without_a_linker_nothing_is_begun(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tvmq: Any
) -> None:
    for name in ("cc", "gcc"):
        found = shutil.which(name)
        if found is not None:
            (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("targets.toolchain.find_spec", lambda name: None)
    output = tmp_path / "out.tvmq"
    with pytest.raises(MissingToolError, match=r"nothing links .* code for .*; install gcc-"):
        api.compile(tiny_model, output, CompileOptions(plan=PLAN, target=TARGET))
    done = tvmq("compile", tiny_model, "-o", output, "--target", TARGET)
    assert done.code == 4
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert not output.exists()
