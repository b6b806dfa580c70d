# SPDX-License-Identifier: Apache-2.0
"""Search defaults of model folders: read, or refused in a sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tvmq.errors import InputError
from tvmq.generation import GenerationDefaults, read_defaults


def test_what_is_absent_is_greedy() -> None:
    assert read_defaults({}) == GenerationDefaults(beams=1, length_penalty=1.0, max_length=None)
    assert read_defaults({"num_beams": None, "max_length": None, "other": []}) == GenerationDefaults()


def test_values_are_taken() -> None:
    found = read_defaults({"num_beams": 6, "length_penalty": 0, "max_length": 512})
    assert found == GenerationDefaults(beams=6, length_penalty=0.0, max_length=512)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beams", 0),
        ("num_beams", [4]),
        ("num_beams", True),
        ("num_beams", 10**9),
        ("max_length", -5),
        ("max_length", "256"),
        ("max_length", 1.5),
        ("length_penalty", "a"),
        ("length_penalty", math.inf),
        ("length_penalty", False),
    ],
)
def test_impossible_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"generation_config.json: {key} is "):
        read_defaults({key: value})
