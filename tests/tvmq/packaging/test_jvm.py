# SPDX-License-Identifier: Apache-2.0
"""The classes and the glue for Android, in a Java virtual machine on this machine."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from targets import detect_host, get_target
from tvmq.native.library import require_linker
from tvmq.packaging import android
from tvmq.packaging.source import open_source

from .conftest import TEXT

HERE = Path(__file__).parent
JAVA = Path(android.__file__).parent / "android/translator/src/main/java"
Answers = Callable[[int], list[tuple[float, list[int]]]]


@dataclass(frozen=True, slots=True)
class Application:
    """What an APK would hold, for this machine."""

    assets: Path
    libraries: Path
    classes: Path


@pytest.fixture(scope="module")
def application(host_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    """The artifact laid out as for Android, with the glue for this machine, and all classes."""
    if not shutil.which("javac") or not shutil.which("java"):
        pytest.skip("no JDK")
    folder = tmp_path_factory.mktemp("application")
    source = open_source(host_artifact, "linux")
    android.write_assets(source, folder / "assets")
    android.write_libraries(source, folder / "libraries", "-Wl,-rpath,$ORIGIN")
    files = [*JAVA.rglob("*.java"), HERE / "Host.java"]
    options = ["-d", folder / "classes", "--release", "11", "-Xlint:all,-try", "-Werror"]
    command = ["javac", *options, *files]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Application(folder / "assets", folder / "libraries", folder / "classes")


@pytest.fixture(scope="module")
def printed(application: Application, host_artifact: Path) -> list[str]:
    """The lines of ``Host``, checked calls of the interface included."""
    options = ["-Xcheck:jni", "-Xmx256m", f"-Djava.library.path={application.libraries}"]
    words = [application.assets, host_artifact, detect_host()[0]]
    command = ["java", *options, "-cp", application.classes, "org.tvmq.Host", *words]
    places = {"LD_LIBRARY_PATH": str(application.libraries)}
    done = subprocess.run(
        [*map(str, command)], input=TEXT, capture_output=True, text=True, check=False, env=os.environ | places
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith(("WARNING in native", "FATAL"))], done.stdout
    return lines


def results(lines: list[str], name: str) -> list[tuple[float, list[int]]]:
    found = [line.removeprefix(f"{name} ").split() for line in lines if line.startswith(f"{name} ")]
    return [(float(score), [int(word) for word in tokens]) for score, *tokens in found]


def said(lines: list[str], name: str) -> str:
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    return line.removeprefix(f"{name} ")


def test_translations_are_the_python_runtimes(printed: list[str], answers: Answers) -> None:
    for name, beams in (("beams 1", 1), ("beams 4", 4), ("folder", 1), ("again", 1)):
        expected, found = answers(beams), results(printed, name)
        assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
        for (wanted, _), (score, _) in zip(expected, found, strict=True):
            assert math.isnan(wanted) == math.isnan(score)
            assert math.isnan(score) or np.float32(score) == np.float32(wanted)
    assert results(printed, "heard")[0][1] == answers(1)[0][1]
    assert said(printed, "none") == "0 0"


def test_facts(printed: list[str]) -> None:
    assert said(printed, "info") == f"translate {detect_host()[0]} null"
    assert said(printed, "number") == "320.0 7.0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stopped", "6 "),
        ("thrown", "IllegalArgumentException from the listener"),
        ("nested", "IllegalStateException the session is translating"),
        ("id", "3 sentence 1 holds a token id outside 0..319"),
        ("negative", "3 sentence 1 holds a token id outside 0..319"),
        ("empty", "3 sentence 1 has 0 tokens"),
        ("nothing", "2 0 sentences, expected 1 to "),
        ("option", "2 there is no option"),
        ("encode", "2 this model is made to translate"),
        ("closed", "2 the session is closed"),
        ("threads", "2 threads is 0, expected 1 to 256"),
        ("sums", "2 lengths are not those of the ids"),
        ("below", "2 lengths are not those of the ids"),
        ("nulls", "2 0 sentences"),
        ("types", "2 lengths are not those of the ids"),
        ("function", "2 there is no function"),
        ("no session", "2 the session is closed"),
        ("no model", "2 the model is closed"),
        ("unloaded", "2 the model is closed"),
        ("missing", "3 /nowhere/"),
        ("level", "2 the artifact has no ISA level 'z80'"),
        ("unlisted", "5 "),
        ("null", "2 there is no path"),
        ("long", "2 a path or name is too long"),
    ],
)
def test_bad_input_is_an_exception_with_the_runtimes_sentence(
    printed: list[str], name: str, message: str
) -> None:
    assert said(printed, name).startswith(message)


def test_a_running_translation_is_cancelled(printed: list[str]) -> None:
    assert said(printed, "cancelled").startswith("6 ")


def test_names_beyond_ascii_come_back(printed: list[str]) -> None:
    assert "not an artifact" in said(printed, "missing")


def test_the_table_of_the_interface_is_the_jdks(tmp_path: Path) -> None:
    """Indices in jni_table.h are those of a JDK's own header."""
    java = shutil.which("javac")
    header = None if java is None else Path(java).resolve().parents[1] / "include" / "jni.h"
    if header is None or not header.is_file():
        pytest.skip("no JDK with jni.h")
    text = (Path(android.__file__).parent / "jni" / "jni_table.h").read_text(encoding="utf-8")
    indices = dict(re.findall(r"\bJNI_(\w+) = (\d+)", text))
    assert len(indices) > 15
    lines = ["#include <stddef.h>", "#include <jni.h>"]
    for name, index in indices.items():
        member = "".join("ID" if part == "ID" else part.capitalize() for part in name.split("_"))
        lines.append(
            f"_Static_assert(offsetof(struct JNINativeInterface_, {member}) == {index} * sizeof(void *), "
            f'"{member}");'
        )
    source = tmp_path / "table.c"
    source.write_text("\n".join(lines) + "\n")
    compiler = require_linker(get_target(detect_host()[0])).command
    include = ["-I", str(header.parent), "-I", str(header.parent / "linux")]
    done = subprocess.run(
        [*compiler, "-fsyntax-only", *include, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

