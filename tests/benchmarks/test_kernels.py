# SPDX-License-Identifier: Apache-2.0
"""The kernel benchmark runs, writes what it shows, and draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import kernels
from benchmarks.kernel_peers import peers, timed


@pytest.mark.isa("x86_64_v2")
def test_runs_writes_json_and_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    app, path, plot = typer.Typer(), tmp_path / "out.json", tmp_path / "roofline.svg"
    app.command()(kernels.main)
    words = ["--shape", "2048x256", "--tokens", "3", "--bits", "2", "--no-peers", "--rounds", "2"]
    words += ["--json", str(path), "--plot", str(plot)]
    outcome = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "2048x256, 3 tokens" in outcome.stdout
    found = json.loads(path.read_text())
    assert found["machine"]["read_gbps"] > 0
    assert [(r["name"], r["shape"], r["tokens"]) for r in found["results"]] == [("tvmq 2-bit", "2048x256", 3)]
    assert "<svg" in plot.read_text()


def test_drawing_without_matplotlib_is_refused_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(kernels, "ours", lambda *args: pytest.fail("timed"))
    app = typer.Typer()
    app.command()(kernels.main)
    outcome = CliRunner().invoke(app, ["--plot", str(tmp_path / "a.svg")])
    assert outcome.exit_code == 2
    assert "matplotlib" in outcome.output


def test_peers_run_on_one_shape() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 128), np.float32)
    found = dict(peers(weight, 2, 1))
    if not found:
        pytest.skip("no peer is installed")
    assert all(run(2) > 0 for run in found.values())


def test_timers_count_their_calls() -> None:
    calls: list[int] = []
    assert timed(lambda: calls.append(1))(5) >= 0
    assert len(calls) == 5
