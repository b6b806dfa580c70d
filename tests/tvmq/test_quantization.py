# SPDX-License-Identifier: Apache-2.0
"""A model quantized by its plan: every tensor as planned, words by frequency, faults by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits
from schedules.packing import BitPlanes, WordPlanes
from tvmq.calibration import Calibration
from tvmq.errors import InputError, UsageError
from tvmq.quantization import quantize_matrix, quantize_model, quantize_words
from tvmq.triangles import pack_triangle
from tvmq.word_bits import frequency_order

COUNTS = np.array([5, 1, 9, 0, 9, 2])


class Source:
    """A checkpoint in memory."""

    def __init__(self, **tensors: np.ndarray) -> None:
        self.tensors = tensors
        self.config: dict[str, Any] = {}

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def tensor(self, name: str) -> np.ndarray:
        return self.tensors[name]


def model() -> Source:
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 32), "b": (3, 10), "c": (2, 2), "e": (6, 16)}
    return Source(**{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def plan(**changed: Any) -> BitPlan:
    a = BlockBits(tensor="a", block="x", **({"bits": 3, "group_size": 16} | changed))
    b = BlockBits(tensor="b", block="x", bits=2, quantizer="greedy", scale_dtype="float32")
    c = BlockBits(tensor="c", block="x", bits=32)
    return BitPlan(schema=1, blocks=(a, b, c), words=(words(),), source="test")


def words(*clusters: tuple[int, int]) -> WordBits:
    return WordBits(tensor="e", block="Emb", clusters=clusters or ((2, 4), (3, 2), (1, 1)))


def test_every_tensor_as_planned() -> None:
    seen = []
    source = model()
    made = quantize_model(source, plan(), COUNTS, progress=lambda *step: seen.append(step))
    assert list(made) == ["a", "b", "e"]
    a, b, e = made.values()
    assert isinstance(a, BitPlanes)
    assert isinstance(b, BitPlanes)
    assert isinstance(e, WordPlanes)
    assert (a.bits, a.group_size, a.scales.dtype) == (3, 16, np.float16)
    assert (b.bits, b.group_size, b.scales.dtype) == (2, 10, np.float32)
    assert np.array_equal(a.planes, quantize_matrix(source.tensor("a"), plan().blocks[0]).planes)
    assert seen == [("quantize", done, 254) for done in (0, 128, 158, 254)]


def test_words_lie_by_frequency_and_return_to_their_ids() -> None:
    weight = np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32)
    planes = quantize_words(weight, words(), frequency_order(COUNTS))
    assert planes.order.tolist() == [2, 4, 0, 5, 1, 3]
    assert [(s.shape[0], s.bits) for s in planes.segments] == [(2, 4), (3, 2), (1, 1)]
    errors = ((weight - planes.dequantize()) ** 2).mean(1)
    assert max(errors[[2, 4]]) < min(errors[[0, 5, 1]])
    assert max(errors[[0, 5, 1]]) < errors[3]


@pytest.mark.parametrize(
    ("order", "clusters", "message"),
    [
        (None, (), "need token frequencies"),
        ([0, 1, 2], (), "does not name each of the 6 words once"),
        ([0, 0, 1, 2, 3, 4], (), "does not name each of the 6 words once"),
        ([0, 1, 2, 3, 4, 5], ((7, 1),), "the word clusters hold 7 rows, the embedding has 6"),
    ],
)
def test_words_that_do_not_fit(order: Any, clusters: Any, message: str) -> None:
    given = None if order is None else np.array(order, np.int32)
    with pytest.raises(ValueError, match=message):
        quantize_words(np.ones((6, 8), np.float32), words(*clusters), given)


@pytest.mark.parametrize(
    ("changed", "counts", "message"),
    [
        ({}, None, "no token frequencies: put token_freq.tsv in the model folder"),
        ({}, COUNTS[:5], "e: the word order does not name each of the 6 words once"),
        ({"group_size": 7}, COUNTS, "a: group size 7 does not divide 32 columns"),
        ({"quantizer": "best"}, COUNTS, "a: unknown quantizer 'best': known are alternating, greedy"),
    ],
)
def test_faults_name_the_tensor(changed: dict[str, Any], counts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize_model(model(), plan(**changed), counts)


def test_nan_names_the_tensor() -> None:
    source = model()
    source.tensors["b"][1, 1] = np.nan
    with pytest.raises(InputError, match="b: the weight holds NaN or infinite values"):
        quantize_model(source, plan(), COUNTS)


def calibration(**moments: np.ndarray) -> Calibration:
    return Calibration(
        model_sha256="0",
        sentences=1,
        tokens=1,
        frequencies=COUNTS,
        _inputs={name: place for place, name in enumerate(moments)},
        _tables=(),
        _packed=[pack_triangle(value.astype(np.float32)) for value in moments.values()],
        _outputs={},
        _lookups={},
        _rows={},
    )


def test_hessian_codes_take_the_moments_of_their_tensor() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((100, 32)) @ rng.standard_normal((32, 32))
    moments = (inputs.T @ inputs).astype(np.float32)
    held = calibration(a=moments, e=np.eye(16))
    by = BitPlan(schema=1, blocks=plan(quantizer="hessian").blocks, words=(words(),), source="test")
    made = quantize_model(model(), by, COUNTS, calibration=held)["a"]
    expected = quantize_matrix(model().tensor("a"), by.blocks[0], moments)
    assert isinstance(made, BitPlanes)
    np.testing.assert_array_equal(made.planes, expected.planes)
    other = quantize_matrix(model().tensor("a"), by.blocks[0], np.eye(32))
    assert made.planes.tobytes() != other.planes.tobytes()


def test_hessian_codes_without_a_calibration() -> None:
    with pytest.raises(UsageError, match="a: hessian codes need calibration data: give --calibration FILE"):
        quantize_model(model(), plan(quantizer="hessian"), COUNTS)
    with pytest.raises(InputError, match=r"does not hold .*a.*from this model again"):
        quantize_model(model(), plan(quantizer="hessian"), COUNTS, calibration=calibration(b=np.eye(10)))
