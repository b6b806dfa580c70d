# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches without end, a learning rate by progress, evaluations, a resumable state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tvmq.options import Progress, no_progress
from tvmq.samples import Batch, Samples, batch_rows

from . import state
from .development import Development
from .objective import TensorBatch, losses
from .options import RetrainOptions
from .weights import StudentWeights

CLIP = 1.0
"""Largest gradient norm."""
BETAS = (0.9, 0.98)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        step: optimizer steps taken.
        seconds: wall time of the run, over all its parts.
        train_loss: mean over the steps since the last evaluation; None before any.
        divergence, cross_entropy: on the development set, nats per token.
        bleu: greedy search on the development set.
    """

    step: int
    seconds: float
    train_loss: float | None
    divergence: float
    cross_entropy: float
    bleu: float

    def objective(self, hard: float) -> float:
        """What is minimised."""
        return (1 - hard) * self.divergence + hard * self.cross_entropy


@dataclass(slots=True, kw_only=True)
class _Run:
    """Where a run stands; everything in it is saved."""

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    worse: int = 0
    phase: int = 0
    next_eval: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def evaluated(self) -> bool:
        """No step was taken since the last evaluation."""
        return bool(self.history) and self.history[-1]["step"] == self.step


def train(
    teacher: Any,
    student: Any,
    weights: StudentWeights,
    samples: Samples,
    development: Development,
    options: RetrainOptions,
    identity: Mapping[str, Any],
    *,
    progress: Progress = no_progress,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
) -> list[Evaluation]:
    """Train ``weights`` in place; the best ones by the development loss are left in it.

    Args:
        teacher: whole-sentence module in the compute dtype and on the device.
        student: a module like the teacher, whose parameters are replaced in every step.
        weights: what is trained, on the device.
        samples: training pairs.
        development: the set that decides which weights are best.
        options: of the run.
        identity: facts that tell this run from others in a saved state.
        progress: called after every step.
        on_evaluation: called after every evaluation.

    Returns: the evaluations; the first is before any step.
    """
    trainer = _Trainer(teacher, student, weights, development, options)
    best = _copy(weights)
    run = _Run()
    if options.state is not None and options.state.exists():
        best, facts = state.restore(options.state, weights, trainer.optimizer, identity)
        run = _Run(**{key: facts[key] for key in asdict(run)})
        weights.phase = run.phase
    feed = _endless(samples, options, teacher.config.pad_id, run.step)

    def save() -> None:
        if options.state is not None:
            state.save(options.state, weights, best, trainer.optimizer, {**identity, **asdict(run)})

    began, before = time.perf_counter(), run.seconds
    saved, total, count = began, 0.0, 0

    def share() -> float:
        run.seconds = before + time.perf_counter() - began
        return min(1.0, max(run.step / options.steps, run.seconds / (options.seconds or math.inf)))

    try:
        while True:
            done = share()
            if not run.evaluated and (done >= run.next_eval or done >= 1):
                mean = float(total) / count if count else None
                found = trainer.evaluate(run.step, run.seconds, mean)
                total, count = 0.0, 0
                run.history.append(asdict(found))
                if _better(found, run, weights.phase, options):
                    best = _copy(weights)
                done = share()  # where evaluations are slow, training gets its time between them all the same
                run.next_eval = done + options.eval_every
                on_evaluation(found)
            if run.evaluated and (done >= 1 or run.worse >= options.patience):
                break
            run.step += 1
            total = total + trainer.step(next(feed), run.step, done)
            count += 1
            progress("retrain", int(1000 * done), 1000)
            if time.perf_counter() - saved > options.save_seconds:
                saved = time.perf_counter()
                save()
    except KeyboardInterrupt:
        save()
        raise
    weights.load_state_dict(best)
    return [Evaluation(**entry) for entry in run.history]


def _better(found: Evaluation, run: _Run, phase: int, options: RetrainOptions) -> bool:
    """Whether ``found`` is the best so far; keeps count of those that are not."""
    value = found.objective(options.hard)
    if phase == run.phase and run.best is not None and value >= run.best:
        run.worse += 1
        return False
    # in an earlier phase less was quantized: its best does not count
    run.phase, run.best, run.worse = phase, value, 0
    return True


class _Trainer:
    """One optimizer step and one evaluation."""

    def __init__(
        self,
        teacher: Any,
        student: Any,
        weights: StudentWeights,
        development: Development,
        options: RetrainOptions,
    ) -> None:
        self._teacher, self._student, self._weights = teacher, student, weights
        self._development, self._options = development, options
        for parameter in student.parameters():
            parameter.requires_grad_(False)
        first = next(teacher.parameters())
        self._device, self._dtype = first.device, first.dtype
        groups = [
            {"params": [*weights.latents(), *weights.floats.parameters()], "peak": options.lr},
            {"params": weights.scales(), "peak": options.scale_lr},
        ]
        self.optimizer = torch.optim.Adam(
            [group for group in groups if group["params"]], lr=0.0, betas=BETAS, fused=True
        )

    def step(self, batch: Batch, step: int, done: float) -> Tensor:
        """Update number ``step``; ``done`` is the share of the run that lies behind. Returns the loss."""
        options = self._options
        self._enter_phase(done)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(done, options.warmup)
        on_device = TensorBatch.of(batch, self._device)
        with torch.no_grad():
            target = self._teacher(*on_device.inputs)
        logits = functional_call(self._student, self._weights(self._dtype), on_device.inputs)
        divergence, cross_entropy = losses(logits, target, on_device)
        loss = (1 - options.hard) * divergence + options.hard * cross_entropy
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights.parameters(), CLIP)
        self.optimizer.step()
        if options.period and step % options.period == 0:
            self._weights.project()
        return loss.detach()

    def evaluate(self, step: int, seconds: float, train_loss: float | None) -> Evaluation:
        """Scores of the weights as they would ship."""
        if self._options.method == "pnr":
            self._weights.project()
        with torch.no_grad():  # detached: assigning would switch off the gradients of shared parameters
            now = {name: weight.detach() for name, weight in self._weights(self._dtype).items()}
        self._student.load_state_dict(now, strict=False, assign=True)
        tokens, device = self._options.batch_tokens, self._device
        found = self._development.loss(
            self._student, self._teacher, tokens, self._teacher.config.pad_id, device
        )
        return Evaluation(
            step=step,
            seconds=round(seconds, 1),
            train_loss=train_loss,
            divergence=found[0],
            cross_entropy=found[1],
            bleu=self._development.bleu(self._student, tokens, device),
        )

    def _enter_phase(self, done: float) -> None:
        phase = min(int(done * len(self._options.phases)), max(0, len(self._options.phases) - 1))
        if phase != self._weights.phase:
            self._weights.phase = phase
            self._weights.project()


def _schedule(done: float, warmup: float) -> float:
    """Linear rise, then half a cosine down to zero."""
    return min(1.0, (done + 1e-4) / max(warmup, 1e-4)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _copy(weights: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.state_dict().items()}


def _endless(samples: Samples, options: RetrainOptions, pad_id: int, skip: int) -> Iterator[Batch]:
    """Batches of epoch after epoch, one made ahead; the order depends on the seed alone."""
    lengths = samples.lengths()

    def rows() -> Iterator[Any]:
        epoch, left = 0, skip
        while True:
            groups = batch_rows(lengths, options.batch_tokens, seed=options.seed + epoch)
            yield from groups[left:]
            left, epoch = max(0, left - len(groups)), epoch + 1

    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for group in rows():
            following = pool.submit(samples.batch, group, pad_id)
            if ahead is not None:
                yield ahead.result()
            ahead = following
