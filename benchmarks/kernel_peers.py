# SPDX-License-Identifier: Apache-2.0
"""One linear layer on other runtimes: each gives seconds per call of x[m, k] @ W.T, one thread or several."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Run = Callable[[int], float]
BLOCK = 128


def peers(weight: NDArray[np.float32], m: int, threads: int) -> Iterator[tuple[str, Run]]:
    """Name and timer of every peer that is installed and takes this shape."""
    x = np.random.default_rng(1).standard_normal((m, weight.shape[1]), np.float32)
    makers: dict[str, Callable[[], Run]] = {
        "ONNX Runtime 2-bit": lambda: onnx_bits(weight, x, 2, threads),
        "ONNX Runtime 4-bit": lambda: onnx_bits(weight, x, 4, threads),
        "ONNX Runtime int8": lambda: onnx_int8(weight, x, threads),
        "OpenVINO int8": lambda: openvino_bits(weight, x, "u8", threads),
        "OpenVINO 4-bit": lambda: openvino_bits(weight, x, "u4", threads),
        "PyTorch FP32": lambda: torch_float(weight, x, threads),
        "PyTorch int8": lambda: torch_int8(weight, x, threads),
    }
    for name, make in makers.items():
        try:
            run = make()
        except ImportError:
            continue
        run(1)
        yield name, run


def timed(call: Callable[[], object]) -> Run:
    """Seconds per call of a loop around ``call``."""

    def run(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - start) / number

    return run


def _session(model: bytes, x: NDArray[np.float32], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    return timed(lambda: session.run_with_iobinding(binding))


def onnx_bits(weight: NDArray[np.float32], x: NDArray[np.float32], bits: int, threads: int) -> Run:
    """MatMulNBits in blocks of 128 columns, accuracy level 4 (int8 activations)."""
    from onnx import TensorProto, helper, numpy_helper

    from .onnx_graph import CONTRIB, Precision, pack

    n, k = weight.shape
    packed = pack(weight, Precision(bits=bits, block=BLOCK))
    node = helper.make_node(
        "MatMulNBits",
        ["x", "keys", "scales"],
        ["y"],
        domain=CONTRIB,
        K=k,
        N=n,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n])],
        [numpy_helper.from_array(packed.keys, "keys"), numpy_helper.from_array(packed.scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return _session(model.SerializeToString(), x, threads)


def onnx_int8(weight: NDArray[np.float32], x: NDArray[np.float32], threads: int) -> Run:
    """DynamicQuantizeLinear, MatMulInteger, scale: what its dynamic quantization makes of a linear."""
    from onnx import TensorProto, helper, numpy_helper


    n, k = weight.shape
    scale = np.float32(np.abs(weight).max() / 127)
    levels = np.ascontiguousarray(np.rint(weight.T / scale).astype(np.int8))
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz", "wz"], ["yi"]),
        helper.make_node("Cast", ["yi"], ["yf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "ws"], ["s"]),
        helper.make_node("Mul", ["yf", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, n])],
        [
            numpy_helper.from_array(levels, "w"),
            numpy_helper.from_array(np.array(0, np.int8), "wz"),
            numpy_helper.from_array(np.array(scale, np.float32), "ws"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return _session(model.SerializeToString(), x, threads)


def openvino_bits(weight: NDArray[np.float32], x: NDArray[np.float32], kind: str, threads: int) -> Run:
    """Levels minus a zero point, times a scale a row, as its weight compression writes them."""
    import openvino
    from openvino import opset13 as ops

    top = 255 if kind == "u8" else 15
    scale = (np.abs(weight).max(axis=1, keepdims=True) * 2 / top).astype(np.float32)
    middle = (top + 1) // 2
    levels = np.clip(np.rint(weight / scale) + middle, 0, top).astype(np.uint8)
    dtype = openvino.Type.u8 if kind == "u8" else openvino.Type.u4
    shape = list(levels.shape)
    packed = levels if kind == "u8" else levels[:, 0::2] | levels[:, 1::2] << 4
    tensor = openvino.Tensor(packed, shape, dtype)
    stored = ops.convert(ops.constant(tensor), "f32")
    matrix = ops.multiply(ops.subtract(stored, np.float32(middle)), scale)
    source = ops.parameter([x.shape[0], x.shape[1]], np.float32, "x")
    model = openvino.Model([ops.matmul(source, matrix, False, True)], [source])
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return timed(request.infer)


def torch_float(weight: NDArray[np.float32], x: NDArray[np.float32], threads: int) -> Run:
    """torch.nn.functional.linear."""
    import torch

    torch.set_num_threads(threads)
    w, a = torch.from_numpy(weight), torch.from_numpy(x)

    def call() -> None:
        with torch.inference_mode():
            torch.nn.functional.linear(a, w)

    return timed(call)


def torch_int8(weight: NDArray[np.float32], x: NDArray[np.float32], threads: int) -> Run:
    """PyTorch's dynamic int8 linear."""
    import torch

    torch.set_num_threads(threads)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = torch.from_numpy(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor at every call
        layer = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(linear).eval(), {torch.nn.Linear}, dtype=torch.qint8
        )
    a = torch.from_numpy(x)

    def call() -> None:
        with torch.inference_mode():
            layer(a)

    return timed(call)
