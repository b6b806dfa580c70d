# SPDX-License-Identifier: Apache-2.0
"""Plans survive their JSON form, and nothing but a possible plan is decoded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits, decode_plan, encode_plan, plan_hash

NAMES = st.text(min_size=1, max_size=20)
COMMON: dict[str, Any] = {
    "block": NAMES,
    "group_size": st.none() | st.integers(1, 4096),
    "quantizer": st.sampled_from(["alternating", "greedy", "rtn"]),
    "offset": st.booleans(),
    "scale_dtype": st.sampled_from(["float16", "float32", "pow2"]),
    "outliers": st.sampled_from([0.0, 0.05, 0.45, 5.0]),
}
ACTIVATIONS: dict[str, Any] = {
    "activation_bits": st.integers(2, 8),
    "activation_block": st.none() | st.integers(1, 1 << 24),
}


@st.composite
def plans(draw: st.DrawFn) -> BitPlan:
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    split = draw(st.integers(0, len(names)))
    mode = draw(st.sampled_from(["float", "block-int"]))
    blocks = [
        BlockBits(
            tensor=name,
            bits=draw(st.sampled_from([1, 2, 3, 4, 8, 32])),
            **_drawn(draw, ACTIVATIONS),
            **_common(draw, mode),
        )
        for name in names[:split]
    ]
    cluster = st.tuples(st.integers(1, 1 << 20), st.integers(1, 8))
    words = [
        WordBits(
            tensor=name,
            clusters=tuple(draw(st.lists(cluster, min_size=1, max_size=4))),
            **_common(draw, mode),
        )
        for name in names[split:]
    ]
    source = draw(st.text(max_size=20))
    return BitPlan(schema=1, mode=mode, blocks=tuple(blocks), words=tuple(words), source=source)


def _common(draw: st.DrawFn, mode: str) -> dict[str, Any]:
    found = _drawn(draw, COMMON)
    return found if mode == "float" else found | {"outliers": 0.0}


def _drawn(draw: st.DrawFn, strategies: dict[str, Any]) -> dict[str, Any]:
    return {name: draw(strategy) for name, strategy in strategies.items()}


def example() -> BitPlan:
    return BitPlan(
        schema=1,
        blocks=(
            BlockBits(tensor="a", block="Enc_ee", bits=3, group_size=32),
            BlockBits(tensor="b", block="Enc_ffn", bits=32),
        ),
        words=(WordBits(tensor="e", block="Emb", clusters=((10, 4), (90, 1)), offset=True),),
        source="test",
    )


def edited(**changes: Any) -> bytes:
    """The example's JSON with ``path__to__key=value`` changed; the value ``...`` removes the key."""
    tree = json.loads(encode_plan(example()))
    for path, value in changes.items():
        *parents, key = [int(part) if part.isdigit() else part for part in path.split("__")]
        node = tree
        for parent in parents:
            node = node[parent]
        if value is ...:
            del node[key]
        else:
            node[key] = value
    return json.dumps(tree).encode()


@given(plans())
@settings(max_examples=100, deadline=None)
def test_round_trip(plan: BitPlan) -> None:
    data = encode_plan(plan)
    assert decode_plan(data) == plan
    assert encode_plan(decode_plan(data)) == data


def test_a_plan_without_outliers_is_written_as_before_there_were_any() -> None:
    data = encode_plan(example())
    assert b"outliers" not in data
    assert decode_plan(data).blocks[0].outliers == 0
    sparse = edited(blocks__0__outliers=0.1)
    assert decode_plan(sparse).blocks[0].outliers == 0.1
    assert b'"outliers":0.1' in encode_plan(decode_plan(sparse))


def test_a_float_plan_is_written_as_before_there_were_modes() -> None:
    data = encode_plan(example())
    for field in (b"mode", b"activation_bits", b"activation_block"):
        assert field not in data
    plain = decode_plan(data)
    assert (plain.mode, plain.blocks[0].activation_bits, plain.blocks[0].activation_block) == ("float", 8, 64)


