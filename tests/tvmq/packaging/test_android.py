# SPDX-License-Identifier: Apache-2.0
"""The project for Android: what lies where, what its libraries are, and that they run, on emulated Arm.

No phone is at hand: the libraries run under qemu's user emulation, with Android's C library played by glibc
(``bionic_on_glibc.c``).
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from targets import get_target
from targets.toolchain import find_emulator, find_linker
from tests.elf_facts import check_library
from tvmq import api
from tvmq.build import SONAME
from tvmq.errors import InputError
from tvmq.native.library import FOLDER

from .conftest import TEXT

LEVEL = "arm64_v8"
HERE = Path(__file__).parent
Answers = Callable[[int], list[tuple[float, list[int]]]]


@pytest.fixture(scope="module")
def artifact(compiled: Callable[..., Path]) -> Path:
    """The tiny model for the lowest level on Android."""
    if find_linker(get_target(LEVEL).on("android")) is None:
        pytest.skip("nothing links aarch64 code here")
    return compiled("3-bit", target="android-arm64", isa_levels=(LEVEL,))


@pytest.fixture(scope="module")
def project(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("android") / "project"
    assert api.package(artifact, folder, system="android") > 100_000
    return folder


@pytest.fixture(scope="module")
def main(project: Path) -> Path:
    return project / "translator" / "src" / "main"


def test_every_library_is_android_s(main: Path) -> None:
    libraries = sorted((main / "jniLibs" / "arm64-v8a").iterdir())
    (kernels,) = (path for path in libraries if path.name.endswith(f"_{LEVEL}.so"))
    assert [path.name for path in libraries] == ["libtvmq.so", kernels.name, "libtvmq_jni.so"]
    for path in libraries:
        beside = ["libtvmq.so"] if path.name == "libtvmq_jni.so" else []
        found = check_library(path, "aarch64", "android", *beside)
        assert found.soname == (SONAME if path == kernels else path.name)
    assert re.fullmatch(rf"libtvmq_[0-9a-f]{{12}}_{LEVEL}\.so", kernels.name)
    assert hashlib.sha256(kernels.read_bytes()).hexdigest().startswith(kernels.name.split("_")[1])


def test_assets_are_an_artifact_whose_libraries_are_installed(main: Path, artifact: Path) -> None:
    (assets,) = (main / "assets" / "tvmq").iterdir()
    assert assets.name == artifact.name.removesuffix(".tvmq")
    manifest = json.loads((assets / "manifest.json").read_text())
    for name, info in manifest["files"].items():
        data = (assets / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (info["size"], info["sha256"])
    found = {path.relative_to(assets).as_posix() for path in assets.rglob("*") if path.is_file()}
    assert found == {"manifest.json", *manifest["files"]}
    assert {"tokenizer/source.spm", "tokenizer/pieces.txt", "weights.safetensors"} < found
    (level,) = manifest["isa_levels"]
    assert (main / "jniLibs" / "arm64-v8a" / level["library"]).is_file()
    assert level["library"] not in manifest["files"]
    assert manifest["target"] == "android-arm64"


def test_the_project_is_complete(project: Path, main: Path, artifact: Path) -> None:
    settings = (project / "settings.gradle.kts").read_text()
    for module in re.findall(r'":(\w+)"', settings):
        assert (project / module / "build.gradle.kts").is_file()
        ElementTree.parse(project / module / "src" / "main" / "AndroidManifest.xml")
    activity = (project / "sample/src/main/kotlin/org/tvmq/sample/SampleActivity.kt").read_text()
    name = artifact.name.removesuffix(".tvmq")
    assert f'InstalledArtifact(this, "{name}")' in activity
    assert "import org.tvmq.Translator" in activity
    assert (main / "kotlin/org/tvmq/Translator.kt").is_file()
    text = "".join(path.read_text() for path in project.rglob("*") if path.suffix in (".kt", ".kts", ".md"))
    assert not re.search(r"@[a-z]+@", text), "every value was filled in"
    assert "minSdk = 24" in (project / "translator" / "build.gradle.kts").read_text()


def test_it_translates_on_emulated_arm(main: Path, answers: Answers, tmp_path: Path) -> None:
    """The very libraries of the APK: loaded by name, kernels installed, tokens and scores bit for bit."""
    emulator, spec = find_emulator(get_target(LEVEL)), get_target(LEVEL)
    linker = find_linker(spec)
    if emulator is None or linker is None or linker.name == "ziglang":
        pytest.skip("needs qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross")
    (assets,) = (main / "assets" / "tvmq").iterdir()
    stand_in = tmp_path / "bionic"
    stand_in.mkdir()
    shared = [*linker.command, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,--no-as-needed"]
    for library, source in (
        ("libc.so", [HERE / "bionic_on_glibc.c", "-lm"]), ("libm.so", ["-lm"]), ("libdl.so", ["-lc"])
    ):  # fmt: skip
        words = [f"-Wl,-soname,{library}", "-o", stand_in / library, *source]
        subprocess.run([*shared, *map(str, words)], check=True)
    program = tmp_path / "application"
    words = ["-O1", "-Wall", "-Wextra", "-Werror", "-I", FOLDER / "include", HERE / "application.c"]
    subprocess.run([*linker.command, *map(str, [*words, "-o", program, "-ldl"])], check=True)
    places = f"LD_LIBRARY_PATH={stand_in}:{main / 'jniLibs' / 'arm64-v8a'}"
    for threads, beams in ((1, 1), (2, 4)):
        command = [*emulator, "-E", places, program, assets, str(threads), str(beams)]
        done = subprocess.run(
            [*map(str, command)], input=TEXT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = [line.split() for line in done.stdout.splitlines()]
        assert [[int(word) for word in words] for _, *words in found] == [t for _, t in answers(beams)]
        scores = [float.fromhex(score) for score, *_ in found]
        assert str(scores) == str([float(score) for score, _ in answers(beams)])


def test_this_machine_refuses_it_in_one_sentence(artifact: Path) -> None:
    with pytest.raises(InputError, match=r"compiled for Android; compile with --target linux-"):
        api.load(artifact)
    facts = api.inspect(artifact)
    assert (facts["target"], facts["isa_levels"]) == ("android-arm64", [LEVEL])
    assert api.verify(artifact).ok


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_command_line(artifact: Path, project: Path, tvmq: Any, tmp_path: Path) -> None:
    output = tmp_path / "project"
    assert tvmq("package", artifact, "--android", "-o", output, "--json").code == 0
    assert tree(output) == tree(project), "the same artifact gives the same project"
    refused = tvmq("package", artifact, "--android", "-o", output)
    assert (refused.code, "exists already" in refused.err) == (2, True)
    (output / "mine.txt").write_text("kept only without --force")
    assert tvmq("package", artifact, "--android", "-o", output, "--force").code == 0
    assert tree(output) == tree(project)
    refused = tvmq("package", artifact, "--linux", "-o", tmp_path / "x.tar.gz")
    assert refused.code == 3
    message = "compiled for android-arm64; --linux takes an artifact of compile --target linux-arm64"
    assert message in refused.err
    assert not (tmp_path / "x.tar.gz").exists()
