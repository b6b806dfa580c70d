# SPDX-License-Identifier: Apache-2.0
"""What the loader refuses although every hash is right, what it loads on poorer systems, and its memory."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tvmq
from targets import detect_host
from tvmq.artifact import inspect, verify
from tvmq.errors import VerificationError
from tvmq.loading import EXECUTOR
from tvmq.native.binding import open_library
from tvmq.native.library import LIBRARY

Seal = Callable[..., None]
PEAK_MB = 160
"""More than whole artifacts take, and far less than what the headers below claim."""


@pytest.fixture(scope="module")
def probe(build_c: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "probe"
    build_c(program, "probe.c")
    return program


@pytest.fixture
def artifact(compiled: Callable[..., Path], tmp_path: Path) -> Path:
    copy = tmp_path / "copy.tvmq"
    shutil.copytree(compiled("3-bit", isa_levels=(detect_host()[0],)), copy)
    return copy


def load(probe: Path, artifact: Path, **environment: object) -> tuple[int, str]:
    """(code, message) of loading; the process may take no more memory than ``PEAK_MB``."""
    given = os.environ | {name: str(value) for name, value in environment.items()}
    done = subprocess.run([probe, artifact], capture_output=True, text=True, check=True, env=given)
    peak, code, message = done.stdout.rstrip("\n").split(" ", 2)
    assert int(peak) < PEAK_MB * 1000, message
    return int(code), message


def name_of(artifact: Path, kind: str) -> str:
    (level,) = inspect(artifact)["libraries"]
    return str(level[kind])


def segments(library: bytes) -> list[int]:
    """Offsets of the program headers that are loaded (64-bit ELF)."""
    first, size, count = (
        struct.unpack_from(f, library, o)[0] for f, o in (("<Q", 32), ("<H", 54), ("<H", 56))
    )
    places = [first + i * size for i in range(count)]
    return [place for place in places if struct.unpack_from("<I", library, place)[0] == 1]


def patched(data: bytes, form: str, place: int, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, place, value)
    return bytes(changed)


def test_an_artifact_as_it_was_compiled_is_loaded(probe: Path, artifact: Path) -> None:
    assert load(probe, artifact) == (0, "")


LIBRARIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda data: b"#!/bin/sh\n" * 100, "no shared library"),
    "program": (lambda data: patched(data, "<H", 16, 2), "no shared library"),
    "other CPU": (lambda data: patched(data, "<H", 18, 243), "a library for another kind of CPU"),
    "32 bits": (lambda data: patched(data, "<B", 4, 1), "a library for another kind of CPU"),
    "cut off": (lambda data: data[: len(data) // 2], "damaged: its segments are not in it"),
    "no headers": (lambda data: patched(data, "<Q", 32, 1 << 62), "damaged: its segments are not in it"),
    "pages": (
        lambda data: patched(data, "<Q", segments(data)[0] + 48, 256),
        "made for smaller pages of memory than this system's",
    ),
}


@pytest.mark.parametrize("case", LIBRARIES)
def test_a_library_that_does_not_fit_the_machine(probe: Path, artifact: Path, seal: Seal, case: str) -> None:
    change, sentence = LIBRARIES[case]
    name = name_of(artifact, "library")
    seal(artifact, name, change((artifact / name).read_bytes()))
    assert load(probe, artifact) == (5, f"{artifact}/{name}: {sentence} (compile the model again)")


MANIFESTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "schema": (lambda m: m.update(schema=99), "artifact schema 99, this library reads 1"),
    "vocab": (lambda m: m["architecture"].update(vocab=321), "the manifest's vocab differs from the program"),
    "width": (lambda m: m["architecture"].update(d_model=65), "manifest's d_model differs from the program"),
    "layers": (lambda m: m["architecture"].update(decoder_layers=3), "the program is none of this model"),
    "source": (
        lambda m: m["architecture"].update(max_source=4096),
        "the manifest's max_source differs from the program",
    ),
    "target": (
        lambda m: m["architecture"].update(max_target=4096),
        "the manifest's max_target differs from the program",
    ),
    "end": (
        lambda m: m["generation"].update(eos_token_id=320),
        "the manifest's eos_token_id differs from the program",
    ),
    "start": (
        lambda m: m["generation"].update(decoder_start_token_id=320),
        "the manifest's decoder_start_token_id differs from the program",
    ),
    "text": (lambda m: m["architecture"].update(vocab="320"), "the manifest's vocab is no number"),
    "positions": (
        lambda m: [
            rule.update(rows=1 << 20) for rule in m["weights"]["generated"].values() if "rows" in rule
        ],
        "is no table of positions",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_figures_that_are_not_the_models(probe: Path, artifact: Path, seal: Seal, case: str) -> None:
    edit, sentence = MANIFESTS[case]
    seal(artifact, edit=edit)
    code, message = load(probe, artifact)
    assert code == 5
    assert sentence in message


def test_a_program_of_another_version(probe: Path, artifact: Path, seal: Seal) -> None:
    name = name_of(artifact, "program")
    seal(artifact, name, (artifact / name).read_bytes().replace(b"tvmq-program 1", b"tvmq-program 2", 1))
    code, message = load(probe, artifact)
    assert (code, message.partition(": ")[2]) == (
        5,
        "line 1: its first line is not tvmq-program 1 (compile the model again)",
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "lib", "manifest.json"])
@pytest.mark.parametrize("inside", [True, False])
def test_links_are_refused(probe: Path, artifact: Path, name: str, inside: bool) -> None:
    moved = artifact / "moved" if inside else artifact.parent / "moved"
    (artifact / name).rename(moved)
    (artifact / name).symlink_to(moved)
    code, message = load(probe, artifact)
    assert code in (3, 5)
    assert name == "manifest.json" or "(a link; an artifact holds none)" in message
    assert not name.startswith("manifest") or "not an artifact" in message


def test_the_folder_itself_may_be_a_link(probe: Path, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    assert load(probe, tmp_path / "link") == (0, "")


def _values(count: int) -> bytes:
    return b"[" + b"0," * (count - 1) + b"0]"


def _manifest(artifact: Path, seal: Seal) -> None:
    filled = b'{\n  "x": %s,\n  "schema"' % _values(8 << 20)
    text = (artifact / "manifest.json").read_bytes().replace(b'{\n  "schema"', filled)
    (artifact / "manifest.json").write_bytes(text[: 16 << 20])


def _header(artifact: Path, seal: Seal) -> None:
    text = b'{"a":' + _values(16_000_000) + b"}"
    seal(artifact, "weights.safetensors", struct.pack("<Q", len(text)) + text)


def _length(artifact: Path, seal: Seal) -> None:
    data = (artifact / "weights.safetensors").read_bytes()
    seal(artifact, "weights.safetensors", patched(data, "<Q", 0, (1 << 63) + 8))


def _shape(artifact: Path, seal: Seal) -> None:
    data = (artifact / "weights.safetensors").read_bytes()
    assert data.count(b'"shape":[64]') > 0
    seal(
        artifact,
        "weights.safetensors",
        data.replace(b'"shape":[64]', b'"shape":[9e]').replace(b"9e", b"99", 1),
    )


def _tensors(artifact: Path, seal: Seal) -> None:
    head, _, _ = (artifact / name_of(artifact, "program")).read_bytes().partition(b"function ")
    lines = head + b"function encode\n" + b"tensor weight 0 0 int8 1x1x1x1x1x1x1x1\n" * 100_000
    seal(artifact, name_of(artifact, "program"), lines[: 4 << 20])


def _functions(artifact: Path, seal: Seal) -> None:
    head, _, _ = (artifact / name_of(artifact, "program")).read_bytes().partition(b"function ")
    seal(artifact, name_of(artifact, "program"), head + b"function a\n" * 300_000 + b"end\n")


def _pools(artifact: Path, seal: Seal) -> None:
    data = (artifact / name_of(artifact, "program")).read_bytes()
    big = b"\npool 2147483648 2147483648x2147483648"
    lines = [
        big if line.startswith(b"\npool") else line for line in data.replace(b"\n", b"\0\n").split(b"\0")
    ]
    seal(artifact, name_of(artifact, "program"), b"".join(lines))


def _library(artifact: Path, seal: Seal) -> None:
    name = name_of(artifact, "library")
    data = (artifact / name).read_bytes()
    seal(artifact, name, data)
    os.truncate(artifact / name, 1 << 33)
    seal(artifact, edit=lambda m: m["files"][name].update(size=1 << 33))


def _weights(artifact: Path, seal: Seal) -> None:
    seal(artifact, edit=lambda m: m["files"]["weights.safetensors"].update(size=1 << 49))


LIES = [_manifest, _header, _length, _shape, _tensors, _functions, _pools, _library, _weights]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__.strip("_"))
def test_lying_headers_take_no_memory(probe: Path, artifact: Path, seal: Seal, lie: Any) -> None:
    lie(artifact, seal)
    code, message = load(probe, artifact)
    assert code in (3, 5)
    assert message


@pytest.mark.parametrize(
    "words", [("-Ddlopen=probe_dlopen",), ("-Ddlopen=probe_dlopen", "-Dmemfd_create=probe_memory")]
)
def test_systems_that_load_files_only(
    build_c: Any, artifact: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Without /proc or memory for code, the file is loaded, if it still is what was hashed."""
    build_c(tmp_path / "probe", "probe.c", *words)
    assert load(tmp_path / "probe", artifact) == (0, "")
    library = artifact / name_of(artifact, "library")
    other = tmp_path / "other.so"
    data = bytearray(library.read_bytes())
    data[-1] ^= 1  # in the table of sections, which nobody needs
    other.write_bytes(data)
    code, message = load(tmp_path / "probe", artifact, PROBE_SWAP=other)
    assert (code, message.startswith(f"{library}: contents differ (sha256)")) == (5, True)


