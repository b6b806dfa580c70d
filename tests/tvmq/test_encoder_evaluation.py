# SPDX-License-Identifier: Apache-2.0
"""Scores of encoders without any model: accuracy, Spearman against scipy, McNemar's test by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.encoder_evaluation import pick_metric, score_cosines, score_labels, spearman
from tvmq.errors import InputError, UsageError
from tvmq.significance import mcnemar

LABELS = ("negative", "positive")


def test_accuracy_by_name_and_number() -> None:
    found = score_labels(["negative", "positive", "negative"], ["0", "positive", "1"], LABELS)
    assert (found.metric, found.n, round(found.value, 4)) == ("accuracy", 3, 66.6667)
    assert found.value_interval[0] <= found.value <= found.value_interval[1]
    assert found.signature == "accuracy|labels:negative,positive"
    assert found.to_json()["value"] == 66.67
    assert "mcnemar_p" not in found.to_json()


def test_digits_may_be_names() -> None:
    assert score_labels(["1"], ["1"], ("1", "0")).value == 100
    assert score_labels(["1"], ["0"], ("1", "0")).value == 0


def test_equal_systems_do_not_differ() -> None:
    said = ["negative", "positive"] * 20
    found = score_labels(said, ["0"] * 40, LABELS, baseline=said)
    assert found.comparison is not None
    assert (found.comparison.difference, found.mcnemar_p) == (0, 1)
    assert found.comparison.interval == (0, 0)


def test_a_better_system_is_significantly_better() -> None:
    gold = ["0"] * 50
    system, baseline = ["negative"] * 45 + ["positive"] * 5, ["negative"] * 30 + ["positive"] * 20
    found = score_labels(system, gold, LABELS, baseline=baseline)
    assert found.comparison is not None
    assert found.comparison.difference == pytest.approx(30)
    assert found.comparison.interval[0] > 0
    assert found.mcnemar_p == pytest.approx(2 / 2**15)


@pytest.mark.parametrize("text", ["maybe", "2", "-1", "²", ""])
def test_unknown_labels(text: str) -> None:
    with pytest.raises(InputError, match=r"line 1 of the data: unknown label .*labels: negative, positive"):
        score_labels(["negative"], [text], LABELS)
    with pytest.raises(InputError, match="line 1 of the baseline: unknown label"):
        score_labels(["negative"], ["0"], LABELS, baseline=[text])


def test_mcnemar_is_the_binomial_test() -> None:
    from scipy.stats import binomtest

    random = np.random.default_rng(0)
    for _ in range(20):
        a, b = random.random((2, 60)) < random.random(2)[:, None]
        only = [int((a & ~b).sum()), int((b & ~a).sum())]
        expected = binomtest(min(only), sum(only)).pvalue if sum(only) else 1.0
        assert mcnemar(a, b) == pytest.approx(expected)
    assert mcnemar(np.ones(5, bool), np.ones(5, bool)) == 1


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(-4, 4), st.floats(-1, 1)), min_size=2, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[int, float]]) -> None:
    from scipy.stats import spearmanr

    a, b = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    found = spearman(a, b)
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert math.isclose(found, float(spearmanr(a, b).statistic), abs_tol=1e-9)
    else:
        assert found == 0


def test_cosines() -> None:
    found = score_cosines(["0.1", "0.9", "0.5"], ["1", "5", "3"], baseline=["0.9", "0.1", "0.5"])
    assert (found.metric, found.value, found.signature) == ("spearman", 1.0, "spearman|cosine|ties:mean")
    assert found.comparison is not None
    assert found.comparison.difference == 2
    assert found.mcnemar_p is None
    assert found.to_json()["value_interval"][1] == 1


@pytest.mark.parametrize("text", ["nan", "inf", "high", ""])
def test_scores_must_be_numbers(text: str) -> None:
    with pytest.raises(InputError, match=r"line 2 of the data: .* is no number"):
        score_cosines(["0.1", "0.2"], ["1", text])


def test_metric_by_head() -> None:
    assert [pick_metric(head, None) for head in ("classify", "tag", "")] == [
        "accuracy",
        "spearman",
        "spearman",
    ]
    assert pick_metric("classify", "spearman") == "spearman"
    for head, wanted in (("", "accuracy"), ("tag", "accuracy"), ("classify", "bleu"), ("", "bleu")):
        with pytest.raises(UsageError, match=f"--metric {wanted} does not fit this model"):
            pick_metric(head, wanted)
