# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: marked differences and the closing table, on made-up measurements."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tvmq import demo
from tvmq.benchmark import BenchResult
from tvmq.evaluation import EvalResult


def measured(setting: demo.Setting, factor: float) -> demo.Measured:
    """A setting ``factor`` times smaller and faster than the first."""

    def run(beam: int) -> BenchResult:
        return BenchResult(
            tokens_per_s=100 * factor / beam,
            ms_per_sentence=1.0,
            threads=1,
            beam=beam,
            batch=1,
            peak_rss_mb=50 + 250 / factor,
            baseline_rss_mb=50,
            weights_mb=1.0,
            isa="isa",
            cpu="cpu",
        )

    return demo.Measured(
        setting=setting,
        facts={"size_bytes": 2e8 / factor, "bits_per_weight": 32 / factor},
        outputs=["gut"],
        score=EvalResult(
            metric="BLEU",
            value=33 - factor,
            value_interval=(0, 100),
            chrf=60,
            chrf_value_interval=(0, 100),
            signature="s",
            n=1,
            seconds=1,
            outputs=("gut",),
        ),
        greedy=run(1),
        beam=run(4),
    )


def test_the_table_compares_with_the_original() -> None:
    results = [measured(*pair) for pair in zip(demo.SETTINGS, (1, 10, 12.5), strict=True)]
    out = io.StringIO()
    Console(file=out, width=demo.PLAIN_WIDTH).print(demo.results_table(results))
    rows = {line[:34].strip(): line[34:].split() for line in out.getvalue().splitlines()}
    assert rows["size, MB"] == ["200.0", "(1/1.0)", "20.0", "(1/10.0)", "16.0", "(1/12.5)"]
    assert rows["memory above the interpreter, MB"][2:4] == ["25.0", "(1/10.0)"]
    assert rows["tokens per second, greedy"][2:4] == ["1,000", "(10.0x)"]
    assert rows["tokens per second, beam 4"][2:4] == ["250", "(10.0x)"]
    assert rows["BLEU"] == ["32.0", "(+0.0)", "23.0", "(-9.0)", "20.5", "(-11.5)"]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("ein Haus", "ein Haus", "(the same)"),
        ("ein Haus am See", "ein Heim am See", "ein [Heim] am See "),
        ("ein Haus am See", "ein Haus", "ein Haus "),
        ("", "neu", "[neu] "),
    ],
)
def test_differences_are_marked(before: str, after: str, shown: str) -> None:
    assert demo.with_differences(before, after).plain == shown


def test_the_sample_is_in_the_repository() -> None:
    sources, references = demo.read_pairs(demo.SAMPLE)
    assert len(sources) == len(references) >= demo.SCORED
    assert sum(len(text.split()) in demo.SHOWN_WORDS for text in sources[: demo.SCORED]) >= demo.SHOWN
