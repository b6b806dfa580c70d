# SPDX-License-Identifier: Apache-2.0
"""The fidelity benchmark: logits are compared where the translations are, and exact tables are exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import fidelity


@pytest.mark.parametrize(("tables", "error"), [("exact", 1e-5), ("int8", 0.05)])
def test_compiled_against_pytorch(tiny_model: Path, tmp_path: Path, tables: str, error: float) -> None:
    app = typer.Typer()
    app.command()(fidelity.main)
    data = tmp_path / "data.tsv"
    data.write_text("w1 w2 w3\tw4 w5 w6 w7\nw7 w8\tw9 w10\nw11 w12 w13\tw1\n", encoding="utf-8")
    words = ["--model", tiny_model, "--data", data, "--tables", tables, "--sentences", 2, "--json"]
    outcome = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    found = json.loads(outcome.stdout)
    assert (found["sentences"], found["identical"] <= 1) == (2, True)
    assert 2 <= found["steps"] <= 2 * 12
    assert found["error_mean"] <= found["error_max"] < error
    assert 0.999 < found["cosine_min"] <= found["cosine_mean"] <= 1 + 1e-9


def test_agreement() -> None:
    ours, theirs = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[6.0, 8.0], [0.0, 1.0]])
    np.testing.assert_allclose(fidelity.agreement(ours, theirs), [[1, 0], [0.5, 2**0.5]])


def test_fed_tokens_are_the_output_shifted() -> None:
    fed, real = fidelity._fed([(5, 6, 0), (7, 0)], start_id=9)
    assert fed.tolist() == [[9, 5, 6], [9, 7, 9]]
    assert real.tolist() == [[True, True, True], [True, True, False]]
