# SPDX-License-Identifier: Apache-2.0
"""LowerEmbedding: row gathers read packed storage, each word at its own bit width.

Before: composites ``tvmq.embedding``. After: ``gather`` over the same stored arrays that a tied output
projection multiplies by (one copy of the table), or over plain FP32 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm.relax.expr_functor import mutator

from schedules.embedding import GatherSpec, gather
from schedules.storage import float_array, rank_array

from .bit_plan import FLOAT_BITS, BitPlan, WordBits
from .composite import EMBEDDING, LINEAR, composite_of
from .lower_linear import kernel_segments, stored_segments
from .lowering import Lowering, float_type


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerEmbedding:
    """Lower every ``tvmq.embedding``. Runs before LowerLinear, while ties are still visible."""

    plan: BitPlan

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _EmbeddingLowering(module, self.plan).run()


def multiplied_tensors(module: tvm.IRModule) -> set[str]:
    """Weights that some linear multiplies by."""
    return {
        str(function.attrs["tvmq.tensor"])
        for function in module.functions.values()
        if function.attrs and str(function.attrs.get("Composite", "")) == LINEAR
    }


@mutator
class _EmbeddingLowering(Lowering):
    def __init__(self, module: tvm.IRModule, plan: BitPlan) -> None:
        super().__init__(module)
        self._entries = {entry.tensor: entry for entry in plan.entries()}
        self._multiplied = multiplied_tensors(module)

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        composite = composite_of(self.module, call)
        if composite is None or composite.kind != EMBEDDING:
            return call
        weight, ids = composite.argument(call, "w"), composite.argument(call, "ids")
        words, width = (int(extent) for extent in weight.ty.shape)
        tensor, factor = str(weight.name), float(composite.attrs["tvmq.factor"])
        spec, arrays = self._storage(tensor, words, width, factor, int(composite.attrs["tvmq.bits"]), weight)
        kernel = self.kernel(spec, "gather", lambda: gather(spec))
        return self.call(kernel, [ids, *arrays], [float_type(ids.ty.shape[0], width)])[0]

    def _storage(
        self, tensor: str, words: int, width: int, factor: float, bits: int, weight: Any
    ) -> tuple[GatherSpec, list[Any]]:
        if bits == FLOAT_BITS:
            packed = tensor in self._multiplied
            spec = GatherSpec(words=words, width=width, segments=(), factor=factor, packed=packed)
            return spec, [self.stored(float_array(tensor, words, width)) if packed else weight]
        entry = self._entries[tensor]
        stored = stored_segments(entry, words, width)
        arrays = [self.stored(array) for segment in stored for array in segment.arrays(width)]
        rank_dtype = ""
        if isinstance(entry, WordBits):
            rank = rank_array(tensor, words)
            rank_dtype, arrays = rank.dtype, [self.stored(rank), *arrays]
        spec = GatherSpec(
            words=words,
            width=width,
            segments=kernel_segments(stored, width),
            rank_dtype=rank_dtype,
            factor=factor,
        )
        return spec, arrays
