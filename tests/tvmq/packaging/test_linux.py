# SPDX-License-Identifier: Apache-2.0
"""The tarball for Linux: its bytes, and programs that a stranger builds from it alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tvmq as library
from targets import host_architecture, set_of
from tvmq import api

from .conftest import TEXT

Answers = Callable[[int], list[tuple[float, list[int]]]]


@pytest.fixture(scope="module")
def tarball(host_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tarball") / "model.tar.gz"
    assert api.package(host_artifact, path, system="linux") == path.stat().st_size
    return path


@pytest.fixture
def unpacked(tarball: Path, tmp_path: Path) -> Path:
    """The only folder in an empty place; the tarball's maker may be anywhere."""
    with tarfile.open(tarball) as tar:
        tar.extractall(tmp_path / "somewhere else", filter="data")
    (folder,) = (tmp_path / "somewhere else").iterdir()
    return folder


def run(program: Path, folder: Path, *words: object) -> list[list[int]]:
    (artifact,) = (folder / "share" / "tvmq").glob("*.tvmq")
    command = [str(program), str(artifact), *map(str, words)]
    done = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=True)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_the_same_artifact_gives_the_same_bytes(tarball: Path, host_artifact: Path, tmp_path: Path) -> None:
    again = tmp_path / "other name.tar.gz"
    library.package(host_artifact, again, system="linux")
    assert again.read_bytes() == tarball.read_bytes()
    with tarfile.open(tarball) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}
    assert len({name.partition("/")[0] for name in names}) == 1
    assert names[0].endswith(f"-{set_of(host_architecture())}")


def test_the_artifact_inside_is_whole(unpacked: Path) -> None:
    (artifact,) = (unpacked / "share" / "tvmq").glob("*.tvmq")
    assert api.verify(artifact).ok
    tokenizer = unpacked / "share" / "tvmq" / "tokenizer"
    pieces = (tokenizer / "pieces.txt").read_text(encoding="utf-8").splitlines()
    from tvmq.tokenizer import MarianTokenizer

    own = MarianTokenizer.open(artifact / "tokenizer")
    assert len(pieces) == own.vocabulary.highest + 1
    assert pieces[own.unk_id] == "<unk>"
    assert all(own.vocabulary.token(piece) == number for number, piece in enumerate(pieces) if piece)
    assert (tokenizer / "source.spm").read_bytes()
    texts = [path.read_text() for path in unpacked.rglob("*") if path.suffix in (".pc", ".md", ".cmake", ".txt")]
    assert not [text for text in texts if "@" in text.replace("pieces.txt", "")], "every value was filled in"


def test_a_program_is_built_with_pkg_config(unpacked: Path, answers: Answers, tmp_path: Path) -> None:
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config")
    program = tmp_path / "demo"
    places = {"PKG_CONFIG_PATH": str(unpacked / "lib" / "pkgconfig")}
    # eval: pkg-config escapes the space in the folder's name as a shell wants it
    script = """eval "cc -Wall -Wextra -Werror '$1/example/example.c' -o '$2' \\
        $(pkg-config --cflags --libs tvmq) '-Wl,-rpath,$1/lib'" """
    subprocess.run(["sh", "-c", script, "sh", unpacked, program], env=os.environ | places, check=True)
    for beams in (1, 4):
        assert run(program, unpacked, 1, beams) == [tokens for _, tokens in answers(beams)]


def test_programs_are_built_with_cmake(unpacked: Path, answers: Answers, tmp_path: Path) -> None:
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no CMake or no C++ compiler")
    for command in (["cmake", "-S", unpacked / "example", "-B", tmp_path / "build"],
                    ["cmake", "--build", tmp_path / "build"]):  # fmt: skip
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for name, beams in (("example", 1), ("example_cpp", 4)):
        assert run(tmp_path / "build" / name, unpacked, 2, beams) == [tokens for _, tokens in answers(beams)]


def test_a_program_may_hold_the_runtime(unpacked: Path, answers: Answers, tmp_path: Path) -> None:
    program = tmp_path / "static"
    words = [unpacked / "example" / "example.c", unpacked / "lib" / "libtvmq.a"]
    command = ["cc", "-I", unpacked / "include", *words, "-o", program, "-lm", "-lpthread", "-ldl"]
    subprocess.run([*map(str, command)], check=True)
    assert run(program, unpacked) == [tokens for _, tokens in answers(1)]


def test_the_cpp_example_says_what_is_wrong(unpacked: Path, tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "cpp"
    words = ["-std=c++17", "-Wall", "-Wextra", "-Werror", unpacked / "example" / "example.cpp"]
    ends = ["-I", unpacked / "include", unpacked / "lib" / "libtvmq.a", "-o", program, "-lm", "-lpthread", "-ldl"]
    subprocess.run([compiler, *map(str, [*words, *ends])], check=True)
    (artifact,) = (unpacked / "share" / "tvmq").glob("*.tvmq")
    for words, text, message in (
        ([tmp_path], "", "not an artifact (no manifest.json)"),
        ([artifact], "5 x 0", "expected numbers: 5 x 0"),
        ([artifact], "321 0", "holds a token id outside 0..319"),
        ([artifact, 1000], "", "threads is 1000, expected 1 to 256"),
    ):
        done = subprocess.run(
            [program, *map(str, words)], input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 3
        assert message in done.stderr


def test_command_line(host_artifact: Path, tvmq: Any, tmp_path: Path) -> None:
    output = tmp_path / "x.tar.gz"
    done = tvmq("package", host_artifact, "--linux", "-o", output, "--json")
    assert done.code == 0
    assert json.loads(done.out) == {"output": str(output), "size_bytes": output.stat().st_size}
    before = output.stat().st_ino
    assert "exists already (use --force" in tvmq("package", host_artifact, "--linux", "-o", output).err
    assert output.stat().st_ino == before
    assert tvmq("package", host_artifact, "--linux", "-o", output, "--force").code == 0
    assert output.stat().st_ino != before