def test_fields_of_the_block_integer_mode() -> None:
    """Written where they differ from what is usual; null is the whole row."""
    base = example()
    first = replace(base.blocks[0], activation_bits=6, activation_block=None)
    plan = replace(base, mode="block-int", blocks=(first, base.blocks[1]))
    lines = encode_plan(plan).decode().splitlines()
    assert '"mode": "block-int",' in [line.strip() for line in lines]
    assert [line.endswith('"activation_bits":6,"activation_block":null},') for line in lines].count(True) == 1
    assert sum("activation" in line for line in lines) == 1
    assert decode_plan("\n".join(lines).encode()) == plan
    assert plan_hash(plan) != plan_hash(replace(plan, mode="float")) != plan_hash(base)
    assert decode_plan(edited(blocks__0__activation_block=128)).blocks[0].activation_block == 128


def test_the_block_integer_mode_has_no_outliers() -> None:
    with pytest.raises(ValueError, match="mode block-int has no outliers beside the planes"):
        decode_plan(edited(mode="block-int", blocks__0__outliers=0.1))


@pytest.mark.parametrize("percent", [-0.1, 5.1, float("nan"), float("inf")])
def test_impossible_outliers(percent: float) -> None:
    with pytest.raises(ValueError, match=r"a: .* percent of outliers \(expected 0 to 5\)"):
        BlockBits(tensor="a", block="b", bits=2, outliers=percent)


def test_clusters_and_back() -> None:
    entry = BlockBits(
        tensor="e", block="Emb", bits=3, group_size=8, offset=True, scale_dtype="pow2", outliers=1.0
    )
    words = entry.by_word(((3, 4), (5, 1)))
    assert words.clusters == ((3, 4), (5, 1))
    assert words.cluster(3) == entry


