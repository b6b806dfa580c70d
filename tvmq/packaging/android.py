# SPDX-License-Identifier: Apache-2.0
"""``tvmq package --android``: a Gradle project, a module (runtime, glue, classes, model) and a sample.

Kernels become native libraries of the APK: Android maps code from there on every version, while code in
an application's writable files is fenced in more with each and may not be downloaded. The manifest in the
assets names them and does not list them (``tvmq_load_installed``): build tools may strip libraries again,
so hashes of files would not hold; instead a library's name carries the hash that it had, so that no other
one is taken for it, and the APK's signature vouches for its bytes. All data stays listed and hashed. It
lies in the assets and is copied to the application's files once, since weights are mapped on 64-byte
boundaries and an APK aligns assets to 4.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from targets.toolchain import Linker
from tvmq.artifact import FileInfo
from tvmq.manifest import Manifest, write_manifest
from tvmq.native.library import FOLDER, LIBRARY, shared_library
from tvmq.store import atomic_dir

from .source import Source, filled, open_source, tokenizer_files

GLUE = "libtvmq_jni.so"
ABI = "arm64-v8a"
MARKERS = ("settings.gradle.kts", "translator/build.gradle.kts")
_TEMPLATES = Path(__file__).parent / "android"
_JNI = Path(__file__).parent / "jni"
_MB = 1e6


def package_android(path: Path, output: Path, *, force: bool = False) -> int:
    """Writes the project of an artifact for Android; the size of its model and libraries in bytes.

    Args:
        path: artifact for ``android-arm64``.
        output: folder to write; it appears complete or not at all.
        force: replace an earlier project there.

    Raises:
        TvmqError: the artifact, a tool or the output cannot be used.
    """
    with atomic_dir(output, force, inputs=[path], kind="an Android project", markers=MARKERS) as staging:
        source = open_source(path, "android")
        main = staging / "translator" / "src" / "main"
        assets, libraries = main / "assets" / "tvmq" / source.name, main / "jniLibs" / ABI
        size = write_assets(source, assets) + write_libraries(source, libraries)
        _write_sources(main / "c")
        for name, data in filled(_TEMPLATES, _values(source, size)):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(data)
    return size


def installed_names(manifest: Manifest) -> dict[str, str]:
    """Library of a level -> its name among the native libraries of an application."""
    names: dict[str, str] = {}
    for level in manifest.isa_levels:  # a library that several levels share has the name of the lowest
        digest = manifest.files[level.library].sha256
        names.setdefault(level.library, f"libtvmq_{digest[:12]}_{level.name}.so")
    return names


def write_assets(source: Source, folder: Path) -> int:
    """The artifact without its libraries, and with the tokenizer in plain files; its size in bytes."""
    manifest, artifact = source.artifact.manifest, source.artifact
    programs = [level.program for level in manifest.isa_levels]
    kept = {manifest.weights.file, "selftest.json", *programs}
    data: dict[str, bytes | Path] = {name: artifact.file(name) for name in sorted(kept)}
    data.update({f"tokenizer/{name}": content for name, content in tokenizer_files(source).items()})
    for name, content in data.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, place)
        else:
            place.write_bytes(content)
    names = installed_names(manifest)
    levels = tuple(
        msgspec.structs.replace(level, library=names[level.library]) for level in manifest.isa_levels
    )
    files = {name: _info(folder / name) for name in sorted(data)}
    write_manifest(folder, msgspec.structs.replace(manifest, isa_levels=levels, files=files))
    return sum(info.size for info in files.values())


def _info(place: Path) -> FileInfo:
    content = place.read_bytes()
    return FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_libraries(source: Source, folder: Path, *words: str) -> int:
    """The glue, the runtime and the kernels under their installed names; their size in bytes.

    Args:
        source: the artifact.
        folder: where to.
        words: more options for linking the glue.
    """
    folder.mkdir(parents=True, exist_ok=True)
    artifact = source.artifact
    for name, installed in {LIBRARY: "libtvmq.so", **installed_names(artifact.manifest)}.items():
        shutil.copyfile(artifact.file(name), folder / installed)
    link_glue(source.compiler(), folder / GLUE, folder / "libtvmq.so", *words)
    return sum(place.stat().st_size for place in folder.iterdir())


def link_glue(compiler: Linker, output: Path, runtime: Path, *words: str) -> None:
    """Compiles ``tvmq_jni.c`` against a runtime library; MissingToolError where that fails."""
    shared_library(compiler, output, [_JNI / "tvmq_jni.c"], runtime, *words, what="the Java glue")


def _write_sources(folder: Path) -> None:
    folder.mkdir(parents=True)
    for place in (*sorted(_JNI.iterdir()), FOLDER / "include" / "tvmq.h"):
        shutil.copyfile(place, folder / place.name)


def _values(source: Source, size: int) -> Mapping[str, str]:
    translates = source.use == "translate"
    classifies = bool(source.artifact.manifest.labels)
    pieces = ": `source.spm`, and `pieces.txt` with the piece of each id, a line each" if translates else ""
    return {
        "name": source.name,
        "ids": source.example_ids(),
        "class": "Translator" if translates else "Encoder",
        "call": "translate" if translates else "classify" if classifies else "embed",
        "verb": "Translate" if translates else "Run",
        "end": ", the end token last" if translates else ", special tokens included",
        "megabytes": f"{size / _MB:.1f}",
        "pieces": pieces,
    }
