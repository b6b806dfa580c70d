# SPDX-License-Identifier: Apache-2.0
"""Plans of mode block-int: what stays of a plan, what changes, and which cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relay_passes.bit_plan import BitPlan, BlockBits, decode_plan, encode_plan
from tvmq.errors import UsageError
from tvmq.families.family import TensorInfo
from tvmq.integer_plan import check_integer_plan, integer_plan
from tvmq.model_plan import plan_tensors
from tvmq.options import PlanOptions

TENSORS = [
    TensorInfo(name="words", block="Emb", shape=(320, 128), is_embedding=True),
    TensorInfo(name="places", block="Emb", shape=(24, 128), is_embedding=False),
    TensorInfo(name="q", block="Attn", shape=(128, 128), is_embedding=False),
    TensorInfo(name="down", block="FFN", shape=(128, 256), is_embedding=False),
    TensorInfo(name="narrow", block="FFN", shape=(128, 64), is_embedding=False),
    TensorInfo(name="head", block="Head", shape=(2, 128), is_embedding=False),
]
COUNTS = np.arange(320)


def made(**options: Any) -> BitPlan:
    return plan_tensors(TENSORS, PlanOptions(mode="block-int", **options), COUNTS)


def entry(plan: BitPlan, name: str) -> BlockBits:
    return next(entry for entry in plan.blocks if entry.tensor == name)


def test_the_default_is_eight_bits() -> None:
    plan = made()
    assert (plan.mode, plan.source) == ("block-int", "preset 8-bit; block-int")
    for found in plan.blocks[:-1]:
        assert (found.bits, found.group_size, found.scale_dtype, found.offset) == (8, None, "pow2", False)
        assert (found.activation_bits, found.activation_block) == (8, 64)
    assert decode_plan(encode_plan(plan)) == plan
    check_integer_plan(plan)


@pytest.mark.parametrize("options", [{"bits": 3.0}, {"preset": "2-bit"}, {"preset": "8-bit"}])
def test_bits_are_those_of_the_float_plan(options: dict[str, Any]) -> None:
    plan, plain = made(**options), plan_tensors(TENSORS, PlanOptions(**options), COUNTS)
    assert [e.bits for e in plan.blocks] == [e.bits for e in plain.blocks]
    assert [e.clusters for e in plan.words] == [e.clusters for e in plain.words]
    assert bool(plan.words) == ("bits" in options)
    check_integer_plan(plan)


def test_the_head_keeps_its_float_form() -> None:
    options = {"preset": "3-bit", "offset": True, "scale_dtype": "float32", "overrides": (("head", 32),)}
    assert entry(made(**options), "head").bits == 32
    plain = entry(plan_tensors(TENSORS, PlanOptions(preset="3-bit"), COUNTS), "head")
    assert entry(made(preset="3-bit"), "head") == plain
    assert plain.scale_dtype == "float16"


def test_offsets_and_scales_become_powers_of_two() -> None:
    plan = made(bits=3.0, offset=True, scale_dtype="float32")
    for found in (*plan.blocks[:-1], *plan.words):
        assert (found.offset, found.scale_dtype) == (False, "pow2")


@pytest.mark.parametrize(
    ("options", "name", "quantizer"),
    [
        ({"preset": "3-bit"}, "q", "alternating"),
        ({"preset": "3-bit", "quantizer": "hessian"}, "q", "hessian"),
        ({"preset": "3-bit", "quantizer": "greedy"}, "q", "greedy"),
        ({"preset": "3-bit", "quantizer": "rtn"}, "q", "alternating"),
        ({"preset": "8-bit", "quantizer": "rtn"}, "q", "rtn"),
    ],
)
def test_quantizers(options: dict[str, Any], name: str, quantizer: str) -> None:
    """Uniform codes of few bits have no form over powers of two."""
    assert entry(made(**options), name).quantizer == quantizer
    assert {e.quantizer for e in made(bits=3.0, quantizer="rtn").words} == {"alternating"}


def test_groups_of_weights_and_activations() -> None:
    """--group-size sets both; whole rows, levels and tables have no groups."""
    plan = made(preset="3-bit", group_size=64, overrides=(("q", 8),))
    found = {e.tensor: (e.group_size, e.activation_block) for e in plan.blocks}
    assert found == {
        "words": (None, 64),
        "places": (None, 64),
        "q": (None, 64),
        "down": (64, 64),
        "narrow": (None, 64),
        "head": (64, 64),
    }
    wide = made(preset="3-bit", group_size=64, activation_block=0)
    assert {e.activation_block for e in wide.blocks[:-1]} == {None}
    assert entry(wide, "down").group_size == 64
    assert {e.group_size for e in made(preset="3-bit", group_size=0).blocks[:-1]} == {None}


@pytest.mark.parametrize(("given", "found"), [(None, 64), (0, None), (64, 64), (128, 128), (640, 640)])
def test_blocks_of_activations(given: int | None, found: int | None) -> None:
    """Where they do not divide a row, the row is one block (``BlockLayout.of``)."""
    assert {e.activation_block for e in made(activation_block=given).blocks[:-1]} == {found}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activation_block": 48},
            "--activation-block 48: blocks of integers are multiples of 64 columns",
        ),
        ({"preset": "3-bit", "group_size": 32}, "--group-size 32: blocks of integers are multiples of 64"),
        ({"overrides": (("q", 32),)}, "q stays FP32, which integers cannot be; give it 1 to 8 bits"),
        ({"overrides": (("words", 32),)}, "words stays FP32, which integers cannot be"),
        ({"preset": "fp32"}, "words stays FP32"),
        ({"outliers": 0.5}, "mode block-int has no outliers beside the planes; leave out --outliers"),
        (
            {"preset": "3-bit", "group_size": 64, "activation_block": 128},
            "down: 4 groups of weights and 2 blocks of activations, expected equal numbers or one",
        ),
    ],
)
def test_impossible_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        made(**options)
    assert "\n" not in str(caught.value)


def test_activation_blocks_belong_to_the_mode() -> None:
    with pytest.raises(UsageError, match="--activation-block belongs to --mode block-int"):
        plan_tensors(TENSORS, PlanOptions(activation_block=64), COUNTS)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", {"bits": 32}, "q stays FP32"),
        ("q", {"scale_dtype": "float16"}, "q has scales in float16, mode block-int stores pow2"),
        ("q", {"offset": True}, "q has an offset, mode block-int stores none"),
        ("q", {"bits": 3, "quantizer": "rtn"}, "q has rtn codes, which have no form over powers of two"),
        ("q", {"activation_block": 48}, r"q reads blocks of 48 columns, expected multiples of 64 \(null"),
        ("places", {"group_size": 64}, "places has groups, tables in mode block-int have none"),
    ],
)
def test_edited_plans_are_checked(name: str, change: dict[str, Any], message: str) -> None:
    plan = made()
    blocks = tuple(replace(e, **change) if e.tensor == name else e for e in plan.blocks)
    with pytest.raises(ValueError, match=message):
        check_integer_plan(replace(plan, blocks=blocks))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_dtype": "float32"}, "words has scales in float32"),
        ({"offset": True}, "words has an offset"),
        ({"group_size": 64}, "words has groups, tables in mode block-int have none"),
        ({"quantizer": "rtn"}, "words has rtn codes"),
    ],
)
def test_edited_words_are_checked(change: dict[str, Any], message: str) -> None:
    plan = made(bits=3.0)
    check_integer_plan(plan)
    with pytest.raises(ValueError, match=message):
        check_integer_plan(replace(plan, words=tuple(replace(e, **change) for e in plan.words)))


def test_heads_may_be_anything() -> None:
    plan = made()
    odd = replace(entry(plan, "head"), bits=32, activation_block=48)
    check_integer_plan(replace(plan, blocks=(*plan.blocks[:-1], odd)))


def test_a_plan_of_the_mode_is_its_own() -> None:
    """Twice is once, but for the note of where it came from."""
    plan = made(preset="3-bit")
    again = integer_plan(plan, TENSORS, group_size=None, activation_block=None)
    assert again.blocks == plan.blocks


def test_a_plan_of_float_mode_keeps_its_bits_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made_before = plan_tensors(TENSORS, PlanOptions(preset="3-bit", group_size=64), COUNTS)
    path.write_bytes(encode_plan(made_before))
    plan = plan_tensors(TENSORS, PlanOptions(plan=path, mode="block-int"), COUNTS)
    down = entry(plan, "down")
    assert (plan.mode, down.bits, down.group_size, down.activation_block) == ("block-int", 3, 64, 64)
    wide = plan_tensors(TENSORS, PlanOptions(plan=path, mode="block-int", activation_block=0), COUNTS)
    assert (entry(wide, "down").group_size, entry(wide, "down").activation_block) == (64, None)
    path.write_bytes(encode_plan(plan))
    with pytest.raises(UsageError, match="mode block-int already"):
        plan_tensors(TENSORS, PlanOptions(plan=path, mode="block-int"), COUNTS)
