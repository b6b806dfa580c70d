# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU: FP32, BF16, or int8 by NNCF's post-training quantization.

Settings that were the fastest: latency hint, one stream, the performance preset with the transformer model
type (products of attention in int8 too), and a model of fixed shape for each batch shape known beforehand
(about 10 % faster than the dynamic one at 8 tokens, 5 at 128). BF16 between int8 products gains nothing;
weight-only int8 with dynamic quantization is 2 to 3 times slower at 32 and 128 tokens.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoder_engines import Batch, EncoderSetup, pad

HINT = {"int8": "f32", "fp32": "f32", "bf16": "bf16"}
EXAMPLE = ((2, 3, 4), (2, 3))


def convert(setup: EncoderSetup, precision: str) -> Path:
    """Convert the checkpoint, and quantize it for ``int8``, unless that was done before."""
    int8 = precision == "int8"
    # BF16 is the FP32 model, run otherwise.
    output = setup.calibrated("openvino-int8") if int8 else setup.converted("openvino-fp32")
    if not (output / "model.xml").exists():
        import openvino

        model = _float_model(setup)
        if int8:
            model = _quantized(model, setup)
        # The file with the name that is looked for comes last.
        openvino.save_model(model, output / "partial.xml", compress_to_fp16=False)
        (output / "partial.bin").rename(output / "model.bin")
        (output / "partial.xml").rename(output / "model.xml")
    return output


def _float_model(setup: EncoderSetup) -> Any:
    import openvino
    import torch

    from .encoder_pytorch import INPUTS, EncoderModule

    example = [torch.from_numpy(array) for array in pad(EXAMPLE, setup.padding)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: nothing here depends on the example's shape
        model = openvino.convert_model(EncoderModule(setup), example_input=example)
    for port, name in zip(model.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    model.reshape(dict.fromkeys(INPUTS, openvino.PartialShape([-1, -1])))
    return model


def _quantized(model: Any, setup: EncoderSetup) -> Any:
    import nncf

    from .encoder_pytorch import INPUTS

    if not setup.calibration:
        raise ValueError("openvino-int8 quantizes activations beforehand and needs calibration texts")
    texts = [dict(zip(INPUTS, pad([ids], setup.padding), strict=True)) for ids in setup.calibration]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(texts),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(texts),
        )


class OpenVinoEncoder:
    """Compiled models: one for each known shape, and one for all others, made when first needed."""

    def __init__(self, setup: EncoderSetup, *, precision: str) -> None:
        import openvino

        self._core = openvino.Core()
        self._path = convert(setup, precision) / "model.xml"
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": setup.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": HINT[precision],
        }
        self._padding = setup.padding
        self._known = set(setup.shapes)
        self._requests: dict[tuple[int, int] | None, Any] = {}

    def run(self, batch: Batch) -> NDArray[np.float32]:
        inputs = pad(batch, self._padding)
        texts, tokens = inputs[0].shape
        shape = (texts, tokens) if (texts, tokens) in self._known else None
        if shape not in self._requests:
            self._requests[shape] = self._compiled(shape)
        found = self._requests[shape].infer(list(inputs), share_inputs=True, share_outputs=True)
        return np.array(found[0])  # the request's own buffer: the next batch would overwrite it

    def _compiled(self, shape: tuple[int, int] | None) -> Any:
        model = self._core.read_model(self._path)
        if shape is not None:
            model.reshape({port: list(shape) for port in model.inputs})
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()
