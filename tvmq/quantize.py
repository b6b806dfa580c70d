# SPDX-License-Identifier: Apache-2.0
"""Quantizing a model by its plan, one tensor at a time."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from schedules.packing import BitPlanes, WordPlanes

from .errors import InputError
from .families.family import TensorSource
from .options import Progress, no_progress
from .quantizers import get_quantizer
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
) -> dict[str, BitPlanes | WordPlanes]:
    """Quantize every tensor of ``plan`` that does not stay FP32, in the plan's order.

    Args:
        source: a checkpoint: shapes and float32 tensors by name; planes that it holds are kept.
        plan: validated against the source first.
        frequencies: occurrences of each word; needed for bits by word where the source holds no planes.
        progress: called with weights done of weights in all.

    Raises:
        InputError: the plan does not fit, frequencies are missing, or a tensor cannot be quantized.
    """
    entries = [e for e in plan.entries() if isinstance(e, WordBits) or e.bits != FLOAT_BITS]
    sizes = [int(np.prod(source.shape(entry.tensor))) for entry in entries]
    stored = _stored(source, plan)
    order = _order(plan, frequencies) if stored is None else None
    done, result = 0, {}
    progress("quantize", 0, sum(sizes))
    for entry, size in zip(entries, sizes, strict=True):
        try:
            planes = stored.planes(entry.tensor) if stored else None
            if planes is not None:
                result[entry.tensor] = planes
            elif isinstance(entry, WordBits):
                result[entry.tensor] = quantize_words(source.tensor(entry.tensor), entry, order)
            else:
                result[entry.tensor] = quantize_matrix(source.tensor(entry.tensor), entry)
        except ValueError as error:
            raise InputError(f"{entry.tensor}: {error}") from error
        done += size
        progress("quantize", done, sum(sizes))
    return result


def quantize_matrix(weight: NDArray[np.floating], entry: BlockBits) -> BitPlanes:
    """Quantize [n, k] as ``entry`` says; ValueError for what its quantizer refuses."""
    return _planes(weight, entry, entry.bits)


def quantize_words(
    weight: NDArray[np.floating], entry: WordBits, order: NDArray[np.int32] | None
) -> WordPlanes:
    """Quantize an embedding [v, k]: rows in ``order`` (int32[v], most frequent first), cluster by cluster.

    Raises:
        ValueError: the clusters or the order do not hold each of the v words once.
    """
    if order is None:
        raise ValueError("bits by word need token frequencies, and there are none")
    rows = weight.shape[0]
    if entry.rows != rows:
        raise ValueError(f"the word clusters hold {entry.rows} rows, the embedding has {rows}")
    if order.shape != (rows,) or not np.array_equal(np.sort(order), np.arange(rows)):
        raise ValueError(f"the word order does not name each of the {rows} words once")
    segments, first = [], 0
    for count, bits in entry.clusters:
        segments.append(_planes(weight[order[first : first + count]], entry, bits))
        first += count
    return WordPlanes(order=order, segments=tuple(segments))


def _planes(weight: NDArray[np.floating], entry: BlockBits | WordBits, bits: int) -> BitPlanes:
    return get_quantizer(entry.quantizer).quantize(
        weight,
        bits=bits,
        group_size=entry.group_size,
        offset=entry.offset,
        scale_dtype=entry.scale_dtype,
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


def _order(plan: BitPlan, frequencies: NDArray[np.integer] | None) -> NDArray[np.int32] | None:
    if not plan.words:
        return None
    if frequencies is None:
        raise InputError(
            "the plan gives words bits by frequency, but there are no token frequencies: put token_freq.tsv "
            "in the model folder, or give --frequencies FILE or --text FILE"
        )
    return frequency_order(frequencies)
