# SPDX-License-Identifier: Apache-2.0
"""``tvmq package``: an artifact as an application developer takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmq.errors import UsageError

from .options import MB
from .ui import Artifact, Force, Json, Ui, Verbose, facts_table

Output = Annotated[Path, typer.Option("--output", "-o", help="Tarball or folder to write.")]
Linux = Annotated[
    bool, typer.Option("--linux", help="A .tar.gz: library, header, pkg-config, CMake, examples, artifact.")
]
Android = Annotated[
    bool, typer.Option("--android", help="A Gradle project: library module with the model, sample activity.")
]


def package(
    artifact: Artifact,
    output: Output,
    linux: Linux = False,
    android: Android = False,
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Write what an application developer takes: a tarball for Linux or a Gradle project for Android."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose)
    if linux == android:
        raise UsageError("for which system? give --linux or --android")
    size = api.package(artifact, output, system="linux" if linux else "android", force=force)
    what = "tarball" if linux else "model and libraries"
    ui.result(
        {"output": str(output), "size_bytes": size},
        facts_table({"written": str(output), "size": f"{size / MB:.1f} MB ({what})"}),
    )
