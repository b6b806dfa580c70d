# SPDX-License-Identifier: Apache-2.0
"""The first steps of running any artifact: check it, pick the ISA level, hash what will be used."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from targets import detect_host, get_target, host_architecture, set_of, system_of, target_names

from . import vm
from .artifact import Artifact, open_artifact, verify_files
from .errors import InputError, UsageError, VerificationError
from .families import FAMILIES, get_family
from .store import show

MODULE_FAMILY: Final = "module"
"""``family`` of artifacts made from a user's own module."""
SELF_TEST = "selftest.json"
EXECUTOR = "TVMQ_EXECUTOR"
"""Environment variable that picks what runs the kernels: ``native`` or ``vm``."""
Executor = Literal["native", "vm"]
MAX_THREADS = 256
Use = Literal["translate", "encode", "module"]
_WHAT = {"translate": "a translation model", "encode": "an encoder", "module": "a module"}
_HINT = {
    "translate": "translate with it",
    "encode": "embed or classify with it",
    "module": "call it: tvmq.load(path)(inputs)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An artifact whose used files have the right hash, and the library that this CPU runs.

    For the native executor only the manifest was checked: the runtime itself hashes what it uses.
    """

    artifact: Artifact
    isa: str
    library: str
    executor: Executor


def use_of(artifact: Artifact) -> Use:
    """What an artifact is for; VerificationError for a family that this version does not know."""
    family = artifact.manifest.family
    if family == MODULE_FAMILY:
        return MODULE_FAMILY
    if family not in FAMILIES:
        raise VerificationError(
            f"{artifact.path}: unknown family {show(family)}; known: {', '.join(FAMILIES)} (upgrade tvmq)"
        )
    return get_family({"model_type": family}).task


def require_use(artifact: Artifact, wanted: Use) -> None:
    """InputError for an artifact that is for something else."""
    found = use_of(artifact)
    if found != wanted:
        raise InputError(f"{artifact.path}: holds {_WHAT[found]}, not {_WHAT[wanted]}; {_HINT[found]}")


def open_checked(path: Path | str, *, threads: int, isa: str | None) -> Opened:
    """Opens an artifact for running.

    Args:
        path: the artifact folder.
        threads: threads that large kernels use, 1 to 256.
        isa: an ISA level instead of the best that this CPU and the artifact share.

    Raises:
        InputError: no artifact, or none of its levels runs here.
        VerificationError: damaged or changed files.
        UsageError: unknown level, or an impossible number of threads.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads}, expected 1 to {MAX_THREADS} (the machine's cores at most)")
    artifact = open_artifact(path)
    level = _pick_level(artifact, isa)
    library = next(entry.library for entry in artifact.manifest.isa_levels if entry.name == level)
    executor = _pick_executor(artifact)
    if executor == "vm":
        verify_files(artifact, [library, artifact.manifest.weights.file, SELF_TEST])
        vm.set_threads(threads)
    return Opened(artifact=artifact, isa=level, library=library, executor=executor)


def preferred_executor() -> Executor:
    """What runs an artifact that both can run; UsageError for an unknown name in the environment."""
    match os.environ.get(EXECUTOR, ""):
        case "":
            return "native" if sys.platform == "linux" else "vm"
        case "native" | "vm" as name:
            return name
        case other:
            raise UsageError(f"{EXECUTOR} is {show(other)}, expected native or vm")


def _pick_executor(artifact: Artifact) -> Executor:
    """The native runtime where the artifact holds one that loads here, unless the VM is asked for."""
    from .native.models import has_runtime, loads

    asked, preferred = os.environ.get(EXECUTOR, ""), preferred_executor()
    if preferred == "vm":
        return "vm"
    if has_runtime(artifact) and (asked or loads(artifact)):
        return "native"
    if asked:
        raise InputError(f"{artifact.path}: holds no native runtime; run it with {EXECUTOR}=vm")
    return "vm"


def _pick_level(artifact: Artifact, wanted: str | None) -> str:
    present = [level.name for level in artifact.manifest.isa_levels]
    if system_of(artifact.manifest.target) == "android":
        raise InputError(f"{artifact.path}: compiled for Android; compile with --target {_own_target()}")
    runs = [name for name in detect_host() if name in present]
    if wanted is not None:
        if wanted not in present:
            raise UsageError(f"the artifact has no ISA level {wanted!r}; it has {', '.join(present)}")
        if wanted not in runs:
            known = ", ".join(runs) or "none of them"
            raise UsageError(f"this CPU cannot run ISA level {wanted}; it runs {known}")
        return wanted
    if not runs:
        raise InputError(f"{artifact.path}: {_no_level(present)}; compile with --target {_own_target()}")
    return runs[0]


def _no_level(present: list[str]) -> str:
    """Why none of an artifact's levels fits this machine."""
    machine = host_architecture()
    compiled = sorted({get_target(name).architecture for name in present if name in target_names()})
    if compiled and machine not in compiled:
        return f"compiled for {' and '.join(compiled)} machines, this one is {machine}"
    return f"compiled for {', '.join(present)}, none of which this CPU runs"


def _own_target() -> str:
    """The ``--target`` with all levels of this machine's architecture."""
    return set_of("aarch64" if host_architecture() == "aarch64" else "x86_64")
