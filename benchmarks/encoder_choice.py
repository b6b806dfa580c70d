# SPDX-License-Identifier: Apache-2.0
"""The engines that a command line asks for: peers by name, and any number of compiled artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from .encoder_engines import DEFAULT_ENGINES, ENGINES, EncoderEngine, EncoderSetup, build, prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One row of the tables: an engine and what it runs."""

    engine: str
    setup: EncoderSetup

    @property
    def ours(self) -> bool:
        return self.engine == "tvmq"

    def build(self) -> EncoderEngine:
        """Convert (once) and load it."""
        prepare(self.engine, self.setup)
        return build(self.engine, self.setup)


def choose(
    setup: EncoderSetup,
    *,
    artifacts: Sequence[Path],
    labels: Sequence[str],
    only: Sequence[str],
    skip: Sequence[str],
) -> dict[str, Choice]:
    """Label of the table -> engine.

    Raises:
        typer.BadParameter: an unknown engine, tvmq without an artifact, or labels that do not fit.
    """
    if unknown := [name for name in (*only, *skip) if name not in ENGINES]:
        raise typer.BadParameter(f"unknown engine {unknown[0]!r} (known: {', '.join(ENGINES)})")
    names = [name for name in (only or DEFAULT_ENGINES) if name not in skip]
    if "tvmq" in names and not artifacts:
        raise typer.BadParameter("tvmq needs --artifact PATH of a compiled artifact (or --skip tvmq)")
    ours = _labelled(artifacts, labels) if "tvmq" in names else {}
    chosen = {
        label: Choice(engine="tvmq", setup=replace(setup, artifact=path)) for label, path in ours.items()
    }
    return chosen | {name: Choice(engine=name, setup=setup) for name in names if name != "tvmq"}


def fastest_peer(choices: Mapping[str, Choice], median: Mapping[str, float]) -> str | None:
    """The engine other than tvmq with the lowest of ``median``."""
    peers = [label for label, choice in choices.items() if not choice.ours]
    return min(peers, key=lambda label: median[label], default=None)


def _labelled(paths: Sequence[Path], labels: Sequence[str]) -> dict[str, Path]:
    if labels and len(labels) != len(paths):
        raise typer.BadParameter("give one --artifact-label per --artifact, or none")
    return dict(zip(labels or [f"tvmq {path.stem}" for path in paths], paths, strict=True))
