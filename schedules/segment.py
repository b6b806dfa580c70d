# SPDX-License-Identifier: Apache-2.0
"""Row segments: rows of one bit width as kernels see them, and the buffers that they are read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .outliers import place_dtype, row_tiles
from .packing import BLOCK_ROWS, ColumnLayout, row_blocks
from .pow2 import POW2, scale_storage
from .storage import TILES
from .tir import KernelBuilder, T, as_type, splat, vec


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive rows of one bit width that write columns [start, start + rows) of one output."""

    rows: int
    bits: int
    group_size: int
    offset: bool
    scale_dtype: str
    output: int
    start: int
    outliers: bool = False


class SegmentBuffers(NamedTuple):
    """The parameters of one segment, in the order in which a kernel takes them."""

    keys: Any
    scales: Any
    exponents: Any | None
    offsets: Any | None
    starts: Any = None
    places: Any = None
    values: Any = None

    def present(self) -> list[Any]:
        """Those that the segment has."""
        return [buffer for buffer in self if buffer is not None]


def segment_params(
    kernel: KernelBuilder, segment: Segment, k: int, index: int, bits: Any
) -> SegmentBuffers:
    """Declares the parameters of a segment; ``bits`` may be a size variable."""
    layout = ColumnLayout(k=k, group_size=segment.group_size)
    blocks, dtype = row_blocks(segment.rows), scale_storage(segment.scale_dtype)
    per_group = (blocks, layout.groups, BLOCK_ROWS)
    keys = kernel.param(f"keys{index}", (blocks, bits, layout.steps, TILES, 64), "uint8")
    scales = kernel.param(f"scales{index}", (blocks, bits, layout.groups, BLOCK_ROWS), dtype)
    exponents, offsets = None, None
    if segment.scale_dtype == POW2:
        exponents = kernel.param(f"exponents{index}", per_group, "int8")
    if segment.offset:
        offsets = kernel.param(f"offsets{index}", per_group, dtype)
    outliers = _outlier_params(kernel, segment, k, index) if segment.outliers else ()
    return SegmentBuffers(keys, scales, exponents, offsets, *outliers)


def _outlier_params(kernel: KernelBuilder, segment: Segment, k: int, index: int) -> tuple[Any, ...]:
    """starts, places, values: how many entries there are is no part of the kernel."""
    count = T.int64()
    return (
        kernel.param(f"starts{index}", (row_tiles(segment.rows, k) + 1,), "int32"),
        kernel.param(f"places{index}", (count,), place_dtype(k)),
        kernel.param(f"values{index}", (count,), "float16"),
    )


def pow2_factor(exponent: Any, lanes: int) -> Any:
    """2^e in float32 for int8 exponents within those of ``pow2``."""
    kind = vec("int32", lanes)
    bias, places = splat(T.int32(127), lanes), splat(T.int32(23), lanes)
    return as_type(T.shift_left(T.Cast(kind, exponent) + bias, places), vec("float32", lanes))
