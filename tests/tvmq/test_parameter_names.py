# SPDX-License-Identifier: Apache-2.0
"""The manifest's list of tensors: short, readable, back to the same lists, and bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmq.parameter_names import MAX_PARAMETERS, decode_names, encode_names

PARAMETERS = {
    "encode": ["model.a.bias", "model.a.weight:keys", "model.a.weight:scales", "positions"],
    "decode": ["model.a.weight:scales", "model.a.weight:keys", "model.b.bias", "positions", "positions"],
    "empty": [],
}


def test_written_form() -> None:
    assert encode_names(PARAMETERS) == {
        "tensors": {"model.a.": "bias weight:keys weight:scales", "model.b.": "bias", "": "positions"},
        "functions": {"encode": "0-2 4", "decode": "2 1 3-4 4", "empty": ""},
    }
    assert decode_names(encode_names(PARAMETERS)) == PARAMETERS


NAMES = st.text(st.sampled_from("ab. %2025:@_\u00e9"), min_size=1, max_size=8)


@given(st.dictionaries(st.text(max_size=3), st.lists(NAMES, max_size=12), max_size=4))
def test_round_trip(parameters: dict[str, list[str]]) -> None:
    written = json.loads(json.dumps(encode_names(parameters)))
    assert decode_names(written) == parameters
    assert encode_names(decode_names(written)) == written


def test_each_name_is_written_once() -> None:
    names = [f"model.layers.{i}.linear.{part}" for i in range(50) for part in ("bias", "weight:keys")]
    text = json.dumps(encode_names({f"f{i}": names for i in range(6)}))
    assert text.count("model.layers.7.linear.") == 1
    assert len(text) < len(json.dumps(names))


def listing(tensors: Any = None, functions: Any = None) -> dict[str, Any]:
    return {"tensors": tensors or {"": "a b"}, "functions": functions or {"f": "0-1"}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "Expected `object`"),
        ({"f": ["a"]}, "unknown field `f`"),
        ({"tensors": {}}, "missing required field `functions`"),
        (listing(functions={"f": ["a"]}), r"Expected `str`.*functions"),
        (listing(functions={"f": "0,1"}), "functions"),
        (listing(functions={"f": " 0"}), "functions"),
        (listing(functions={"f": "0 "}), "functions"),
        (listing(functions={"f": "-1"}), "functions"),
        (listing(functions={"f": "0-1-1"}), "functions"),
        (listing(functions={"f": "0\n"}), "functions"),
        (listing(functions={"f": "\u0661"}), "functions"),
        (listing(functions={"f": "99999999"}), "functions"),
        (listing(functions={"f": "0 2"}), "number 2 of function 'f' is beyond the 2 tensors"),
        (listing(functions={"f": "0-2"}), "number 0-2 of function 'f'"),
        (listing(functions={str(i): "0" for i in range(257)}), "length <= 256"),
        (listing({"": " ".join("x" * 3000)}, {"f": " ".join(["0-2999"] * 400)}), "is beyond"),
    ],
)
def test_other_forms_are_refused(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_names(document)


def test_the_limit_is_far_above_any_model() -> None:
    assert len(decode_names(listing({"": " ".join("x" * 3000)}, {"f": "0-2999"}))["f"]) * 300 < MAX_PARAMETERS
