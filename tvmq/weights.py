# SPDX-License-Identifier: Apache-2.0
"""Fills the parameters of a lowered module: packed planes, packed FP32 matrices, plain vectors.

Parameter names follow ``schedules.storage``; every name that the graphs ask for is resolved here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from schedules.packing import BitPlanes, WordPlanes
from schedules.storage import pack_plain, pack_quantized

from .generated import halved
from .manifest import Inverse

Source = Callable[[str], NDArray[np.float32]]


def collect(
    names: Iterable[str],
    quantized: Mapping[str, BitPlanes | WordPlanes],
    source: Source,
    transposed: set[str],
    extra: Mapping[str, NDArray],
) -> dict[str, NDArray]:
    """The arrays called ``names``.

    Args:
        names: stored names as the lowered functions declare them, in any order.
        quantized: planes of the planned tensors.
        source: reads a float tensor of the model.
        transposed: tensors that the graphs use in transposed layout.
        extra: vectors that are not part of the checkpoint (banned ids).

    Returns:
        name -> array as it is stored, sorted by name; plain vectors in float16 where that is exact.
    """
    packed: dict[str, NDArray] = {}
    for tensor, planes in quantized.items():
        packed |= pack_quantized(tensor, planes)

    def plain(name: str) -> NDArray:
        if name in extra:
            return extra[name]
        value = source(name)
        return np.ascontiguousarray(value.T) if name in transposed else value

    def resolve(name: str) -> NDArray:
        if name in packed:
            return packed[name]
        vector, at, tensor = name.partition("@")
        if at:
            return _reorder(vector, plain(vector), quantized[tensor])
        if name.endswith(":packed"):
            return pack_plain(name, plain(name.removesuffix(":packed")))[f"{name}:packed"]
        return np.ascontiguousarray(plain(name))

    return {name: halved(name, resolve(name)) for name in sorted(set(names))}


def computed_orders(names: Iterable[str]) -> dict[str, Inverse]:
    """Word orders among ``names`` that follow from the rank of the same tensor, which is stored."""
    found = set(names)
    ranks = {name: f"{name.removesuffix(':order')}:rank" for name in sorted(found) if name.endswith(":order")}
    return {name: Inverse(source=rank) for name, rank in ranks.items() if rank in found}


def _reorder(name: str, vector: NDArray, tensor: BitPlanes | WordPlanes) -> NDArray:
    """A vector over words in storage order; word ids themselves become storage rows."""
    if not isinstance(tensor, WordPlanes):
        raise ValueError(f"{name} needs a word order, but its tensor has none")
    if np.issubdtype(vector.dtype, np.integer):
        rank = np.empty_like(tensor.order)
        rank[tensor.order] = np.arange(tensor.order.shape[0], dtype=tensor.order.dtype)
        return rank[vector].astype(vector.dtype)
    return np.ascontiguousarray(vector[tensor.order])
