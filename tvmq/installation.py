# SPDX-License-Identifier: Apache-2.0
"""Is this Python environment the one tvmq was written for? Read from package metadata, nothing is loaded.

``tvmq.api`` calls ``check_installation`` before any work; ``tvmq doctor`` prints the same facts as rows.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import metadata
from pathlib import Path

from .errors import MissingToolError

PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
"""Exact versions: TVM renames namespaces between releases, so a range would break at some later call."""
SIBLINGS = ("relay_passes", "schedules", "targets")
"""Top-level packages that ship with tvmq; other projects use these names too (``schedules`` on PyPI)."""


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None when absent."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def pip_command(requirement: str) -> str:
    """The command that installs one requirement."""
    return f"pip install '{requirement}'"


def foreign_package(name: str, home: Path | None = None) -> Path | None:
    """Where sibling package ``name`` would be imported from if that is not beside tvmq, else None."""
    home = home or Path(__file__).resolve().parents[1]
    spec = importlib.util.find_spec(name)
    origin = Path(spec.origin).resolve() if spec and spec.origin else Path(name)
    return None if origin.parent.parent == home else origin


@cache
def check_installation() -> None:
    """Raises MissingToolError when a pinned package differs or a foreign package shadows one of ours."""
    for distribution, wanted in PINS.items():
        found = installed_version(distribution)
        if found != wanted:
            raise MissingToolError(
                f"tvmq needs {distribution} {wanted}, found {found or 'none'}; "
                f"run: {pip_command(f'{distribution}=={wanted}')}"
            )
    for name in SIBLINGS:
        origin = foreign_package(name)
        if origin is not None:
            raise MissingToolError(
                f"the package {name!r} comes from {origin}, expected the one beside tvmq; "
                f"run: pip uninstall {name} && pip install --force-reinstall --no-deps tvmq"
            )


def require(module: str, extra: str) -> None:
    """Raises MissingToolError when ``module``, part of the extra ``extra``, is not installed."""
    if importlib.util.find_spec(module) is None:
        command = pip_command(f"tvmq[{extra}]")
        raise MissingToolError(f"this needs {module}, which is not installed; run: {command}")
