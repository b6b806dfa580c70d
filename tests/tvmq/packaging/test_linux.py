# SPDX-License-Identifier: Apache-2.0
"""The tarball for Linux: its bytes, and programs that a stranger builds from it alone."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import tvmq as library
from targets import detect_host, host_architecture, set_of
from tvmq import api
from tvmq.options import CompileOptions, PlanOptions
from tvmq.tokenizer import MarianTokenizer

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
    own = MarianTokenizer.open(artifact / "tokenizer")
    assert len(pieces) == own.vocabulary.highest + 1
    assert pieces[own.unk_id] == "<unk>"
    assert all(own.vocabulary.token(piece) == number for number, piece in enumerate(pieces) if piece)
    assert (tokenizer / "source.spm").read_bytes()
    texts = [path.read_text() for path in unpacked.rglob("*") if path.suffix in (".pc", ".md", ".cmake")]
    assert texts
    assert not [text for text in texts if "@" in text], "every value was filled in"


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
    if "SENTENCEPIECE_LIBRARY:FILEPATH=/" in (tmp_path / "build" / "CMakeCache.txt").read_text():
        check_text(tmp_path / "build" / "example_cpp", unpacked)


def check_text(program: Path, folder: Path) -> None:
    """Text in, text out, as the Python runtime has it: known pieces, unknown ones, an empty line."""
    (artifact,) = (folder / "share" / "tvmq").glob("*.tvmq")
    texts = ["one two", "a b c, d!", "\u65e5\u672c\u8a9e x", "the end"]
    command = [str(program), str(artifact), str(folder / "share" / "tvmq" / "tokenizer"), "1", "4"]
    done = subprocess.run(command, input="\n".join(texts), capture_output=True, text=True, check=True)
    with closing(library.load(artifact)) as translator:
        expected = [best[0].text for best in translator.translate(texts, beams=4)]
    assert done.stdout.splitlines() == expected


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
    words += ["-I", unpacked / "include", unpacked / "lib" / "libtvmq.a", "-o", program]
    subprocess.run([compiler, *map(str, words), "-lm", "-lpthread", "-ldl"], check=True)
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


@pytest.fixture
def copy(host_artifact: Path, tmp_path: Path) -> Path:
    """The artifact, to be damaged."""
    return Path(shutil.copytree(host_artifact, tmp_path / "copy.tvmq"))


def one_line(done: Any, code: int) -> str:
    (line,) = done.err.splitlines()
    assert done.code == code
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("system", "name"),
    [("--linux", "weights.safetensors"), ("--linux", "lib/libtvmq.so"), ("--android", "plan.json")],
)
def test_a_damaged_artifact_is_not_packaged(
    copy: Path, tvmq: Any, tmp_path: Path, system: str, name: str
) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    output = tmp_path / "output"
    if system == "--linux":
        assert f"{name}: contents differ" in one_line(tvmq("package", copy, system, "-o", output), 5)
    else:  # for another system, which is said before anything is hashed
        assert "--android takes an artifact of" in one_line(tvmq("package", copy, system, "-o", output), 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.tvmq"]


def test_bad_words(copy: Path, tvmq: Any, tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert "give --linux or --android" in one_line(tvmq("package", copy, "-o", output), 2)
    both = tvmq("package", copy, "--linux", "--android", "-o", output)
    assert "give --linux or --android" in one_line(both, 2)
    assert "not an artifact" in one_line(tvmq("package", tmp_path, "--linux", "-o", output), 3)
    nowhere = tvmq("package", copy, "--linux", "-o", tmp_path / "none" / "x")
    assert "does not exist (create it first)" in one_line(nowhere, 3)
    folder = tvmq("package", copy, "--linux", "-o", copy, "--force")
    assert "is a folder" in one_line(folder, 2)
    inside = tvmq("package", copy, "--linux", "-o", copy / "x.tar.gz")
    assert "lies inside the input" in one_line(inside, 2)
    inside = tvmq("package", copy, "--android", "-o", copy / "project")
    assert "lies inside the input" in one_line(inside, 2)
    foreign = tmp_path / "mine"
    foreign.mkdir()
    kept = tvmq("package", copy, "--android", "-o", foreign, "--force")
    assert "is not an Android project" in one_line(kept, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.tvmq", "mine"]


def test_a_full_disk_leaves_nothing(copy: Path, tvmq: Any, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        done = tvmq("package", copy, "--linux", "-o", tmp_path / "x.tar.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert done.code in (3, 4)
    assert len(done.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.tvmq"]


def test_without_a_compiler_nothing_is_begun(
    copy: Path, tvmq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("targets.toolchain.find_spec", lambda name: None)
    done = tvmq("package", copy, "--linux", "-o", tmp_path / "x.tar.gz")
    assert "no C compiler to link with" in one_line(done, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.tvmq"]


def test_what_only_python_runs_is_not_packaged(tvmq: Any, tmp_path: Path) -> None:
    module, artifact = torch.nn.Linear(32, 32), tmp_path / "module.tvmq"
    options = CompileOptions(plan=PlanOptions(preset="fp32"), isa_levels=(detect_host()[0],))
    library.compile(module.eval().requires_grad_(False), (torch.zeros(2, 32),), artifact, options)
    done = tvmq("package", artifact, "--linux", "-o", tmp_path / "x.tar.gz")
    assert "holds no native program, only Python runs it" in one_line(done, 3)
    assert not (tmp_path / "x.tar.gz").exists()