@given(plans(), st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_bytes_give_a_plan_or_a_value_error(plan: BitPlan, data: st.DataObject) -> None:
    raw = bytearray(encode_plan(plan))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        decoded = decode_plan(bytes(raw))
    except ValueError:
        return
    assert decode_plan(encode_plan(decoded)) == decoded


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = [
    *("schema", "source", "mode", "blocks", "words", "blocks__0", "words__0", "words__0__clusters__1"),
    *(f"blocks__0__{key}" for key in ("tensor", "bits", "group_size", "offset", "scale_dtype")),
    *(f"blocks__0__activation_{key}" for key in ("bits", "block")),
    *(f"words__0__{key}" for key in ("tensor", "clusters", "clusters__0", "clusters__0__1")),
]


@given(st.sampled_from(PATHS), JSON)
@settings(max_examples=200, deadline=None)
def test_replaced_values_give_a_plan_or_a_value_error(path: str, value: Any) -> None:
    try:
        decode_plan(edited(**{path: value}))
    except ValueError:
        return


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a bit plan"),
        (b"[]", r"not a bit plan: Expected `object`"),
        (b'{"schema": 1}', "missing required field"),
        (b"[" * 100_000, "not a bit plan"),
        (b" " * ((16 << 20) + 1), "the plan is 16777217 bytes long"),
        (b'{"schema": 1, "source": "\xff", "blocks": [], "words": []}', "not a bit plan"),
        (edited(schema=2), "the plan has schema 2, this version reads schema 1; make the plan again"),
        (edited(extra=1), "unknown field `extra`"),
        (edited(blocks__0__colour="red"), r"unknown field `colour` - at `\$.blocks\[0\]`"),
        (edited(blocks__0__offset=...), r"missing required field `offset` - at `\$.blocks\[0\]`"),
        (edited(blocks__0__bits=0), r"a: 0 bits are impossible \(expected 1 to 8, or 32 for FP32\)"),
        (edited(blocks__0__bits=9), "a: 9 bits are impossible"),
        (edited(blocks__0__bits=2.5), "Expected `int`, got `float`"),
        (edited(blocks__0__bits=float("nan")), "not a bit plan"),
        (edited(blocks__0__bits=True), "Expected `int`, got `bool`"),
        (edited(blocks__0__group_size=0), "a: group size 0 is impossible"),
        (edited(blocks__0__group_size=1 << 40), "a: group size 1099511627776 is impossible"),
        (edited(mode="int8"), "Invalid enum value 'int8'"),
        (edited(mode=None), "not a bit plan"),
        (edited(words__0__activation_bits=4), r"unknown field `activation_bits` - at `\$.words\[0\]`"),
        (
            edited(blocks__0__activation_bits=1),
            r"a: activations of 1 bits .* \(expected 2 to 8\)",
        ),
        (edited(blocks__0__activation_bits=9), "a: activations of 9 bits are impossible"),
        (edited(blocks__0__activation_bits=None), "not a bit plan: Expected `int`, got `null`"),
        (
            edited(blocks__0__activation_block=0),
            r"a: blocks of 0 columns .* \(expected 1 or more",
        ),
        (edited(blocks__0__activation_block=1 << 25), "a: blocks of 33554432 columns are impossible"),
        (edited(blocks__0__activation_block="all"), r"not a bit plan: Expected `int \| null`, got `str`"),
        (edited(blocks__0__scale_dtype="int8"), "Invalid enum value 'int8'"),
        (edited(blocks__0__tensor=""), "a tensor name has 0 characters"),
        (edited(blocks__1__tensor="a"), "the plan names a tensor more than once: a"),
        (edited(words__0__tensor="a"), "the plan names a tensor more than once: a"),
        (edited(words__0__clusters=[]), "e: 0 word clusters"),
        (edited(words__0__clusters=[[1, 1]] * 65), "e: 65 word clusters"),
        (edited(words__0__clusters=[[0, 1]]), "e: a word cluster of 0 rows"),
        (edited(words__0__clusters=[[10, 32]]), "e: 32 bits for words are impossible"),
        (edited(words__0__clusters=[[10, 1, 1]]), "length 2"),
    ],
)
def test_impossible_plans_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_plan(data)


def test_encoding_is_one_line_per_tensor() -> None:
    lines = encode_plan(example()).decode().splitlines()
    assert lines[0] == "{"
    assert lines[3].strip() == '"words": ['.strip()
    assert lines[4].strip() == (
        '{"tensor":"e","block":"Emb","clusters":[[10,4],[90,1]],"group_size":null,'
        '"quantizer":"alternating","offset":true,"scale_dtype":"float16"}],'
    )
    assert len(lines) == 9


def test_hash_follows_the_content() -> None:
    assert plan_hash(example()) == plan_hash(example())
    assert len(plan_hash(example())) == 64
    changed = replace(example(), blocks=(replace(example().blocks[0], bits=2), example().blocks[1]))
    assert plan_hash(changed) != plan_hash(example())


def test_validate_accepts_what_fits() -> None:
    example().validate({"a": (7, 64), "b": (5, 3), "e": (100, 8)})


def test_validate_reports_every_fault_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="does not fit") as caught:
        example().validate({"a": (7, 60), "c": (5, 3), "e": (99, 8)})
    text = str(caught.value)
    assert "\n" not in text
    assert "names tensors that the model does not have: b" in text
    assert "does not name c (use 32 bits to keep a tensor FP32)" in text
    assert "gives a group size 32, which does not divide 60 columns" in text
    assert "gives bits to 100 words of e, which has 99" in text


def test_validate_shortens_long_lists() -> None:
    with pytest.raises(ValueError, match="t0, t1, t10, t11, t12 and 15 more"):
        BitPlan(schema=1, blocks=(), words=(), source="").validate({f"t{i}": (1, 1) for i in range(20)})
