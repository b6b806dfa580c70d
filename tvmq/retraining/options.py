# SPDX-License-Identifier: Apache-2.0
"""What retraining can be told; free of torch, so that the command line can read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Method = Literal["scales", "ste", "pnr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainOptions:
    """One run.

    Attributes:
        method: ``scales`` trains scales, offsets, norms and biases; ``ste`` the weights too, straight through
            their codes; ``pnr`` the weights freely, with a projection every ``period`` steps (Chung et al.
            2020).
        phases: blocks or parts (``Emb``, ``Dec``, ``Enc``) in the order in which their quantization begins,
            each for an equal share of the run; empty quantizes all from the start.
        steps: optimizer steps at most.
        seconds: wall time at most; the learning rate ends at zero whichever limit comes first.
        batch_tokens: padded tokens a side in one step.
        lr: peak learning rate of weights (``ste``, ``pnr``), norms and biases.
        scale_lr: peak learning rate of scales and offsets.
        warmup: share of the run over which the learning rate rises.
        hard: weight of the cross-entropy with the reference beside the distillation loss, 0 to 1.
        period: steps between projections (``pnr``); for ``ste`` the scales are solved anew this often.
        eval_every: share of the run between evaluations on the development set.
        patience: evaluations without a better loss before the run stops.
        max_length: pairs with more tokens on a side are left out.
        device: ``cpu``, ``cuda`` or ``auto``.
        dtype: of the matrix products; master weights are float32.
        threads: on a CPU.
        seed: of the order of the data.
        state: file that keeps the whole state of the run; a run finds it there and goes on.
        save_seconds: time between two writes of it.
    """

    method: Method = "ste"
    phases: tuple[str, ...] = ()
    steps: int = 10_000
    seconds: float | None = None
    batch_tokens: int = 8192
    lr: float = 2e-4
    scale_lr: float = 2e-5
    warmup: float = 0.03
    hard: float = 0.1
    period: int = 0
    eval_every: float = 0.05
    patience: int = 20
    max_length: int = 128
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    threads: int | None = None
    seed: int = 0
    state: Path | None = None
    save_seconds: float = 300
