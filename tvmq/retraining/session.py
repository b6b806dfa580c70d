# SPDX-License-Identifier: Apache-2.0
"""From a model folder, a plan and parallel text to a coded checkpoint: one retraining run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relay_passes.bit_plan import BitPlan, plan_hash
from schedules.packing import BitPlanes, WordPlanes
from tvmq.calibration import calibration_of
from tvmq.checkpoint import Checkpoint
from tvmq.coded_checkpoint import coded_folder, fill_coded
from tvmq.errors import InputError, MissingToolError, UsageError
from tvmq.families import translation_family
from tvmq.heap import keep_freed_memory
from tvmq.model_plan import plan_model
from tvmq.options import PlanOptions, Progress, no_progress
from tvmq.quantization import quantize_model
from tvmq.samples import read_samples
from tvmq.store import sha256_file

from .development import Development
from .loop import Evaluation, train
from .options import RetrainOptions
from .weights import StudentWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where training starts: a plan with codes for it.

    Attributes:
        plan: bits of every matrix.
        planes: codes and scales by name.
        latents: float32 weights behind the codes, by name.
        floats: the other parameters by name; those not in it come from the model.
    """

    plan: BitPlan
    planes: Mapping[str, BitPlanes | WordPlanes]
    latents: Mapping[str, NDArray[np.float32]]
    floats: Mapping[str, NDArray[np.float32]]

    @classmethod
    def from_coded(cls, folder: Path, names: list[str]) -> Start:
        """From a coded checkpoint: its codes, and as weights what they stand for."""
        checkpoint = Checkpoint.open(folder)
        plan = checkpoint.plan
        if plan is None:
            raise InputError(f"{folder}: not a coded checkpoint; make one with tvmq quantize")
        planes = {}
        for entry in plan.entries():
            coded = checkpoint.planes(entry.tensor)
            if coded is not None:
                planes[entry.tensor] = coded
        stored = set(checkpoint.names())
        return cls(
            plan=plan,
            planes=planes,
            latents={name: coded.dequantize() for name, coded in planes.items()},
            floats={name: checkpoint.tensor(name) for name in names if name in stored - planes.keys()},
        )


def start_from(
    given: Path | PlanOptions, calibration: Path | None
) -> Callable[[Checkpoint, list[str]], Start]:
    """How to start: from a coded checkpoint, or from FP32 weights and the codes of a plan."""

    def start(checkpoint: Checkpoint, names: list[str]) -> Start:
        if isinstance(given, Path):
            if calibration is not None:
                raise UsageError("--start brings its own codes; leave out --calibration")
            return Start.from_coded(given, names)
        planned = plan_model(checkpoint.path, given)
        counts = checkpoint.frequencies() if planned.frequencies is None else planned.frequencies
        measured = calibration_of(checkpoint.path, calibration, planned.plan)
        planes = quantize_model(checkpoint, planned.plan, counts, calibration=measured)
        latents = {name: checkpoint.tensor(name) for name in planes}
        return Start(plan=planned.plan, planes=planes, latents=latents, floats={})

    return start


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainReport:
    """A finished run: where its checkpoint is, and its evaluations (the first before any step)."""

    output: Path
    evaluations: tuple[Evaluation, ...]
    best: Evaluation
    options: RetrainOptions

    def to_json(self) -> dict[str, Any]:
        """The object that ``tvmq retrain --json`` prints."""
        return {
            "output": str(self.output),
            "steps": self.evaluations[-1].step,
            "seconds": self.evaluations[-1].seconds,
            "before": asdict(self.evaluations[0]),
            "best": asdict(self.best),
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
        }


