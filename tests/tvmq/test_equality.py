# SPDX-License-Identifier: Apache-2.0
"""The embedded model kept in FP32 says word for word what transformers' ``generate`` says.

tests/golden/generate-*.txt hold transformers' own output for the first lines of the sample. The slow test
asks transformers again: ``pytest -m slow tests/tvmq/test_equality.py`` (with ``--update-golden`` it writes
the files). ``python -m benchmarks.equality`` compares 500 sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tvmq
from tvmq.evaluation import read_pairs
from tvmq.loading import EXECUTOR
from tvmq.options import CompileOptions, PlanOptions

MODEL = Path(__file__).resolve().parents[2] / "models" / "nmt-en-de"
SENTENCES = 20
BEAMS = (1, 4)


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return read_pairs(MODEL / "sample" / "test.tsv")[0][:SENTENCES]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from targets import detect_host

    path = tmp_path_factory.mktemp("fp32") / "en-de.tvmq"
    options = CompileOptions(plan=PlanOptions(preset="fp32"), isa_levels=(detect_host()[0],))
    tvmq.compile(MODEL, path, options)
    return path


@pytest.fixture(scope="module", params=["native", "vm"])
def translator(artifact: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EXECUTOR, request.param)
        with closing(tvmq.load(artifact)) as opened:
            yield opened


@pytest.mark.parametrize("beams", BEAMS)
def test_fp32_equals_generate(
    translator: Any, sources: list[str], golden: Callable[[str, str], None], beams: int
) -> None:
    found = translator.translate(sources, beams=beams)
    golden(f"generate-beam{beams}.txt", "".join(f"{best[0].text}\n" for best in found))


@pytest.mark.slow
@pytest.mark.parametrize("beams", BEAMS)
def test_the_golden_files_are_transformers_output(
    sources: list[str], golden: Callable[[str, str], None], beams: int
) -> None:
    import torch

    from benchmarks.equality import Reference

    torch.set_num_threads(1)
    golden(
        f"generate-beam{beams}.txt",
        "".join(f"{line}\n" for line in Reference(MODEL).generate(sources, beams)),
    )
