# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime with MatMulNBits weights (or FP32): encoder once, decoder step with cache in a loop.

Settings that were the fastest on CPU: block 128, accuracy level 4 (int8 activations), all graph
optimisations but the fusion into SkipLayerNormalization, spinning threads, memory bound in place.
"""

from __future__ import annotations

from pathlib import Path

from .engines import Setup

BITS = {"2bit": 2, "4bit": 4, "fp32": 32}
SLOWER_FUSIONS = ["SkipLayerNormFusion"]


def convert(setup: Setup, precision: str) -> Path:
    """Export the checkpoint unless it was done before."""
    output = setup.converted(f"onnxruntime-{precision}")
    if not (output / "beam.onnx").exists():
        from .onnx_export import MarianExport
        from .onnx_graph import Precision

        MarianExport(setup.model, output, Precision(bits=BITS[precision])).write()
    return output


class OnnxRuntimeEngine:
    """Three sessions over one weight file; the decoder sessions are created when first used."""

    def __init__(self, setup: Setup, *, precision: str, lut: bool) -> None:
        import onnxruntime as ort

        from .onnx_search import Tokens

        self._folder = convert(setup, precision)
        options = ort.SessionOptions()
        options.intra_op_num_threads = setup.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        if lut:
            options.add_session_config_entry("mlas.use_lut_gemm", "1")
        self._options = options
        self._encoder = self.session("encoder")
        self._outputs = [output.name for output in self._encoder.get_outputs()]
        self._steps = {}
        config = setup.config
        self._tokens = Tokens(
            start=int(str(config["decoder_start_token_id"])),
            eos=int(str(config["eos_token_id"])),
            vocabulary=int(str(config["vocab_size"])),
            layers=int(str(config["decoder_layers"])),
            heads=int(str(config["decoder_attention_heads"])),
            width=int(str(config["d_model"])),
        )

    def session(self, graph: str):  # noqa: ANN201  (onnxruntime is imported inside functions only)
        import onnxruntime as ort

        return ort.InferenceSession(
            self._folder / f"{graph}.onnx", self._options, providers=["CPUExecutionProvider"],
            disabled_optimizers=SLOWER_FUSIONS,
        )  # fmt: skip

    def translate(self, source: list[int], *, beams: int, forced: int | None) -> list[int]:
        import numpy as np
        import onnxruntime as ort

        from .onnx_search import MAX_STEPS, Step, beam, greedy

        if beams not in self._steps:
            self._steps[beams] = Step(self.session("beam" if beams > 1 else "greedy"), self._tokens, beams)
        step = self._steps[beams]
        ids = ort.OrtValue.ortvalue_from_numpy(np.array([source], np.int64))
        values = self._encoder.run_with_ort_values(self._outputs, {"ids": ids})
        step.attend(dict(zip(self._outputs, values, strict=True)))
        search = beam if beams > 1 else greedy
        return search(step, self._tokens, forced or MAX_STEPS - 1, forced=forced is not None)
