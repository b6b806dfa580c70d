# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a user's module can be planned, and the block that each belongs to, read from its graph.

Emb: tables that words are looked up in (also when they are the output projection too). Attn: linears whose
result an attention product reads, or that read the result of one. Head: linears that make the module's output
(nothing but element-wise work follows, no residual). FFN: every other linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from relay_passes.annotate_bits import AnnotateBits
from relay_passes.bit_plan import SCHEMA, BitPlan
from relay_passes.composite import EMBEDDING, LINEAR, Composite, composite_of
from relay_passes.lowering import is_entry

from .errors import UsageError
from .families.family import TensorInfo

_CARRIES = {
    f"relax.{name}"
    for name in (
        "reshape", "permute_dims", "squeeze", "expand_dims", "strided_slice", "split", "concat", "astype",
        "take", "multiply", "divide", "flatten", "broadcast_to",
    )
}  # fmt: skip
"""Operators between an attention product and the linear that is said to read it."""
_ADDS = {"relax.add", "relax.subtract"}


class ModuleGraph:
    """The data flow of one imported function: composites, who reads what, what depends on the inputs."""

    def __init__(self, module: tvm.IRModule) -> None:
        empty = BitPlan(schema=SCHEMA, blocks=(), words=(), source="")
        annotated: Any = AnnotateBits(plan=empty)(module)
        (function,) = [f for f in annotated.functions.values() if is_entry(f)]
        self.inputs = list(function.params)[: int(function.attrs["num_input"])]
        self._weights = {p: str(p.name) for p in list(function.params)[len(self.inputs) :]}
        self._results = set(relax.analysis.free_vars(function.body.body))
        self.values: dict[Any, Any] = {}
        self.composites: dict[Any, Composite] = {}
        self._readers: dict[Any, list[Any]] = {}
        self._dependent = set(self.inputs)
        for block in function.body.blocks:
            for binding in block.bindings:
                self._add(annotated, binding.var, binding.value)

    def _add(self, module: tvm.IRModule, var: Any, value: Any) -> None:
        self.values[var] = value
        reads = relax.analysis.free_vars(value)
        for source in reads:
            self._readers.setdefault(source, []).append(var)
            if source in self._dependent:
                self._dependent.add(var)
        composite = composite_of(module, value)
        if composite is not None:
            self.composites[var] = composite

    def tensors(self, frequencies: NDArray[np.integer] | None) -> list[TensorInfo]:
        """Every matrix that only linears and lookups read, in the order of the graph.

        With ``frequencies``, the tables with that many rows may carry bits by word.

        Raises:
            UsageError: no table has as many rows as there are frequencies.
        """
        blocks: dict[str, tuple[str, Any]] = {}
        for var, composite in self.composites.items():
            weight = composite.argument(self.values[var], "w")
            if composite.kind in (LINEAR, EMBEDDING) and weight is not None and self._planned_only(weight):
                block = self._block(var, composite)
                known = blocks.get(self._weights[weight], (block, weight))[0]
                blocks[self._weights[weight]] = ("Emb" if "Emb" in (block, known) else known, weight)
        infos = []
        for name, (block, weight) in blocks.items():
            rows, columns = (int(extent) for extent in weight.ty.shape)
            words = block in ("Emb", "Head") and (frequencies is None or frequencies.size == rows)
            infos.append(TensorInfo(name=name, block=block, shape=(rows, columns), is_embedding=words))
        if frequencies is not None and not any(info.is_embedding for info in infos):
            raise UsageError(f"token frequencies for {frequencies.size} words, but no table has as many rows")
        return infos

    def word_limits(self) -> dict[str, int]:
        """Input name -> number of rows of the smallest table that its values are looked up in directly."""
        limits: dict[str, int] = {}
        for var, composite in self.composites.items():
            if composite.kind == EMBEDDING:
                source = composite.argument(self.values[var], "ids")
                while self._operator(source) in ("relax.reshape", "relax.astype"):
                    source = self.values[source].args[0]
                if source in self.inputs:
                    rows = int(composite.argument(self.values[var], "w").ty.shape[0])
                    name = str(source.name)
                    limits[name] = min(rows, limits.get(name, rows))
        return limits

    def _planned_only(self, weight: Any) -> bool:
        readers = (self.composites.get(var) for var in self._readers[weight])
        return all(c is not None and c.kind in (LINEAR, EMBEDDING) for c in readers)

    def _block(self, var: Any, composite: Composite) -> str:
        if composite.kind == EMBEDDING:
            return "Emb"
        if self._feeds_attention(var) or self._reads_attention(composite.argument(self.values[var], "x")):
            return "Attn"
        return "Head" if self._is_output(var) else "FFN"

    def _operator(self, var: Any) -> str:
        value = self.values.get(var)
        return str(getattr(getattr(value, "op", None), "name", "")) if isinstance(value, relax.Call) else ""

    def _is_attention(self, var: Any) -> bool:
        """Whether ``var`` is a product of two activations."""
        if self._operator(var) != "relax.matmul":
            return False
        return all(arg in self._dependent for arg in self.values[var].args)

    def _is_matrix_work(self, var: Any) -> bool:
        return var in self.composites and self.composites[var].kind in (LINEAR, EMBEDDING)

    def _feeds_attention(self, var: Any) -> bool:
        return any(self._is_attention(reader) for reader in self._after(var))

    def _after(self, var: Any) -> Iterator[Any]:
        """Everything computed from ``var`` without another linear or lookup between."""
        seen, waiting = {var}, [var]
        while waiting:
            for reader in self._readers.get(waiting.pop(), []):
                if reader not in seen and not self._is_matrix_work(reader):
                    seen.add(reader)
                    waiting.append(reader)
                    yield reader

    def _reads_attention(self, x: Any) -> bool:
        seen, waiting = {x}, [x]
        while waiting:
            var = waiting.pop()
            if self._is_attention(var):
                return True
            value = self.values.get(var)
            if value is not None and (self._operator(var) in _CARRIES or not isinstance(value, relax.Call)):
                fresh = [v for v in relax.analysis.free_vars(value) if v not in seen]
                seen.update(fresh)
                waiting += fresh
        return False

    def _is_output(self, var: Any) -> bool:
        """Whether the function's result comes from ``var`` alone, without norms or residual sums."""
        while True:
            if var in self._results:
                return True
            readers = self._readers.get(var, [])
            if len(readers) != 1 or readers[0] in self.composites or self._joins(readers[0]):
                return False
            var = readers[0]

    def _joins(self, var: Any) -> bool:
        value = self.values[var]
        others = [v for v in relax.analysis.free_vars(value) if v in self._dependent]
        return self._is_attention(var) or (self._operator(var) in _ADDS and len(others) > 1)
