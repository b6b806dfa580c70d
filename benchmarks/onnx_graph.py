# SPDX-License-Identifier: Apache-2.0
"""A small ONNX graph writer: nodes, shared external weights, float or MatMulNBits linears.

Used by ``onnx_export`` to write encoder and decoder graphs that read one weight file, so that the
embedding table is stored once, whatever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

CONTRIB = "com.microsoft"
WEIGHT_FILE = "weights.bin"
FLOAT_BITS = 32
ALIGNMENT = 64
INLINE_BYTES = 256
"""Smaller constants stay inside the graph, where shape inference needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Weight format of every linear and of the embedding: 2, 4 or 8 bits in blocks, or FP32."""

    bits: int
    block: int = 128
    accuracy_level: int = 4


@dataclass(frozen=True, slots=True)
class Packed:
    """One matrix [n, k] in MatMulNBits' format: keys [n, k/block, block*bits/8], scales [n, k/block]."""

    keys: NDArray[np.uint8]
    scales: NDArray[np.float32]


def pack(weight: NDArray[np.float32], precision: Precision) -> Packed:
    """Quantize ``weight`` [n, k] with ONNX Runtime's own symmetric block quantizer."""
    from onnxruntime.capi import _pybind_state as native

    rows, columns = weight.shape
    blocks = -(-columns // precision.block)
    keys = np.zeros((rows, blocks, precision.block * precision.bits // 8), np.uint8)
    scales = np.zeros((rows, blocks), np.float32)
    unused_zero_points = np.zeros((rows, -(-blocks * precision.bits // 8)), np.uint8)
    quantize = getattr(native, f"quantize_matmul_{precision.bits}bits")
    transposed = np.ascontiguousarray(weight.T)
    quantize(keys, transposed, scales, unused_zero_points, precision.block, rows, columns, True)
    return Packed(keys, scales)


class WeightFile:
    """Appends arrays to one file; the same name is written once and can be used by several graphs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self.tensors: dict[str, TensorProto] = {}

    def tensor(self, name: str, array: NDArray[Any]) -> TensorProto:
        if name in self.tensors:
            return self.tensors[name]
        array = np.ascontiguousarray(array)
        if array.nbytes <= INLINE_BYTES:
            self.tensors[name] = onnx.numpy_helper.from_array(array, name)
            return self.tensors[name]
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        proto = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        proto.dims.extend(array.shape)
        proto.data_location = TensorProto.EXTERNAL
        location = {"location": self.path.name, "offset": self._file.tell(), "length": array.nbytes}
        for key, value in location.items():
            proto.external_data.add(key=key, value=str(value))
        self._file.write(array.tobytes())
        self.tensors[name] = proto
        return proto

    def close(self) -> None:
        self._file.close()


@dataclass
class Graph:
    """One ONNX graph being written; methods return the names of the values they make."""

    weights: WeightFile
    precision: Precision
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.initializers[name] = self.weights.tensor(name, array)
        return name

    def input(self, name: str, dtype: int, shape: list[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: list[int | str]) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def call(self, op: str, *inputs: str, out: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one result, named ``out`` or by number."""
        outs = [out or f"v{len(self.nodes)}"]
        return self.call_many(op, *inputs, outs=outs, domain=domain, **attributes)[0]

    def call_many(
        self, op: str, *inputs: str, outs: list[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        name = f"n{len(self.nodes)}_{op}"
        self.nodes.append(helper.make_node(op, inputs, outs, name=name, domain=domain, **attributes))
        return outs

    def linear(
        self, x: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32], out: str = ""
    ) -> str:
        """``x @ weight.T + bias``, weight [n, k]."""
        n, k = weight.shape
        bias_name = self.constant(f"{name}.bias", bias)
        if self.precision.bits == FLOAT_BITS:
            matrix = self.constant(f"{name}.weight_t", weight.T)
            return self.call("Add", self.call("MatMul", x, matrix), bias_name, out=out)
        keys, scales = self._packed(name, weight)
        return self.call(
            "MatMulNBits", x, keys, scales, "", "", bias_name, out=out, domain=CONTRIB, K=k, N=n,
            bits=self.precision.bits, block_size=self.precision.block,
            accuracy_level=self.precision.accuracy_level,
        )  # fmt: skip

    def embed(self, ids: str, name: str, weight: NDArray[np.float32]) -> str:
        """Rows ``ids`` of ``weight`` [v, k]; quantized tables share their bytes with ``linear``."""
        if self.precision.bits == FLOAT_BITS:
            table = self.call("Transpose", self.constant(f"{name}.weight_t", weight.T), perm=[1, 0])
            return self.call("Gather", table, ids, axis=0)
        keys, scales = self._packed(name, weight)
        table = self.call("Reshape", keys, self.ints(weight.shape[0], -1))
        return self.call(
            "GatherBlockQuantized", table, ids, scales, domain=CONTRIB,
            bits=self.precision.bits, block_size=self.precision.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _packed(self, name: str, weight: NDArray[np.float32]) -> tuple[str, str]:
        keys, scales = f"{name}.keys", f"{name}.scales"
        if keys not in self.weights.tensors:
            packed = pack(weight, self.precision)
            self.weights.tensor(keys, packed.keys)
            self.weights.tensor(scales, packed.scales)
        for key in (keys, scales):
            self.initializers[key] = self.weights.tensors[key]
        return keys, scales

    def save(self, path: Path) -> None:
        graph = helper.make_graph(
            self.nodes, path.stem, self.inputs, self.outputs, list(self.initializers.values())
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
        path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