def test_what_is_verified_and_inspected_is_never_loaded(
    artifact: Path, seal: Seal, build_c: Any, tmp_path: Path
) -> None:
    """Libraries that end the process as they are loaded."""
    source = tmp_path / "trap.c"
    source.write_text(
        "#include <unistd.h>\n__attribute__((constructor)) static void trap(void) { _exit(77); }\n"
    )
    build_c(tmp_path / "trap.so", source, "-shared", "-fPIC", files=())
    trap = (tmp_path / "trap.so").read_bytes()
    for name in (LIBRARY, name_of(artifact, "library")):
        seal(artifact, name, trap)
    assert verify(artifact).ok
    assert inspect(artifact)["isa_levels"]


def test_the_hash_is_that_of_what_is_loaded(artifact: Path) -> None:
    path = artifact / LIBRARY
    with pytest.raises(VerificationError, match="contents differ"):
        open_library(path, "0" * 64)


def test_a_system_that_does_not_load_the_runtime_uses_the_vm(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, seal: Seal
) -> None:
    seal(artifact, LIBRARY, patched((artifact / LIBRARY).read_bytes(), "<H", 18, 243))  # for another CPU
    monkeypatch.delenv(EXECUTOR, raising=False)
    with tvmq.load(artifact) as translator:
        assert type(translator._model).__name__ == "TranslationModel"
        assert translator.translate_ids([[5, 0]])[0][0].tokens
    monkeypatch.setenv(EXECUTOR, "native")
    with pytest.raises(VerificationError, match=r"libtvmq.so: cannot be loaded \("):
        tvmq.load(artifact)
