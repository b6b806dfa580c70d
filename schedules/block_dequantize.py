# SPDX-License-Identifier: Apache-2.0
"""The end of the integer part of a model: blocks become float32 rows, exactly, for a head in float."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_format import FINE_BITS, BlockLayout, values_of
from .rounding_shift import LARGEST_SHIFT
from .tir import LANES, KernelBuilder, T, as_type, body, isplat, load, splat, store

SMALLEST, LARGEST = -126, 127 - LARGEST_SHIFT
"""Exponents are limited to those of normal floats."""


def reference(
    mantissas: NDArray[np.int8],
    exponents: NDArray[np.int32],
    fine: NDArray[np.int8],
    channels: NDArray[np.int8],
    layout: BlockLayout,
) -> NDArray[np.float32]:
    """NumPy meaning of :func:`block_dequantize`: float32[m, width]."""
    return values_of(mantissas, exponents, layout, channels, fine).astype(np.float32)


def block_dequantize(layout: BlockLayout, name: str = "block_dequantize") -> Any:
    """PrimFunc for any number of tokens m.

    Parameters in order: mantissas int8[m, padded], exponents int32[m, groups], fine int8[m, width],
    channels int8[width]; then y float32[m, width].
    """
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        mantissas = kernel.param("mantissas", (m, layout.padded), "int8")
        exponents = kernel.param("exponents", (m, layout.groups), "int32")
        fine = kernel.param("fine", (m, layout.width), "int8")
        channels = kernel.param("channels", (layout.width,), "int8")
        y = kernel.param("y", (m, layout.width))
        reads = [mantissas, exponents, fine, channels]
        with body([y], reads), T.serial(0, m) as t, T.serial(0, layout.groups) as g:
            base = T.Bind(splat(T.Bind(exponents[t, g])))
            with T.serial(0, layout.block // LANES) as v:
                c = T.Bind(g * layout.block + v * LANES)
                power = base + T.Cast("int32x16", load(channels, (c,), LANES)) - isplat(FINE_BITS)
                power = T.max(T.min(power, isplat(LARGEST)), isplat(SMALLEST)) + isplat(127)
                factor = as_type(T.shift_left(power, isplat(23)), "float32x16")
                coarse, rest = (T.Cast("int32x16", load(part, (t, c), LANES)) for part in (mantissas, fine))
                value = T.shift_left(coarse, isplat(FINE_BITS)) + rest
                store(y, (t, c), T.Cast("float32x16", value) * factor, LANES)
    return kernel.result


__all__ = ["block_dequantize", "reference"]
