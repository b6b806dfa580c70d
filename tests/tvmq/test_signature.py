# SPDX-License-Identifier: Apache-2.0
"""A module's calling convention as text in the manifest: there and back, and nothing else accepted."""

from __future__ import annotations

import pytest

from tvmq.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int64", shape=("batch", "length"), limit=300),
        TensorSpec(name="scale", dtype="float32", shape=()),
    ),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "2*length + 1", 7)),),
    ranges={"batch": (1, None), "length": (2, 64)},
    returns="dict",
)


def test_there_and_back() -> None:
    entries = SIGNATURE.to_architecture()
    assert entries["input.0"] == "ids int64[batch, length] < 300"
    assert entries["extent.batch"] == "1.."
    assert Signature.from_architecture(entries) == SIGNATURE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("returns", "list"),
        ("input.0", "ids int64"),
        ("input.0", "ids string[batch]"),
        ("input.0", "ids int64[batch,]"),
        ("input.0", "ids int64[batch, width]"),
        ("input.0", "ids int64[batch] < many"),
        ("input.7", "more int64[batch]"),
        ("output.0", ""),
        ("extent.length", "2-64"),
        ("extent.length", "-1.."),
    ],
)
def test_other_text_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Signature.from_architecture({**SIGNATURE.to_architecture(), key: value})


def test_nothing_may_be_missing() -> None:
    entries = SIGNATURE.to_architecture()
    for key in entries:
        rest = {name: value for name, value in entries.items() if name != key}
        if not key.startswith("input.1"):
            with pytest.raises(ValueError, match=r"\w"):
                Signature.from_architecture(rest)