def retrain_model(
    model: Path,
    output: Path,
    *,
    start: Callable[[Checkpoint, list[str]], Start],
    data: Path,
    dev: Path,
    dev_limit: int | None = None,
    options: RetrainOptions,
    force: bool = False,
    progress: Progress = no_progress,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
) -> RetrainReport:
    """Distil the FP32 model into its quantized form; see ``RetrainOptions``.

    Args:
        model: the FP32 model folder, the teacher.
        output: coded checkpoint to write; it appears complete or not at all.
        start: called with the checkpoint and the names of the model's parameters.
        data: training pairs, ``source TAB target`` lines, plain or .xz.
        dev: development pairs, never trained on.
        dev_limit: only the first of them.
        options: of the run.
        force: replace an existing coded checkpoint.
        progress: called often.
        on_evaluation: called after every evaluation.

    Raises:
        TvmqError: anything given cannot be used.
    """
    if options.method == "pnr" and not options.period:
        raise UsageError("pnr needs the steps between two projections: give --period, such as 500")
    device = pick_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with coded_folder(output, model, force) as staging:
        checkpoint = Checkpoint.open(model)
        family = translation_family(checkpoint.config, "tvmq retrain")
        loaded = family.load(checkpoint)
        dtype = getattr(torch, options.dtype)
        teacher, student = (
            family.whole(family.load(checkpoint)).to(device=device, dtype=dtype) for _ in range(2)
        )
        begin = start(checkpoint, [name for name, _ in teacher.named_parameters()])
        progress("read text", 0, 1)
        development = Development.read(model, dev, dev_limit)
        longest = min(options.max_length, teacher.config.max_positions)
        samples = read_samples(model, data, max_length=longest)
        progress("read text", 1, 1)
        state = {name: tensor for name, tensor in loaded.state_dict().items() if name not in begin.planes}
        trained = {
            name: _float(begin.floats, state[name], name)
            for name, _ in teacher.named_parameters()
            if name in state
        }
        phases = _phases(begin.plan, options.phases)
        weights = StudentWeights(begin.latents, begin.planes, trained, begin.plan, options.method, phases).to(
            device
        )
        identity = {
            "model": checkpoint.sha256,
            "plan": plan_hash(begin.plan),
            "data": sha256_file(data),
            "options": hashlib.sha256(repr(_of_run(options)).encode()).hexdigest(),
        }
        evaluations = train(
            teacher,
            student,
            weights,
            samples,
            development,
            options,
            identity,
            progress=progress,
            on_evaluation=on_evaluation,
        )
        fixed = (state.keys() - trained.keys()) & set(checkpoint.names())
        kept = {name: checkpoint.tensor(name) for name in sorted(fixed)}
        after = {name: _half(weights.floats[key]) for name, key in weights.float_names.items()}
        fill_coded(staging, model=model, plan=begin.plan, planes=weights.planes(), floats={**kept, **after})
    best = min(evaluations, key=lambda evaluation: evaluation.objective(options.hard))
    return RetrainReport(output=output, evaluations=tuple(evaluations), best=best, options=options)


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU where PyTorch sees one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingToolError(
            "PyTorch sees no CUDA device here (use --device cpu, or install its CUDA build)"
        )
    return torch.device(name)


def _phases(plan: BitPlan, names: tuple[str, ...]) -> list[list[str]]:
    """Blocks of every phase: names of blocks, or the part before their underscore."""
    blocks = sorted({entry.block for entry in plan.entries()})
    phases = [[b for b in blocks if b == name or b.startswith(f"{name}_")] for name in names]
    for name, found in zip(names, phases, strict=True):
        if not found:
            raise UsageError(f"no block is called {name}; this model has {', '.join(blocks)}")
    return phases


def _of_run(options: RetrainOptions) -> tuple[Any, ...]:
    """What a continued run must share with the one that wrote its state."""
    free = {"device", "threads", "state", "save_seconds"}
    return tuple(sorted((key, str(value)) for key, value in asdict(options).items() if key not in free))


def _float(given: Mapping[str, NDArray[np.float32]], loaded: Tensor, name: str) -> Tensor:
    return torch.from_numpy(np.array(given[name], np.float32)) if name in given else loaded.float()


def _half(values: Tensor) -> NDArray[np.float32]:
    """Rounded to float16, in which vectors are stored where that is exact: half their bytes."""
    return values.detach().cpu().numpy().astype(np.float16).astype(np.float32)
