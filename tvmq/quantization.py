# SPDX-License-Identifier: Apache-2.0
"""Quantizing a model by its plan, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from schedules.packing import BitPlanes, WordPlanes

from .calibration import Calibration
from .errors import InputError, UsageError
from .families.family import TensorSource
from .options import Progress, no_progress
from .quantizers import NEED_MOMENTS, get_quantizer
from .word_bits import frequency_order


@runtime_checkable
class CodedSource(Protocol):
    """A source that may hold planes already; ``tvmq.checkpoint.Checkpoint`` is one."""

    @property
    def plan(self) -> BitPlan | None: ...
    def planes(self, name: str) -> BitPlanes | WordPlanes | None: ...


def quantize_model(
    source: TensorSource,
    plan: BitPlan,
    frequencies: NDArray[np.integer] | None = None,
    progress: Progress = no_progress,
    calibration: Calibration | None = None,
) -> dict[str, BitPlanes | WordPlanes]:
    """Quantize every tensor of ``plan`` that does not stay FP32, in the plan's order.

    Args:
        source: a checkpoint: shapes and float32 tensors by name; planes that it holds are kept.
        plan: validated against the source first.
        frequencies: occurrences of each word; needed for bits by word where the source holds no planes.
        progress: called with weights done of weights in all.
        calibration: what the matrices read; needed for quantizers in ``NEED_MOMENTS``.

    Raises:
        InputError: the plan does not fit, frequencies are missing, or a tensor cannot be quantized.
        UsageError: codes of the plan need a calibration, and there is none.
    """
    entries = [e for e in plan.entries() if isinstance(e, WordBits) or e.bits != FLOAT_BITS]
    sizes = [int(np.prod(source.shape(entry.tensor))) for entry in entries]
    stored = _stored(source, plan)
    order = word_order(plan, frequencies) if stored is None else None
    if stored is None:
        check_calibration(entries, calibration)
    done, result = 0, {}
    progress("quantize", 0, sum(sizes))
    for entry, size in zip(entries, sizes, strict=True):
        try:
            planes = stored.planes(entry.tensor) if stored else None
            if planes is None:
                planes = quantize_entry(
                    source.tensor(entry.tensor), entry, order, moments_for(entry, calibration)
                )
            result[entry.tensor] = planes
        except ValueError as error:
            raise InputError(f"{entry.tensor}: {error}") from error
        done += size
        progress("quantize", done, sum(sizes))
    return result


def moments_for(entry: BlockBits | WordBits, calibration: Calibration | None) -> NDArray[np.float32] | None:
    """float32[k, k] for an entry whose quantizer needs it; None for any other, or without a calibration."""
    if calibration is None or entry.quantizer not in NEED_MOMENTS:
        return None
    return calibration.moments(entry.tensor)


def quantize_entry(
    weight: NDArray[np.floating],
    entry: BlockBits | WordBits,
    order: NDArray[np.int32] | None = None,
    moments: NDArray[np.floating] | None = None,
) -> BitPlanes | WordPlanes:
    """``quantize_words`` or ``quantize_matrix``, as ``entry`` is."""
    if isinstance(entry, WordBits):
        return quantize_words(weight, entry, order, moments)
    return quantize_matrix(weight, entry, moments)


def quantize_matrix(
    weight: NDArray[np.floating], entry: BlockBits, moments: NDArray[np.floating] | None = None
) -> BitPlanes:
    """Quantize [n, k] as ``entry`` says; ValueError for what its quantizer refuses.

    ``moments``: float32[k, k] from ``moments_for``.
    """
    return get_quantizer(entry.quantizer).quantize(
        weight,
        bits=entry.bits,
        group_size=entry.group_size,
        offset=entry.offset,
        scale_dtype=entry.scale_dtype,
        outliers=entry.outliers,
        moments=moments,
    )


def quantize_words(
    weight: NDArray[np.floating],
    entry: WordBits,
    order: NDArray[np.int32] | None,
    moments: NDArray[np.floating] | None = None,
) -> WordPlanes:
    """Quantize an embedding [v, k]: rows in ``order`` (int32[v], most frequent first), cluster by cluster.

    ``moments``: float32[k, k] from ``moments_for``.

    Raises:
        ValueError: the clusters or the order do not hold each of the v words once.
    """
    if order is None:
        raise ValueError("bits by word need token frequencies, and there are none")
    words = weight.shape[0]
    if entry.rows != words:
        raise ValueError(f"the word clusters hold {entry.rows} rows, the embedding has {words}")
    if order.shape != (words,) or not np.array_equal(np.sort(order), np.arange(words)):
        raise ValueError(f"the word order does not name each of the {words} words once")
    segments, first = [], 0
    for count, bits in entry.clusters:
        rows = weight[order[first : first + count]]
        segments.append(quantize_matrix(rows, entry.cluster(bits), moments))
        first += count
    return WordPlanes(order=order, segments=tuple(segments))


def check_calibration(entries: Sequence[BlockBits | WordBits], calibration: Calibration | None) -> None:
    """UsageError where codes need a calibration and there is none, before any work is done."""
    needing = [entry for entry in entries if entry.quantizer in NEED_MOMENTS]
    if needing and calibration is None:
        first = needing[0]
        raise UsageError(
            f"{first.tensor}: {first.quantizer} codes need calibration data: give --calibration FILE "
            "(made by tvmq plan MODEL --calibration PAIRS.tsv --save-calibration FILE)"
        )


def _stored(source: TensorSource, plan: BitPlan) -> CodedSource | None:
    """The source as one that holds planes, if it does; InputError where they were made by another plan."""
    if not isinstance(source, CodedSource) or source.plan is None:
        return None
    if source.plan.entries() != plan.entries():
        raise InputError(
            "the checkpoint holds planes of another plan; take its own plan, or quantize the float model"
        )
    return source


def word_order(plan: BitPlan, frequencies: NDArray[np.integer] | None) -> NDArray[np.int32] | None:
    """int32[v], words by falling frequency; None without bits by word, InputError where counts lack."""
    if not plan.words:
        return None
    if frequencies is None:
        raise InputError(
            "the plan gives words bits by frequency, but there are no token frequencies: put token_freq.tsv "
            "in the model folder, or give --frequencies FILE, --text FILE or the plan's --calibration FILE"
        )
    return frequency_order(frequencies)
