# SPDX-License-Identifier: Apache-2.0
"""Plans from presets, widths and averages, and what overrides do to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from relay_passes.bit_plan import BitPlan, BlockBits, decode_plan, encode_plan
from tvmq.errors import UsageError
from tvmq.families.family import TensorInfo
from tvmq.planning import make_plan
from tvmq.presets import preset_names

WORDS = 16000
COUNTS = 10_000_000 // (np.arange(WORDS)[::-1] + 1)


def info(name: str, block: str, n: int, k: int) -> TensorInfo:
    return TensorInfo(name=name, block=block, shape=(n, k), is_embedding=block == "Emb")


def small() -> list[TensorInfo]:
    return [
        info("shared.weight", "Emb", WORDS, 512),
        info("encoder.0.q.weight", "Enc_ee", 512, 512),
        info("encoder.0.fc1.weight", "Enc_ffn", 2048, 512),
        info("decoder.0.q.weight", "Dec_dd", 512, 512),
        info("decoder.0.k.weight", "Dec_ed", 512, 512),
        info("decoder.0.fc1.weight", "Dec_ffn", 2048, 512),
        info("decoder.0.fc2.weight", "Dec_ffn", 512, 2048),
    ]


def bits_of(plan: BitPlan) -> dict[str, Any]:
    words = {entry.tensor: entry.clusters for entry in plan.words}
    return {entry.tensor: entry.bits for entry in plan.blocks} | words


def the(plan: BitPlan, name: str) -> BlockBits:
    return next(entry for entry in plan.blocks if entry.tensor == name)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_fits_and_survives_its_json(preset: str) -> None:
    plan = make_plan(small(), preset=preset, frequencies=COUNTS)
    plan.validate({t.name: t.shape for t in small()})
    assert plan.source == f"preset {preset}"
    assert decode_plan(encode_plan(plan)) == plan


def test_the_papers_preset() -> None:
    plan = make_plan(small(), preset="chung2020-2.5-1.8-3.7", frequencies=COUNTS)
    assert bits_of(plan) == {
        "shared.weight": ((4000, 4), (4000, 3), (4000, 2), (4000, 1)),
        "encoder.0.q.weight": 3,
        "encoder.0.fc1.weight": 4,
        "decoder.0.q.weight": 2,
        "decoder.0.k.weight": 3,
        "decoder.0.fc1.weight": 1,
        "decoder.0.fc2.weight": 1,
    }
    for entry in plan.entries():
        assert (entry.quantizer, entry.group_size, entry.offset, entry.scale_dtype) == (
            "greedy", None, False, "float32"
        )  # fmt: skip


def test_the_user_overrides_how_a_preset_quantizes() -> None:
    plan = make_plan(
        small(),
        preset="chung2020-2.5-1.8-3.7",
        quantizer="alternating",
        group_size=64,
        offset=True,
        scale_dtype="float16",
        frequencies=COUNTS,
    )
    for entry in plan.entries():
        assert (entry.quantizer, entry.group_size, entry.offset, entry.scale_dtype) == (
            "alternating", 64, True, "float16"
        )  # fmt: skip


def test_the_default_is_three_bits_with_a_scale_per_row() -> None:
    plan = make_plan(small())
    assert set(bits_of(plan).values()) == {3}
    assert {(e.quantizer, e.group_size, e.scale_dtype) for e in plan.blocks} == {
        ("alternating", None, "float16")
    }


def test_a_uniform_preset_is_grouped() -> None:
    assert {e.group_size for e in make_plan(small(), preset="3-bit").blocks} == {128}


@pytest.mark.parametrize(
    ("columns", "group"), [(512, 128), (96, 96), (160, 32), (320, 64), (100, None), (7, None)]
)
def test_picked_groups_suit_the_kernels(columns: int, group: int | None) -> None:
    assert make_plan([info("w", "FFN", 4, columns)], uniform=2).blocks[0].group_size == group


def test_group_size_zero_is_a_scale_per_row() -> None:
    assert {e.group_size for e in make_plan(small(), preset="2-bit", group_size=0).blocks} == {None}


def test_small_vocabularies_have_no_empty_clusters() -> None:
    plan = make_plan([info("e", "Emb", 100, 8)], preset="chung2020-1.1-fp-fp", frequencies=np.arange(100))
    assert plan.words[0].clusters == ((1, 3), (10, 2), (89, 1))


def test_overrides_by_name_block_and_glob_last_wins() -> None:
    plan = make_plan(
        small(),
        uniform=4,
        overrides=[("decoder.*", 32), ("Dec_ffn", 2), ("decoder.*.fc2.weight", 3), ("E*", 1)],
    )
    assert bits_of(plan) == {
        "shared.weight": 1,
        "encoder.0.q.weight": 1,
        "encoder.0.fc1.weight": 1,
        "decoder.0.q.weight": 32,
        "decoder.0.k.weight": 32,
        "decoder.0.fc1.weight": 2,
        "decoder.0.fc2.weight": 3,
    }
    assert plan.source == "uniform 4; decoder.*=32; Dec_ffn=2; decoder.*.fc2.weight=3; E*=1"
    assert the(plan, "decoder.0.q.weight").group_size is None


def test_an_override_spares_a_preset_its_frequencies() -> None:
    plan = make_plan(small(), preset="chung2020-2.5-1.8-3.7", overrides=[("Emb", 3)])
    assert the(plan, "shared.weight").bits == 3


def test_overrides_count_towards_the_average() -> None:
    plan = make_plan(small(), bits=4.0, overrides=[("decoder.0.k.weight", 32)], frequencies=COUNTS)
    assert the(plan, "decoder.0.k.weight").bits == 32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preset": "3-bit", "bits": 2.0}, "exclude each other; give one of them"),
        ({"preset": "4bit"}, "unknown preset '4bit'"),
        ({"quantizer": "gready"}, "unknown quantizer 'gready'"),
        ({"uniform": 0}, "a uniform width of 0 bits is impossible"),
        ({"uniform": 16}, r"16 bits is impossible \(expected 1 to 8, or 32 for FP32\)"),
        ({"uniform": 2, "overrides": [("Emb", 9)]}, "Emb: 9 bits is impossible"),
        ({"uniform": 2, "overrides": [("Dec_fnn", 2)]}, "block matches 'Dec_fnn'; close are Dec_ffn"),
        ({"uniform": 2, "overrides": [("zzz*", 2)]}, r"block matches 'zzz\*'; close are Dec_dd, Dec_ed"),
        ({"uniform": 2, "group_size": 100}, r"group size 100 .* 512 columns \(for example 0, 32, 64, 128"),
        ({"uniform": 2, "group_size": -1}, "group size -1"),
        ({"preset": "chung2020-1.3-fp-fp"}, "needs token frequencies: put token_freq.tsv in"),
        ({"bits": 2.0, "frequencies": np.arange(5)}, "for 5 words, but shared.weight has 16000 rows"),
        ({"bits": 1.0}, r"1 bits per weight cannot be reached: .* 1.03 to 4.11, counting scales"),
        ({"bits": 9.0}, "9 bits per weight cannot be reached"),
        ({"bits": float("nan")}, "nan bits per weight cannot be reached"),
        ({"bits": 2.0, "overrides": [("Emb", 32)]}, "2 bits per weight cannot be reached"),
    ],
)  # fmt: skip
def test_impossible_requests(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_plan(small(), **changed)
    assert "\n" not in str(caught.value)


def test_a_paper_preset_for_another_kind_of_model() -> None:
    with pytest.raises(UsageError, match=r"has no bits for block Attn .*; use fp32, 1-bit to 4-bit or 8-bit"):
        make_plan([info("w", "Attn", 8, 8)], preset="chung2020-2.5-1.8-3.7")


def test_a_model_without_matrices() -> None:
    with pytest.raises(UsageError, match="no quantizable matrices"):
        make_plan([])
