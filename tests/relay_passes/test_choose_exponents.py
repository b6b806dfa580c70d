# SPDX-License-Identifier: Apache-2.0
"""ChooseExponents: channel exponents from ranges, handed to who reads them; layouts; the queries' factor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.choose_exponents import LARGEST, ChooseExponents, channel_exponents

RANGES = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


@given(RANGES)
@settings(max_examples=200, deadline=None)
def test_exponents_are_half_the_logarithm_of_the_range(ranges: list[float]) -> None:
    """Around the median; monotone; limited, also for channels that are always zero."""
    found = channel_exponents(ranges)
    values = np.maximum(ranges, 1e-12)
    wanted = 0.5 * np.log2(values / np.median(values))
    assert len(found) == len(ranges)
    for exponent, value in zip(found, wanted, strict=True):
        assert abs(exponent - np.clip(value, -LARGEST, LARGEST)) <= 0.5 + 1e-9
    ordered = [exponent for _, exponent in sorted(zip(ranges, found, strict=True))]
    assert ordered == sorted(ordered)


def test_exponents_by_hand() -> None:
    assert channel_exponents([]) == []
    assert channel_exponents([3.0] * 5) == [0] * 5
    assert channel_exponents([1.0, 4.0, 1.0, 1 / 16, 1.0]) == [0, 1, 0, -2, 0]
    assert channel_exponents([0.0, 1.0, 2.0**40]) == [-7, 0, 7]
    assert channel_exponents([0.0] * 3) == [0] * 3


def test_before_and_after(plan: Any, apply: Any, same: Any) -> None:
    @I.ir_module
    class Before:
        @R.function(private=True)
        def words(words: R.Tensor((70, 4), "float32"), ids: R.Tensor(("m",), "int32")) -> R.Tensor(
            ("m", 4), "float32"
        ):
            R.func_attr({"Composite": "tvmq.embedding", "Primitive": True, "tvmq.path": "words"})
            with R.dataflow():
                rows = R.take(words, ids, axis=0)
                R.output(rows)
            return rows

        @R.function(private=True)
        def n(
            lv: R.Tensor(("m", 4), "float32"), g: R.Tensor((4,), "float32"), b: R.Tensor((4,), "float32")
        ) -> R.Tensor(("m", 4), "float32"):
            R.func_attr(
                {
                    "Composite": "tvmq.norm",
                    "Primitive": True,
                    "tvmq.path": "n",
                    "tvmq.ranges": [1.0, 16.0, 1.0, 0.25],
                    "tvmq.residual": "",
                }
            )
            with R.dataflow():
                x = R.nn.layer_norm(lv, g, b, axes=[-1], epsilon=0.5)
                R.output(x)
            return x

        @R.function
        def main(
            ids: R.Tensor(("m",), "int32"),
            words: R.Tensor((70, 4), "float32"),
            g: R.Tensor((4,), "float32"),
            b: R.Tensor((4,), "float32"),
        ) -> R.Tensor(("m", 4), "float32"):
            cls = Before
            R.func_attr({"num_input": 1})
            with R.dataflow():
                rows = cls.words(words, ids)
                x = cls.n(rows, g, b)
                R.output(x)
            return x

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def words(words: R.Tensor((70, 4), "float32"), ids: R.Tensor(("m",), "int32")) -> R.Tensor(
            ("m", 4), "float32"
        ):
            R.func_attr({"Composite": "tvmq.embedding", "Primitive": True, "tvmq.path": "words"})
            with R.dataflow():
                rows = R.take(words, ids, axis=0)
                R.output(rows)
            return rows

        @R.function(private=True)
        def n1(
            lv: R.Tensor(("m", 4), "float32"), g: R.Tensor((4,), "float32"), b: R.Tensor((4,), "float32")
        ) -> R.Tensor(("m", 4), "float32"):
            R.func_attr(
                {
                    "Composite": "tvmq.norm",
                    "Primitive": True,
                    "tvmq.activation_bits": 8,
                    "tvmq.block": 64,
                    "tvmq.channels": [0, 2, 0, -1],
                    "tvmq.path": "n",
                    "tvmq.ranges": [1.0, 16.0, 1.0, 0.25],
                    "tvmq.residual": "",
                    "tvmq.residual_channels": [],
                }
            )
            with R.dataflow():
                x = R.nn.layer_norm(lv, g, b, axes=[-1], epsilon=0.5)
                R.output(x)
            return x

        @R.function
        def main(
            ids: R.Tensor(("m",), "int32"),
            words: R.Tensor((70, 4), "float32"),
            g: R.Tensor((4,), "float32"),
            b: R.Tensor((4,), "float32"),
        ) -> R.Tensor(("m", 4), "float32"):
            cls = Expected
            R.func_attr({"num_input": 1})
            with R.dataflow():
                rows = cls.words(words, ids)
                x = cls.n1(rows, g, b)
                R.output(x)
            return x

    same(apply(Before, ChooseExponents(plan=plan({}))), Expected)


@pytest.fixture
def chosen(exponents: Any, facts: Any) -> Any:
    """``chosen(module, plan, ranges)``: path -> what ChooseExponents gave each composite."""

    def run(module: Any, bits: Any, ranges: Any = None) -> dict[str, dict[str, Any]]:
        given = ("reads", "heads", "ranges", "residual")
        found = facts(exponents(module, bits, ranges))
        return {path: {k: v for k, v in own.items() if k not in given} for path, own in found.items()}

    return run


def test_a_whole_encoder_without_ranges(encoder: Any, everywhere: Any, chosen: Any) -> None:
    """No ranges, no channel exponents; scores of 2 heads of 32 columns are powers of two."""
    norm = {"channels": [], "residual_channels": [], "block": 64, "activation_bits": 8}
    plain = {"columns": [], "scale": 1.0}
    query = {"columns": [], "scale": pytest.approx(math.log2(math.e) / math.sqrt(32))}
    assert chosen(encoder(), everywhere(8)) == {
        "n0": norm,
        "q": query,
        **dict.fromkeys(("k", "v", "out"), plain),
        "n1": norm,
        **dict.fromkeys(("up", "down"), plain),
        "n2": norm,
    }


def test_channel_exponents_go_where_they_are_read(encoder: Any, everywhere: Any, chosen: Any) -> None:
    """To the columns of every reader and to the norm that adds the blocks; not through products."""
    ranges = {"q.weight": 4.0 ** (np.arange(64) % 3), "up.weight": 4.0 ** (np.arange(64) % 2)}
    ranges["down.weight"] = 4.0 ** (np.arange(128) % 3)
    found = chosen(encoder(), everywhere(8), ranges)
    first = [int(e) - 1 for e in np.arange(64) % 3]
    second = channel_exponents(ranges["up.weight"].tolist())
    assert list(found["n0"]["channels"]) == first
    for reader in ("q", "k", "v"):
        assert list(found[reader]["columns"]) == first
    assert list(found["n1"]["residual_channels"]) == first
    assert list(found["n1"]["channels"]) == list(found["up"]["columns"]) == second
    assert list(found["n2"]["residual_channels"]) == second
    assert list(found["out"]["columns"]) == list(found["down"]["columns"]) == []
    assert (list(found["n0"]["residual_channels"]), list(found["n2"]["channels"])) == ([], [])


@pytest.mark.parametrize(("block", "attribute"), [(64, 64), (128, 128), (None, 0)])
@pytest.mark.parametrize("bits", [8, 5])
def test_layouts_are_the_readers(
    encoder: Any, everywhere: Any, chosen: Any, block: int | None, attribute: int, bits: int
) -> None:
    """What no matrix reads keeps the usual layout."""
    plan = everywhere(4, activation_block=block, activation_bits=bits)
    found = chosen(encoder(), plan)
    for norm in ("n0", "n1"):
        assert (found[norm]["block"], found[norm]["activation_bits"]) == (attribute, bits)
    assert (found["n2"]["block"], found["n2"]["activation_bits"]) == (64, 8)


@pytest.mark.parametrize("change", [{"activation_block": None}, {"activation_bits": 6}])
def test_readers_of_one_norm_must_agree(encoder: Any, everywhere: Any, chosen: Any, change: Any) -> None:
    plan = everywhere(4)
    blocks = [replace(e, **change) if e.tensor == "k.weight" else e for e in plan.blocks]
    message = r"k\.weight, q\.weight, v\.weight read the same activations; give them one activation_block and"
    with pytest.raises(ValueError, match=message):
        chosen(encoder(), replace(plan, blocks=tuple(blocks)))


def test_matrices_that_read_products_need_not_agree(encoder: Any, everywhere: Any, chosen: Any) -> None:
    plan = everywhere(4)
    blocks = [replace(e, activation_bits=4) if e.tensor == "down.weight" else e for e in plan.blocks]
    assert chosen(encoder(), replace(plan, blocks=tuple(blocks))) == chosen(encoder(), plan)
