# SPDX-License-Identifier: Apache-2.0
"""From a model folder and a plan to a coded checkpoint: read, quantize, write. ``tvmq quantize`` is this."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan
from schedules.packing import BitPlanes, WordPlanes

from .calibration import Calibration, word_counts
from .checkpoint import Checkpoint
from .coded_checkpoint import coded_folder, fill_coded, narrowed
from .errors import UsageError
from .families import TensorInfo, get_family
from .options import Progress, no_progress
from .quantization import quantize_model
from .size import FLOAT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """A coded checkpoint that was written.

    Attributes:
        output: the folder.
        bits_per_weight: every bit of planes, scales, offsets and orders, over the weights of the matrices.
        size_bytes: all stored tensors, biases and norms included.
        fp32_bytes: the same parameters in FP32.
        seconds: how long it took.
    """

    output: Path
    bits_per_weight: float
    size_bytes: int
    fp32_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        """How many times smaller than FP32."""
        return self.fp32_bytes / self.size_bytes

    def to_json(self) -> dict[str, Any]:
        """The object that ``tvmq quantize --json`` prints, with the keys of ``tvmq compile``."""
        return {
            "output": str(self.output),
            "seconds": round(self.seconds, 2),
            "bits_per_weight": round(self.bits_per_weight, 4),
            "size_bytes": self.size_bytes,
            "fp32_bytes": self.fp32_bytes,
            "ratio": round(self.ratio, 3),
        }


def quantize_checkpoint(
    model: Path,
    output: Path,
    *,
    plan: BitPlan,
    frequencies: NDArray[np.integer] | None = None,
    calibration: Calibration | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> QuantizeReport:
    """Quantize a model folder into a coded checkpoint.

    Args:
        model: Hugging Face folder (config.json, safetensors, tokenizer files).
        output: folder to write; it appears complete or not at all.
        plan: bits of every tensor.
        frequencies: occurrences of each word, for bits by word; by default those in the model folder
            or of the calibration.
        calibration: of this model, for quantizers that go by it.
        force: replace an existing coded checkpoint.
        progress: told of every phase.

    Raises:
        TvmqError: model, plan or output cannot be used.
    """
    start = time.perf_counter()
    with coded_folder(output, model, force) as staging:
        progress("read", 0, 1)
        checkpoint = Checkpoint.open(model)
        if checkpoint.plan is not None:
            raise UsageError(
                f"{model} is a coded checkpoint already; compile it, or quantize the float model it came from"
            )
        if plan.mode != "float":
            raise UsageError(
                f"weights of mode {plan.mode} are made when compiling; give the plan to tvmq compile"
            )
        family = get_family(checkpoint.config)
        infos = family.tensors(family.read_config(checkpoint.config))
        plan.validate({info.name: info.shape for info in infos})
        stored = family.sources(checkpoint)  # refuses what does not fit
        progress("read", 1, 1)
        counts = word_counts(checkpoint, frequencies, calibration)
        planes = quantize_model(checkpoint, plan, counts, progress, calibration)
        progress("write", 0, 1)
        rest = {name: place for name, place in sorted(stored.items()) if name not in planes}
        floats = {name: narrowed(name, checkpoint.tensor(place)) for name, place in rest.items()}
        fill_coded(staging, model=model, plan=plan, planes=planes, floats=floats)
        progress("write", 1, 1)
    return _report(output, infos, planes, floats, time.perf_counter() - start)


def _report(
    output: Path,
    infos: list[TensorInfo],
    planes: Mapping[str, BitPlanes | WordPlanes],
    floats: Mapping[str, NDArray[np.floating]],
    seconds: float,
) -> QuantizeReport:
    weights = sum(math.prod(info.shape) for info in infos)
    others = [value for name, value in floats.items() if name not in {info.name for info in infos}]
    size = sum(value.nbytes for value in planes.values()) + sum(value.nbytes for value in floats.values())
    return QuantizeReport(
        output=output,
        bits_per_weight=(size - sum(value.nbytes for value in others)) * 8 / weights,
        size_bytes=size,
        fp32_bytes=FLOAT_BYTES * (weights + sum(value.size for value in others)),
        seconds=seconds,
    )
