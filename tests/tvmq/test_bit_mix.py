# SPDX-License-Identifier: Apache-2.0
"""``--bits``: the average is met, grows with the request and goes where it matters."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from relay_passes.bit_plan import BlockBits
from tvmq.families.family import TensorInfo
from tvmq.planning import make_plan
from tvmq.size import SizeReport, predict_size

COUNTS = 10_000_000 // (np.arange(16000) + 1)


def default_model() -> list[TensorInfo]:
    """The shapes of the shipped translation model."""

    def info(name: str, block: str, n: int, k: int) -> TensorInfo:
        return TensorInfo(name=name, block=block, shape=(n, k), is_embedding=block == "Emb")

    tensors = [info("shared", "Emb", 16000, 512)]
    for side, blocks, ffn in (("e", ("Enc_ee",), "Enc_ffn"), ("d", ("Dec_dd", "Dec_ed"), "Dec_ffn")):
        for layer in range(6):
            for block in blocks:
                tensors += [info(f"{side}.{layer}.{block}.{m}", block, 512, 512) for m in "qkvo"]
            tensors += [info(f"{side}.{layer}.1", ffn, 2048, 512), info(f"{side}.{layer}.2", ffn, 512, 2048)]
    return tensors


def sized(bits: float, counts: NDArray[np.integer] | None, **changed: object) -> SizeReport:
    tensors = default_model()
    return predict_size(tensors, make_plan(tensors, bits=bits, frequencies=counts, **changed), 0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("counts", [COUNTS, None], ids=["words", "uniform"])
def test_average_is_met_and_grows(counts: NDArray[np.integer] | None) -> None:
    before = 0
    for bits in np.arange(1.6, 4.11, 0.02).tolist():
        report = sized(bits, counts)
        assert bits - 0.05 <= report.bits_per_weight <= bits + 1e-6
        assert report.bytes >= before
        before = report.bytes


def test_offsets_and_float32_scales_count() -> None:
    report = sized(3.0, COUNTS, offset=True, scale_dtype="float32", group_size=64)
    assert 2.95 <= report.bits_per_weight <= 3.0


def test_sensitive_blocks_get_more() -> None:
    report = sized(2.6, COUNTS)
    bits = {block.name: block.bits_per_weight for block in report.blocks}
    assert bits["Dec_ed"] >= bits["Enc_ee"] > bits["Enc_ffn"]
    assert min(bits["Dec_ed"], bits["Emb"]) > bits["Dec_ffn"]


def test_frequent_words_get_more_in_whole_kernel_blocks() -> None:
    for bits in (1.8, 2.2, 2.6, 3.0):
        (words,) = make_plan(default_model(), bits=bits, frequencies=COUNTS).words
        widths = [width for _, width in words.clusters]
        assert widths == sorted(set(widths), reverse=True)
        assert all(rows % 64 == 0 for rows, _ in words.clusters[:-1])


def test_an_embedding_of_one_width_has_no_word_order() -> None:
    plan = make_plan(default_model(), bits=4.13, frequencies=COUNTS)
    assert plan.words == ()
    assert plan.blocks[0].bits == 4


def test_fixed_tensors_stay_and_count() -> None:
    tensors = default_model()
    plan = make_plan(tensors, bits=3.0, overrides=[("Dec_ffn", 1), ("shared", 4)], frequencies=COUNTS)
    assert {entry.bits for entry in plan.blocks if entry.block == "Dec_ffn"} == {1}
    assert plan.blocks[0] == BlockBits(tensor="shared", block="Emb", bits=4)
    assert 2.95 <= predict_size(tensors, plan, 0).bits_per_weight <= 3.0


def test_blocks_without_a_prior_share_alike() -> None:
    tensors = [
        TensorInfo(name=f"{block}.{i}", block=block, shape=(256, 256), is_embedding=False)
        for block in ("Attn", "FFN")
        for i in range(10)
    ]
    report = predict_size(tensors, make_plan(tensors, bits=2.125), 0)
    assert {block.bits_per_weight for block in report.blocks} == {2.125}
