# SPDX-License-Identifier: Apache-2.0
"""What a coded checkpoint stores of each tensor: names, dtypes and shapes as the plan says, possible values.

Reading and writing are in ``coded_checkpoint``, where the names are listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from schedules.outliers import outlier_arrays, pack_outliers, unpack_outliers
from schedules.packing import BitPlanes, WordPlanes
from schedules.pow2 import POW2, check_pow2, scale_storage

from .store import show

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Stored name -> (dtype, shape)."""


def coded_entries(plan: BitPlan) -> dict[str, BlockBits | WordBits]:
    """The entries of the tensors that are stored as planes, by name."""
    return {e.tensor: e for e in plan.entries() if isinstance(e, WordBits) or e.bits != FLOAT_BITS}


def parts_of(entry: BlockBits | WordBits) -> list[str]:
    """The prefixes that the planes of a tensor are stored under."""
    if isinstance(entry, WordBits):
        return [f"{entry.tensor}:{i}" for i in range(len(entry.clusters))]
    return [entry.tensor]


def flat_arrays(name: str, value: BitPlanes | WordPlanes) -> dict[str, NDArray[Any]]:
    """The stored arrays of one coded tensor."""
    if not isinstance(value, WordPlanes):
        return _part_arrays(name, value)
    arrays: dict[str, NDArray[Any]] = {f"{name}:order": value.order}
    for i, segment in enumerate(value.segments):
        arrays |= _part_arrays(f"{name}:{i}", segment)
    return arrays


def _part_arrays(part: str, segment: BitPlanes) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any] | None] = {
        "planes": segment.planes,
        "scales": segment.scales,
        "exponents": segment.exponents,
        "offsets": segment.offsets,
    }
    if segment.outliers is not None:
        arrays |= pack_outliers(segment.outliers, *segment.shape)
    return {f"{part}:{kind}": array for kind, array in arrays.items() if array is not None}


def coded_tensor(
    entry: BlockBits | WordBits, columns: int, arrays: Mapping[str, NDArray[Any]]
) -> BitPlanes | WordPlanes:
    """The inverse of ``flat_arrays`` for arrays of a checked layout; ValueError for impossible values."""
    segments = tuple(_segment(part, entry, columns, arrays) for part in parts_of(entry))
    found = segments[0]
    if isinstance(entry, WordBits):
        found = WordPlanes(order=arrays[f"{entry.tensor}:order"], segments=segments)
    check_values(entry.tensor, found)
    return found


def _segment(
    part: str, entry: BlockBits | WordBits, columns: int, arrays: Mapping[str, NDArray[Any]]
) -> BitPlanes:
    codes, outliers = arrays[f"{part}:planes"], None
    shape = codes.shape[1], columns
    if f"{part}:values" in arrays:
        starts, places, values = (arrays[f"{part}:{kind}"] for kind in ("starts", "places", "values"))
        try:
            outliers = unpack_outliers(starts, places, values, *shape)
        except ValueError as error:
            raise ValueError(f"tensor {show(entry.tensor)}: {error}") from None
    return BitPlanes(
        planes=codes,
        scales=arrays[f"{part}:scales"],
        offsets=arrays.get(f"{part}:offsets"),
        shape=shape,
        group_size=entry.group_size or columns,
        exponents=arrays.get(f"{part}:exponents"),
        outliers=outliers,
    )


def check_layout(plan: BitPlan, columns: Mapping[str, int], layout: Layout) -> None:
    """ValueError, in one sentence, where stored names, dtypes or shapes are not what the plan says."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, entry in coded_entries(plan).items():
        if name in layout:
            raise ValueError(f"tensor {show(name)} is stored as floats and planned as planes, expected one")
        expected |= _expected(entry, columns[name], layout)
    stored = {name for name in layout if ":" in name}
    kept = {e.tensor for e in plan.blocks if e.bits == FLOAT_BITS}
    if missing := sorted((expected.keys() - stored) | (kept - layout.keys())):
        raise ValueError(f"{some(missing)} of the plan is not stored (use plan and weights of one model)")
    if strangers := sorted(stored - expected.keys()):
        raise ValueError(f"{some(strangers)} is not in the plan (use plan and weights of one model)")
    for name, wanted in expected.items():
        if layout[name] != wanted:
            raise ValueError(
                f"tensor {show(name)} is {_text(layout[name])}, the plan expects {_text(wanted)}"
            )


def _expected(
    entry: BlockBits | WordBits, columns: int, layout: Layout
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What one coded tensor is stored as. No plan has the rows of a matrix: they are those of its planes."""
    name, group = entry.tensor, entry.group_size or columns
    if columns % group:
        raise ValueError(f"{show(name)} has {columns} columns, which group size {group} does not divide")
    groups, width, dtype = columns // group, -(-columns // 8), scale_storage(entry.scale_dtype)
    result: dict[str, tuple[str, tuple[int, ...]]] = {}
    if isinstance(entry, WordBits):
        clusters = entry.clusters
        result[f"{name}:order"] = ("int32", (entry.rows,))
    else:
        shape = layout.get(f"{name}:planes", ("", ()))[1]
        clusters = ((shape[1] if len(shape) == 3 else 1, entry.bits),)
    for part, (rows, bits) in zip(parts_of(entry), clusters, strict=True):
        result[f"{part}:planes"] = ("uint8", (bits, max(rows, 1), width))
        result[f"{part}:scales"] = (dtype, (bits, rows, groups))
        if entry.scale_dtype == POW2:
            result[f"{part}:exponents"] = ("int8", (rows, groups))
        if entry.offset:
            result[f"{part}:offsets"] = (dtype, (rows, groups))
        for kind, (shape, dtype_of) in outlier_arrays(entry.outliers, rows, columns).items():
            result[f"{part}:{kind}"] = (dtype_of, shape)
    return result


def _text(stored: tuple[str, tuple[int, ...]]) -> str:
    return f"{stored[0]}{list(stored[1])}"


def check_values(name: str, value: BitPlanes | WordPlanes) -> None:
    """ValueError for numbers that no quantizer makes, or an order with repetitions."""
    segments = value.segments if isinstance(value, WordPlanes) else (value,)
    for segment in segments:
        spare = -segment.shape[1] % 8
        if spare and (segment.planes[:, :, -1] >> (8 - spare)).any():
            raise ValueError(f"tensor {show(name)}: bits beyond column {segment.shape[1]} are set")
        _check_scales(name, segment)
        if segment.outliers is not None and not np.isfinite(segment.outliers.values).all():
            raise ValueError(f"tensor {show(name)}: an outlier is not finite")
    if isinstance(value, WordPlanes):
        rows = value.shape[0]
        if not np.array_equal(np.sort(value.order), np.arange(rows)):
            raise ValueError(f"tensor {show(name)}: the order does not name each of {rows} words once")


def _check_scales(name: str, segment: BitPlanes) -> None:
    scales, offsets = segment.scales, segment.offsets
    together = scales if offsets is None else np.concatenate([scales, offsets[None]])
    if segment.exponents is not None:
        try:
            check_pow2(together.astype(np.int8), segment.exponents)
        except ValueError as error:
            raise ValueError(f"tensor {show(name)}: {error}") from None
    elif not (np.abs(together.astype(np.float64)).sum(0) <= np.finfo(np.float32).max).all():
        raise ValueError(f"tensor {show(name)}: scales or offsets are not finite in FP32")


def some(names: Iterable[str], limit: int = 3) -> str:
    """A few untrusted names for a one-line message."""
    found = list(names)
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(show(name) for name in found[:limit]) + more
