# SPDX-License-Identifier: Apache-2.0
"""tvmq as an engine: a compiled artifact through the public runtime."""

from __future__ import annotations

from .engines import Setup


class TvmqEngine:
    """One loaded artifact."""

    def __init__(self, setup: Setup) -> None:
        from tvmq.runtime import load

        if setup.artifact is None:
            raise ValueError("engine tvmq needs a compiled artifact (--artifact PATH, or --skip tvmq)")
        self._translator = load(setup.artifact, threads=setup.threads)

    def translate(self, source: list[int], *, beams: int, forced: int | None) -> list[int]:
        hypotheses = self._translator.translate_ids([source], beams=beams, forced_length=forced)
        return list(hypotheses[0][0].tokens)
