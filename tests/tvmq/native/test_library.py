# SPDX-License-Identifier: Apache-2.0
"""The runtime as a C library: its interface, the example program, many sessions, damaged artifacts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tvmq
from targets import detect_host
from tvmq.native import library
from tvmq.native.binding import ABI_VERSION

HERE = Path(__file__).parent
SOURCES = [11, 18, 25, 0], [7, 300, 2, 9, 31, 0], [5, 0]
TEXT = "".join(" ".join(map(str, source)) + "\n" for source in SOURCES)
FILES = sorted([*(p for f in (library.FOLDER, HERE) for p in f.rglob("*.[ch]"))])


@pytest.fixture(scope="module")
def artifact(compiled: Callable[..., Path]) -> Path:
    return compiled("3-bit", isa_levels=(detect_host()[0],))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_c_file_is_small_and_licensed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert text.startswith("/* SPDX-License-Identifier: Apache-2.0")


def test_only_the_interface_is_visible(artifact: Path) -> None:
    if not shutil.which("nm"):
        pytest.skip("no nm")
    command = ["nm", "-D", "--defined-only", str(artifact / library.LIBRARY)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    declared = set(re.findall(r"\b(tvmq_\w+)\(", library.header().decode())) - {"tvmq_message"}
    assert {line.split()[-1] for line in listed.splitlines()} - {"tvmq_message"} == declared
    assert f"TVMQ_ABI_VERSION {ABI_VERSION}\n" in library.header().decode()


def test_the_header_is_cplusplus_too(artifact: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    command = [compiler, "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
    subprocess.run([*command, str(artifact / library.HEADER)], check=True)


def test_the_example_translates(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_c: Any
) -> None:
    program, folder = tmp_path / "example", artifact / "lib"
    place = ("-Wpedantic", f"-L{folder}", "-ltvmq", f"-Wl,-rpath,{folder}")
    build_c(program, library.FOLDER / "example.c", *place, files=())
    monkeypatch.setenv("TVMQ_EXECUTOR", "vm")
    with closing(tvmq.load(artifact)) as translator:
        for threads, beams in ((1, 1), (2, 4)):
            command = [program, artifact, str(threads), str(beams)]
            done = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=True)
            expected = [best[0].tokens for best in translator.translate_ids(SOURCES, beams=beams)]
            assert [tuple(map(int, line.split())) for line in done.stdout.splitlines()] == expected
    failed = subprocess.run([program, artifact], input="321 0\n", capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr) == (
        3,
        "error: sentence 1 holds a token id outside 0..319\n",
    )
    missing = subprocess.run([program, tmp_path], input="", capture_output=True, text=True, check=False)
    assert missing.returncode == 3
    assert "not an artifact (no manifest.json)" in missing.stderr


def test_sessions_do_not_disturb_each_other(artifact: Path, tmp_path: Path, build_c: Any) -> None:
    program = tmp_path / "sessions"
    build_c(program, "sessions.c", "-O1", sanitizer="thread")
    done = subprocess.run(
        [program, artifact, "4", "4", "2"], input=TEXT, capture_output=True, text=True, check=False
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address layout is not ThreadSanitizer's")
    assert done.returncode == 0, done.stderr


ARTIFACTS, PARSES = 2000, 1500


def test_damage_is_refused_and_never_crashes(artifact: Path, tmp_path: Path, build_c: Any) -> None:
    """One file damaged, its hash left wrong or made right; and the program's parser alone."""
    program, copy = tmp_path / "damaged", tmp_path / "copy"
    build_c(program, "damaged.c", "-O1", sanitizer="address,undefined")
    shutil.copytree(artifact, copy)
    words = [str(ARTIFACTS), str(PARSES), str(artifact), str(copy)]
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, errors="replace")
    assert done.returncode == 0, done.stderr[-4000:]
    found = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert len(found) == ARTIFACTS
    for name, state, code, message in found:
        assert (code == "0") == (message == ""), f"{name}: {code} {message}"
        assert state == "sealed" or (code == "0" if state == "whole" else code in "35"), f"{name}: {message}"
    deeper = {message.partition(": ")[2][:24] for _, state, _, message in found if state == "sealed"}
    assert len(deeper) > 30  # right hashes lead on to many different complaints


def test_the_benchmarks_program_measures(tmp_path: Path, build_c: Any) -> None:
    program = tmp_path / "overhead"
    build_c(program, HERE.parents[2] / "benchmarks" / "native_overhead.c", "-O2")
    assert float(subprocess.run([program], capture_output=True, text=True, check=True).stdout) > 0
