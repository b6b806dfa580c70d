# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU: FP32, or its dynamic int8 quantization of every weight matrix.

Settings that were the fastest: PyTorch's own export (opset 17, attention as plain products) without
``onnxruntime.transformers.optimizer`` (its attention node is a quarter slower at 128 tokens, and the rest of
what it fuses ONNX Runtime fuses by itself), all graph optimisations but SkipLayerNormalization, weights in
QInt8 over their full range (VNNI and AMX cannot overflow; QUInt8 weights miss the AMX products and take 8
times as long). A scale per channel costs no time and is much more exact than one per matrix. Static
quantization (QDQ) was slower and less exact.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .encoder_engines import Batch, EncoderSetup, pad
from .peer_onnxruntime import SLOWER_FUSIONS

OPSET = 17
EXAMPLE = ((2, 3, 4), (2, 3))
AXES = {0: "texts", 1: "tokens"}


def convert(setup: EncoderSetup, precision: str) -> Path:
    """Export the checkpoint, and quantize it for ``int8``, unless that was done before."""
    output = setup.converted(f"onnxruntime-{precision}")
    path = output / "model.onnx"
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        partial = output / "partial.onnx"
        if precision == "int8":
            _quantize(convert(setup, "fp32") / "model.onnx", partial)
        else:
            _export(setup, partial)
        partial.rename(path)
    return output


def _export(setup: EncoderSetup, path: Path) -> None:
    import torch

    from .encoder_pytorch import INPUTS, EncoderModule

    example = tuple(torch.from_numpy(array) for array in pad(EXAMPLE, setup.padding))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that graphs come out of slightly slower is newer
        torch.onnx.export(
            EncoderModule(setup, "eager"), example, path, input_names=INPUTS, output_names=("rows",),
            dynamic_axes={**dict.fromkeys(INPUTS, AXES), "rows": {0: "texts"}},
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def _quantize(source: Path, output: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises a preparation that changes nothing here
    quantize_dynamic(
        source, output, per_channel=True, weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip


class OnnxRuntimeEncoder:
    """One session of any batch shape."""

    def __init__(self, setup: EncoderSetup, *, precision: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = setup.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = ort.InferenceSession(
            convert(setup, precision) / "model.onnx", options, providers=["CPUExecutionProvider"],
            disabled_optimizers=SLOWER_FUSIONS,
        )  # fmt: skip
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._padding = setup.padding

    def run(self, batch: Batch) -> NDArray[np.float32]:
        feeds = dict(zip(self._inputs, pad(batch, self._padding), strict=True))
        return self._session.run(None, feeds)[0]
