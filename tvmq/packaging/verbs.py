# SPDX-License-Identifier: Apache-2.0
"""The verb over artifacts as developers take them, as a Python function; ``tvmq.api`` offers it."""

from __future__ import annotations

from pathlib import Path

from targets import System


def package(artifact: Path | str, output: Path | str, *, system: System, force: bool = False) -> int:
    """Write what an application developer takes: a tarball for Linux, a Gradle project for Android.

    See ``tvmq.packaging``.

    Args:
        artifact: folder that ``compile`` wrote for that system.
        output: file (Linux) or folder (Android) to write; it appears complete or not at all.
        system: ``linux`` or ``android``.
        force: replace an existing output.

    Returns:
        Bytes of the tarball, or of the project's model and libraries.
    """
    if system == "android":
        from .android import package_android as write
    else:
        from .linux import package_linux as write
    return write(Path(artifact), Path(output), force=force)
