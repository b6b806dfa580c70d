# SPDX-License-Identifier: Apache-2.0
"""``lowered``: any set of graphs through all passes, compiled in memory and run on TVM's virtual machine.

``stored_levels``: the weights of mode block-int back from the arrays that its kernels read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., BitPlan]:
    """``make_plan({"fc.weight": 3, "emb.weight": ((6, 3), (4, 2))}, group_size=4)``."""

    def make(bits: Mapping[str, Any], **options: Any) -> BitPlan:
        blocks, words = [], []
        for tensor, value in bits.items():
            if isinstance(value, int):
                blocks.append(BlockBits(tensor=tensor, block="B", bits=value, **options))
            else:
                words.append(WordBits(tensor=tensor, block="W", clusters=value, **options))
        return BitPlan(schema=1, blocks=tuple(blocks), words=tuple(words), source="test")

    return make


@dataclass(frozen=True, slots=True)
class State:
    """Tensors in memory, as a checkpoint."""

    held: Mapping[str, NDArray[np.float32]]

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def names(self) -> list[str]:
        return list(self.held)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.held[name].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self.held[name]


class Lowered:
    """Graphs as kernels of the best ISA level of this CPU.

    Attributes:
        module: after all passes.
        dequantized: the planned tensors as the kernels see them, in the layout of the source.
        arrays: all stored weights.
    """

    def __init__(
        self,
        graphs: Any,
        plan: BitPlan,
        state: Mapping[str, NDArray[np.float32]],
        tables: Any = "int8",
        *,
        level: str | None = None,
        extra: Mapping[str, NDArray] | None = None,
    ) -> None:
        import tvm
        from tvm import relax

        from relay_passes.fold_transpose import transposed_tensors
        from targets import detect_host, get_target
        from tvmq import build, pipeline
        from tvmq.generated import complete
        from tvmq.quantization import quantize_model
        from tvmq.weights import collect

        target = get_target(level or detect_host()[0])
        common = pipeline.run(graphs, pipeline.common_phases(plan), target.to_tvm())
        self.module = build.lower(common, plan, target, tables, None)
        turned = transposed_tensors(common)
        held = {n: np.ascontiguousarray(v.T) if n in turned else v for n, v in state.items()}
        counts = [np.arange(entry.rows) * 7919 % 1000 for entry in plan.words][:1]
        quantized = quantize_model(State(held), plan, counts[0] if counts else None)
        self._parameters = build.parameter_names(self.module)
        names = {name for entries in self._parameters.values() for name in entries}
        stored = collect(names, quantized, lambda name: held[name], set(), extra or {})
        self.arrays = complete(stored, {})
        dense = {name: planes.dequantize() for name, planes in quantized.items()}
        self.dequantized = {n: np.ascontiguousarray(v.T) if n in turned else v for n, v in dense.items()}
        self._tensors = {name: tvm.runtime.tensor(array) for name, array in self.arrays.items()}
        self._machine = relax.VirtualMachine(relax.build(self.module, target.to_tvm()), tvm.cpu())

    def __call__(self, function: str, *inputs: Any) -> list[NDArray]:
        """Results as arrays; inputs are arrays (copied), tensors of the machine or shapes."""
        import tvm

        given = [tvm.runtime.tensor(x) if isinstance(x, np.ndarray) else x for x in inputs]
        weights = [self._tensors[name] for name in self._parameters[function]]
        result = self._machine[function](*given, *weights)
        return [result.numpy()] if hasattr(result, "numpy") else [part.numpy() for part in result]


@pytest.fixture(scope="session")
def lowered() -> type[Lowered]:
    """``lowered(graphs, plan, state, "int8")(function, *inputs)``."""
    return Lowered


@pytest.fixture(scope="session")
def stored_levels() -> Callable[..., NDArray[np.int8]]:
    """``stored_levels(arrays, "fc.weight", (n, k))``: int8[n, k] of a matrix, from levels or from planes."""

    def read(arrays: Mapping[str, NDArray[Any]], tensor: str, shape: tuple[int, int]) -> NDArray[np.int8]:
        if f"{tensor}:levels" in arrays:
            found = _unpacked_levels(arrays[f"{tensor}:levels"])
        else:
            found = _unpacked_planes(arrays[f"{tensor}:keys"], arrays[f"{tensor}:alphas"])
        n, k = shape
        assert not found[n:, :k].any()
        return found[:n, :k]

    return read


def _unpacked_levels(packed: NDArray[np.int8]) -> NDArray[np.int8]:
    """Panels of 32 rows, tiles of 16 rows x 64 columns in quads of columns."""
    panels, steps = packed.shape[:2]
    tiles = packed.reshape(panels, steps, 2, 16, 16, 4)
    return tiles.transpose(0, 2, 4, 1, 3, 5).reshape(panels * 32, steps * 64)


def _unpacked_planes(keys: NDArray[np.uint8], alphas: NDArray[np.int8]) -> NDArray[np.int8]:
    """Sums of binary planes: a byte of keys is two times four columns of a row."""
    blocks, bits, steps = keys.shape[:3]
    pairs = keys.reshape(blocks, bits, steps, 4, 16, 4)
    quads = np.concatenate([pairs & 15, pairs >> 4], axis=-1)
    ones = quads[..., None] >> np.arange(4, dtype=np.uint8) & 1
    ones = ones.transpose(1, 0, 3, 4, 2, 5, 6).reshape(bits, blocks * 64, alphas.shape[2], -1)
    factors = alphas.transpose(1, 0, 3, 2).reshape(bits, blocks * 64, -1, 1).astype(int)
    sums = np.where(ones == 1, factors, -factors).sum(axis=0)
    return sums.reshape(blocks * 64, -1).astype(np.int8)


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """The promise of each kind of table: cosine above 0.9995 (int8), relative error below 1e-5 (exact)."""

    def check(found: NDArray, expected: NDArray, tables: str) -> None:
        assert found.shape == expected.shape
        a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        if tables == "exact":
            assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
        else:
            assert a @ b > 0.9995 * np.linalg.norm(a) * np.linalg.norm(b)

    return check
