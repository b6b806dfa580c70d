# SPDX-License-Identifier: Apache-2.0
"""Small artifacts to be packaged, and answers of the Python runtime to compare with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import tvmq as library
from targets import detect_host

SOURCES = [11, 18, 25, 0], [7, 300, 2, 9, 31, 0], [5, 0]
TEXT = "".join(" ".join(map(str, source)) + "\n" for source in SOURCES)


@pytest.fixture(scope="session")
def host_artifact(compiled: Callable[..., Path]) -> Path:
    """The tiny model for this machine's best level."""
    return compiled("3-bit", isa_levels=(detect_host()[0],))


@pytest.fixture(scope="session")
def answers(host_artifact: Path) -> Callable[[int], list[tuple[float, list[int]]]]:
    """``answers(beams)``: score and tokens of the best translation of each of ``SOURCES``, by TVM's VM."""

    def search(beams: int) -> list[tuple[float, list[int]]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TVMQ_EXECUTOR", "vm")
            with closing(library.load(host_artifact)) as translator:
                found = translator.translate_ids(list(SOURCES), beams=beams)
        return [(best[0].score, list(best[0].tokens)) for best in found]

    return search
