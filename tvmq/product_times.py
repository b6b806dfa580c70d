# SPDX-License-Identifier: Apache-2.0
"""The time of every matrix at every width, from a tuning log of the machine that the model is to run on.

``tvmq tune MODEL --widths 1,2,3,4 --trials 0 -o LOG`` times the products of a model at all widths that a plan
chooses from. A matrix whose product is not in the log takes the nearest one of its width, by weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from schedules.tuning_log import FARTHEST, WORTH, Key, TuningRecord, distance
from schedules.workload import M_BUCKETS, MOST_BITS, Op, Workload, m_bucket

from .errors import InputError
from .families.family import TensorInfo, decodes
from .kernels.logs import read_log
from .kernels.model_workloads import product_shapes
from .sensitivity_table import Coding

LOG_SUFFIX = ".jsonl"
ENCODER = "Enc"
"""Blocks whose names begin so run once per sentence."""
FAMILIES: tuple[Op, ...] = ("lut", "exact", "dequant")
"""Kernels that compute with bits, the usual first."""


def once_per_sentence(info: TensorInfo) -> bool:
    """Whether a model with a decoder multiplies by the matrix once per sentence, not once per token."""
    return info.block.startswith(ENCODER)


def log_times(
    path: Path, tensors: Sequence[TensorInfo], sentence_tokens: float, coding: Coding
) -> dict[str, dict[int, float]]:
    """Milliseconds of one thread per token and weight, by tensor and bits.

    Products that run once per sentence or text are those of as many tokens as a sentence has.

    Args:
        path: a tuning log.
        tensors: all matrices of the model; tables whose rows are only looked up get no times.
        sentence_tokens: tokens of a sentence or text.
        coding: how the matrices are stored.

    Raises:
        InputError: no tuning log, one of several targets, or without any near product.
    """
    records = _usable(path)
    shapes, whole = product_shapes(tensors), not decodes(tensors)
    found: dict[str, dict[int, float]] = {}
    for info in tensors:
        if info.name in shapes:
            tokens = sentence_tokens if whole or once_per_sentence(info) else 1.0
            times = _by_width(records, info.shape, tokens, coding)
            found |= {info.name: times} if times else {}
    if not found:
        raise InputError(
            f"{path}: no product near those of this model; time them with tvmq tune MODEL --widths 1,2,3,4 "
            "--trials 0"
        )
    return found


def _usable(path: Path) -> list[TuningRecord]:
    """The fastest records of one thread on the log's one target, by the first family that it has."""
    best = [r for r in read_log(path).best() if r.key.threads == 1 and r.basis == "measured"]
    targets = sorted({record.key.target for record in best})
    if len(targets) > 1:
        names = ", ".join(targets)
        raise InputError(f"{path}: has times of {names}; choose one with tvmq log export --target")
    family = next((op for op in FAMILIES if any(record.key.op == op for record in best)), None)
    return [record for record in best if record.key.op == family]


def _by_width(
    records: Sequence[TuningRecord], shape: tuple[int, int], tokens: float, coding: Coding
) -> dict[int, float]:
    """Milliseconds per token and weight of a matrix at the widths that have a record near enough."""
    found: dict[int, float] = {}
    for bits in range(1, MOST_BITS + 1):
        own = [record for record in records if record.key.bits == bits]
        bucket = _bucket(own, tokens)
        near = [
            (distance(_key(record, shape, bits, coding), record.key), index)
            for index, record in enumerate(own)
            if record.key.m == bucket
        ]
        apart, index = min(near, default=(FARTHEST + 1, 0))
        if apart <= FARTHEST:
            found[bits] = _ms(own[index])
    return found


def _bucket(records: Sequence[TuningRecord], tokens: float) -> int:
    """The bucket of so many tokens, or the next to it of which there are records; one token has its own."""
    wanted = M_BUCKETS.index(m_bucket(max(1, round(tokens))))
    several = {M_BUCKETS.index(record.key.m) for record in records if record.key.m > 1}
    return M_BUCKETS[min(several, key=lambda index: abs(index - wanted), default=wanted) if wanted else 0]


def _key(record: TuningRecord, shape: tuple[int, int], bits: int, coding: Coding) -> Key:
    """The matrix's product with the tokens, the target and the family of a record."""
    key = record.key
    workload = Workload.of(key.op, *shape, key.m, bits, _group(key.op, shape[1], coding), coding.scale_dtype)
    if coding.offset and key.op != "dequant":
        workload = replace(workload, layout=f"{workload.layout}+offset")
    return Key.of(workload, key.target, key.threads)


def _group(op: Op, columns: int, coding: Coding) -> int:
    group = coding.group_size or 0
    fits = not group or (columns % group == 0 and (op != "dequant" or group % 64 == 0))
    return group if fits else 0


def _ms(record: TuningRecord) -> float:
    """Milliseconds per token and weight of the schedule that compiling takes."""
    us = record.us if record.gain >= WORTH else record.rule_us
    return us / 1e3 / (record.key.n * record.key.k * record.key.m)
