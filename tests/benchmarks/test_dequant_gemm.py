# SPDX-License-Identifier: Apache-2.0
"""The benchmark of integer products: it times what it says, and writes what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import dequant_gemm
from targets import detect_host


def test_series_give_rates_of_their_times() -> None:
    series = dequant_gemm.Series(
        name="a", n=10, k=100, m=2, bits=8, run=lambda _: 1.0, seconds=[1e-6, 2e-6, 4e-6]
    )
    row = series.row()
    assert (row["us"], row["us_min"], row["gmacs"], row["gmacs_max"]) == (2.0, 1.0, 1.0, 2.0)


def test_rounds_go_round_robin() -> None:
    called: list[str] = []

    def runs(name: str) -> dequant_gemm.Series:
        def run(number: int) -> float:
            called.append(name)
            return dequant_gemm.SLICE_SECONDS

        return dequant_gemm.Series(name=name, n=1, k=1, m=1, bits=8, run=run)

    series = [runs("a"), runs("b")]
    dequant_gemm.measure(series, 3)
    assert called[-6:] == ["a", "b"] * 3
    assert [len(s.seconds) for s in series] == [3, 3]


@pytest.mark.isa("x86_64_v2")
def test_runs_and_writes_json(tmp_path: Path) -> None:
    level = detect_host()[0]
    app, path = typer.Typer(), tmp_path / "out.json"
    app.command()(dequant_gemm.main)
    words = ["--shape", "70x33", "--tokens", "3", "--bits", "2", "--bits", "8", "--no-peers", "--rounds", "2"]
    outcome = CliRunner().invoke(app, [*words, "--level", level, "--json", str(path)], catch_exceptions=False)
    assert "70x33, 3 tokens" in outcome.stdout
    found = json.loads(path.read_text())
    assert found["machine"]["threads"] == 1
    assert [(r["name"], r["shape"], r["tokens"], r["bits"]) for r in found["results"]] == [
        (level, "70x33", 3, 2),
        (level, "70x33", 3, 8),
    ]
    assert all(r["us"] >= r["us_min"] > 0 for r in found["results"])
