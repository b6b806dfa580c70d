# SPDX-License-Identifier: Apache-2.0
"""Best tokens and their log-probabilities: ties, banned ids, storage order, odd vocabularies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.search_step import SearchSpec, argmax, reference, topk

SPECS = [
    SearchSpec(vocabulary=1),
    SearchSpec(vocabulary=5, banned=2),
    SearchSpec(vocabulary=512, order_dtype="uint16", banned=1),
    SearchSpec(vocabulary=777, order_dtype="int32", banned=3),
]
NAMES = [str(s.vocabulary) for s in SPECS]
M = 5


def inputs(spec: SearchSpec) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[Any] | None]:
    """Rows: plain, all equal, few levels (ties over block borders), far apart, banned columns the best."""
    rng = np.random.default_rng(spec.vocabulary)
    logits = rng.standard_normal((M, spec.vocabulary)).astype(np.float32)
    banned = rng.permutation(spec.vocabulary)[: spec.banned].astype(np.int32)
    logits[1] = 0.25
    logits[2] = np.rint(logits[2])
    logits[3] *= 1e4
    logits[4, banned] = 9
    order = rng.permutation(spec.vocabulary).astype(spec.order_dtype) if spec.order_dtype else None
    return logits, banned, order


def arguments(logits: NDArray, banned: NDArray, order: NDArray | None) -> list[NDArray]:
    return [logits, *([banned] if banned.size else []), *([] if order is None else [order])]


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_topk(build: Any, level: Any, spec: SearchSpec) -> None:
    logits, banned, order = inputs(spec)
    kernel = build(topk(spec), level)
    most = spec.vocabulary - spec.banned
    for k in sorted({1, min(2, most), min(8, most), most}):
        logp, ids, *_ = kernel(arguments(logits, banned, order), ((M, k), "float32"), ((M, k), "int32"))
        expected_logp, expected_ids = reference(logits, k, order, banned)
        assert np.array_equal(ids, expected_ids)
        np.testing.assert_allclose(logp, expected_logp, rtol=1e-5, atol=1e-5)
        forbidden = banned if order is None else order[banned]
        assert not np.isin(ids, forbidden).any()


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_argmax(build: Any, level: Any, spec: SearchSpec) -> None:
    logits, banned, order = inputs(spec)
    ids, *_ = build(argmax(spec), level)(arguments(logits, banned, order), ((M,), "int32"))
    assert np.array_equal(ids, reference(logits, 1, order, banned)[1][:, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_logits_give_ids_in_range(build: Any, level: Any, bad: float) -> None:
    spec = SPECS[3]
    logits, banned, order = inputs(spec)
    clean = reference(logits, 4, order, banned)[1]
    logits[0, 400:] = bad
    logits[1] = bad
    logp, ids, *_ = build(topk(spec), level)(
        arguments(logits, banned, order), ((M, 4), "float32"), ((M, 4), "int32")
    )
    assert ((ids >= 0) & (ids < spec.vocabulary)).all()
    assert np.array_equal(ids[2:], clean[2:])
    assert np.isfinite(logp[2:]).all()
    best, *_ = build(argmax(spec), level)(arguments(logits, banned, order), ((M,), "int32"))
    assert ((best >= 0) & (best < spec.vocabulary)).all()
