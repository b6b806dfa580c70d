# SPDX-License-Identifier: Apache-2.0
"""Labels, label maps and the way logits become scores, read from config.json."""

from __future__ import annotations

from typing import Any

import pytest

from tvmq.errors import InputError
from tvmq.families.encoder_head import read_architecture, read_labels, read_scores


def test_labels_by_number() -> None:
    assert read_labels({"id2label": {"1": "good", "0": "bad"}}) == ("bad", "good")
    maps = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"good": 1, "bad": 0}, "num_labels": 2}
    assert read_labels(maps) == ("bad", "good")
    assert read_labels({}) == ("LABEL_0", "LABEL_1")
    assert read_labels({"num_labels": 3}) == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": ["bad", "good"]}, "expected an object of 1 to 4096 numbers"),
        ({"id2label": {}}, "expected an object"),
        ({"id2label": {"0": "bad", "2": "good"}}, "id2label names '0, 2', expected the numbers 0 to 1"),
        ({"id2label": {"zero": "bad"}}, "id2label names 'zero'"),
        ({"id2label": {"0": "bad", "1": "bad"}}, "gives two numbers one name"),
        ({"id2label": {"0": 5}}, "id2label holds '5', expected printable text"),
        ({"id2label": {"0": "a\tb"}}, "expected printable text"),
        ({"id2label": {"0": ""}}, "expected printable text"),
        ({"id2label": {"0": "x" * 201}}, "expected printable text of 1 to 200"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}, "contradict each other"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels is 3, expected 2"),
        ({"num_labels": 0}, "num_labels is 0, expected 1 to 4096"),
        ({"num_labels": True}, "num_labels is True"),
    ],
)
def test_unknown_label_maps(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_labels(config)
    assert "\n" not in str(caught.value)


def test_scores() -> None:
    assert read_scores({}, 2) == "softmax"
    assert read_scores({"problem_type": "single_label_classification"}, 3) == "softmax"
    assert read_scores({}, 1) == "sigmoid"
    assert read_scores({"problem_type": "multi_label_classification"}, 3) == "sigmoid"
    assert read_scores({"problem_type": "regression"}, 1) == "none"
    with pytest.raises(InputError, match="problem_type 'ranking' is unknown"):
        read_scores({"problem_type": "ranking"}, 1)


def test_architectures() -> None:
    known: Any = {"M": None, "MForTokens": "tag"}
    assert read_architecture({}, known) is None
    assert read_architecture({"architectures": ["M"]}, known) is None
    assert read_architecture({"architectures": ["MForTokens"]}, known) == "tag"
