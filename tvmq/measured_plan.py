# SPDX-License-Identifier: Apache-2.0
"""``tvmq plan``: a model folder and a budget in; calibration, sensitivities, the best plan and a report out.

Every step's result can be kept as a file and given back instead of the step.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, check_percent

from .allocated_plan import Allocation, Budget, allocate
from .allocation_report import AllocationReport
from .block_bleu import measure_block_bleu
from .block_scores import BlockScores
from .calibration import Calibration, calibrate, word_counts
from .checkpoint import Checkpoint, read_frequencies
from .errors import UsageError
from .families import TensorInfo, get_family
from .fisher_estimate import estimate_sensitivities
from .model_plan import other_params, report_plan
from .options import AllocationOptions, Progress, no_progress
from .planning import overridden_bits
from .quantizers import quantizer_names
from .samples import Samples
from .sensitivity import measure_sensitivities
from .sensitivity_table import Coding, Sensitivities
from .size import FLOAT_BYTES
from .tasks import get_task
from .timing import Timing, timing_of

CALIBRATION_SENTENCES = 500
COUNTED_LINES = 50_000
"""Lines of the calibration text whose words are counted where the model folder has no counts."""
CALIBRATION_SUFFIX = ".safetensors"
"""A calibration of this suffix is a finished one, any other is text."""


def allocate_model(
    model: Path, options: AllocationOptions, progress: Progress = no_progress
) -> AllocationReport:
    """Calibrate, measure and solve, as far as ``options`` ask for.

    Raises:
        InputError: the model, the text or a file of an earlier run cannot be used.
        UsageError: options that contradict each other, or a budget that cannot be kept.
        MissingToolError: torch, joblib or scipy is not installed.
    """
    _check(options)
    checkpoint = Checkpoint.open(model)
    family = get_family(checkpoint.config)
    tensors = family.tensors(family.read_config(checkpoint.config))
    with tempfile.TemporaryDirectory(prefix="tvmq-plan-") as scratch:
        calibration = _calibration(model, options, Path(scratch), progress)
        if not (_has_budget(options) or options.save_sensitivities or options.bleu):
            return AllocationReport()
        run = _Run(
            model=model,
            checkpoint=checkpoint,
            tensors=tensors,
            options=options,
            fixed=overridden_bits(tensors, options.overrides),
            frequencies=_frequencies(checkpoint, options, calibration),
            calibration=calibration,
            progress=progress,
        )
        return run.report()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Everything that stays the same from one round to the next."""

    model: Path
    checkpoint: Checkpoint
    tensors: list[TensorInfo]
    options: AllocationOptions
    fixed: Mapping[str, int]
    frequencies: NDArray[np.integer] | None
    calibration: Path | None
    progress: Progress

    def report(self) -> AllocationReport:
        """Everything that the options ask for."""
        options = self.options
        measured = Sensitivities.read(options.sensitivities) if options.sensitivities else None
        coding = self._coding(measured)
        scores = self._scores(options.bleu, coding) if options.bleu else None
        if not (_has_budget(options) or options.save_sensitivities):
            return AllocationReport(sensitivities=measured, scores=scores)
        found = replace(self._rounds(measured, coding), scores=scores)
        for number in range(1, options.rounds + 1):
            if log := self._log(number):
                log.unlink(missing_ok=True)
        return found

    def _rounds(self, measured: Sensitivities | None, coding: Coding) -> AllocationReport:
        """Measure and solve; every further round measures around the plan of the one before."""
        options = self.options
        found = measured or self._measure(None, 1, coding)
        found.check(self.tensors, self.checkpoint.sha256)
        if not _has_budget(options):
            return AllocationReport(sensitivities=found)
        allocation = self._solve(found, coding)
        for number in range(2, options.rounds + 1):
            found = self._measure(allocation.plan, number, coding)
            allocation = self._solve(found, coding)
        planned = report_plan(self.checkpoint, self.tensors, allocation.plan, self.frequencies)
        return AllocationReport(sensitivities=found, planned=planned, allocation=allocation)

    def _scores(self, data: Path, coding: Coding) -> BlockScores:
        found = measure_block_bleu(
            self.model,
            data,
            coding=coding,
            calibration=self.calibration,
            widths=self.options.widths,
            limit=self.options.sentences,
            jobs=self.options.jobs,
            progress=self.progress,
        )
        if self.options.save_bleu:
            found.write(self.options.save_bleu)
        return found

    def _coding(self, measured: Sensitivities | None) -> Coding:
        """How the plan's tensors are stored: as they were measured, but for what the options say."""
        options = self.options
        base = Coding(quantizer="alternating" if self.calibration is None else "hessian")
        given = {
            "quantizer": options.quantizer,
            "offset": options.offset,
            "scale_dtype": options.scale_dtype,
            "outliers": options.outliers,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if options.group_size is not None:
            changes["group_size"] = options.group_size or None
        coding = replace(measured.coding if measured else base, **changes)
        if coding.quantizer not in quantizer_names():
            known = ", ".join(quantizer_names())
            raise UsageError(f"unknown quantizer {coding.quantizer!r}: known are {known}")
        try:
            check_percent(coding.outliers)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return coding

    def _measure(self, around: BitPlan | None, number: int, coding: Coding) -> Sensitivities:
        measure = self._estimated if self.options.by == "fisher" else self._divergences
        found = measure(around, number, coding)
        if self.options.save_sensitivities:
            found.write(self.options.save_sensitivities)
        return found

    def _estimated(self, around: BitPlan | None, number: int, coding: Coding) -> Sensitivities:
        assert self.calibration is not None
        return estimate_sensitivities(
            self.model,
            self.calibration,
            coding=coding,
            widths=self.options.widths,
            frequencies=self.frequencies,
            jobs=self.options.jobs,
            progress=self.progress,
        )

    def _divergences(self, around: BitPlan | None, number: int, coding: Coding) -> Sensitivities:
        options = self.options

        def progress(phase: str, done: int, total: int) -> None:
            self.progress(f"{phase}, round {number} of {options.rounds}", done, total)

        return measure_sensitivities(
            self.model,
            _samples(self.model, options),
            coding=coding,
            calibration=self.calibration,
            widths=options.widths,
            frequencies=self.frequencies,
            around=around,
            jobs=options.jobs,
            log=self._log(number),
            progress=progress,
        )

    def _log(self, number: int) -> Path | None:
        """Where a round keeps its finished units until the whole command is through."""
        kept = self.options.save_sensitivities
        return None if kept is None else kept.with_name(f"{kept.name}.{number}.part")

    def _solve(self, found: Sensitivities, coding: Coding) -> Allocation:
        options = self.options
        return allocate(
            self.tensors,
            found,
            _budget(options, self.tensors, other_params(self.checkpoint, self.tensors) * FLOAT_BYTES),
            source=_source(options, found, coding),
            coding=coding,
            frequencies=self.frequencies,
            fixed=self.fixed,
            words=options.words,
            timing=_timing(options, self.tensors, found, coding),
        )


def _has_budget(options: AllocationOptions) -> bool:
    return any(value is not None for value in (options.bits, options.size_mb, options.ms))


def _check(options: AllocationOptions) -> None:
    if options.bits is not None and options.size_mb is not None:
        raise UsageError("bits per weight and a size in MB exclude each other; give one of them")
    limits = {"--bits": options.bits, "--size-mb": options.size_mb, "--ms": options.ms}
    for name, value in limits.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} {value:g}: expected a number above 0")
    if not (_has_budget(options) or options.save_sensitivities or options.save_calibration or options.bleu):
        raise UsageError(
            "how large may the plan be? give --bits, --size-mb or --ms (or only measure, with "
            "--save-sensitivities FILE, --save-calibration FILE or --bleu PAIRS.tsv)"
        )
    if options.save_bleu and not options.bleu:
        raise UsageError("--save-bleu needs the lines to translate: --bleu PAIRS.tsv")
    if options.rounds > 1 and not _has_budget(options):
        raise UsageError("a second round measures around a plan; give --bits, --size-mb or --ms for it")
    if options.sensitivities and options.rounds == 1 and (options.text or options.save_sensitivities):
        raise UsageError(
            "--sensitivities is used instead of measuring: leave out --text and --save-sensitivities, "
            "or measure again with --rounds 2"
        )
    if options.by == "fisher" and (
        options.calibration is None or options.sensitivities or options.text or options.rounds > 1
    ):
        raise UsageError(
            "--by fisher estimates from a calibration alone: give --calibration, and leave out --text, "
            "--sensitivities and --rounds"
        )
    if options.save_calibration and (
        options.calibration is None or options.calibration.suffix == CALIBRATION_SUFFIX
    ):
        raise UsageError("--save-calibration needs the text to calibrate on: --calibration TEXT.tsv")


def _frequencies(
    checkpoint: Checkpoint, options: AllocationOptions, calibration: Path | None
) -> NDArray[np.integer] | None:
    given = None
    if options.frequencies:
        given = read_frequencies(options.frequencies, checkpoint.config.get("vocab_size"))
    return word_counts(checkpoint, given, Calibration.read(calibration) if calibration else None)


def _calibration(model: Path, options: AllocationOptions, scratch: Path, progress: Progress) -> Path | None:
    """The calibration's file, made first where text was given; None without one or where it is not read."""
    given = options.calibration
    if given is None or given.suffix == CALIBRATION_SUFFIX:
        return given
    if options.sensitivities and options.rounds == 1 and not options.save_calibration:
        return None
    counted = CALIBRATION_SENTENCES if Checkpoint.open(model).frequencies() is not None else COUNTED_LINES
    samples = _read(model, given, counted)
    path = options.save_calibration or scratch / "calibration.safetensors"
    few, fisher = samples[:CALIBRATION_SENTENCES], options.by == "fisher"
    made = calibrate(model, few, fisher=fisher, counted=samples, jobs=options.jobs, progress=progress)
    made.write(path)
    return path


def _samples(model: Path, options: AllocationOptions) -> Samples:
    text = options.text
    if text is None and options.calibration and options.calibration.suffix != CALIBRATION_SUFFIX:
        text = options.calibration
    if text is None:
        raise UsageError(
            "what to measure on? give --text PAIRS.tsv (source TAB target), or --sensitivities FILE of an "
            "earlier run"
        )
    return _read(model, text, options.sentences)


def _read(model: Path, text: Path, limit: int) -> Samples:
    reader = get_task(get_family(Checkpoint.open(model).config).task).read_samples
    return reader(model, text, limit=limit)


def _timing(
    options: AllocationOptions, tensors: Sequence[TensorInfo], found: Sensitivities, coding: Coding
) -> Timing:
    return timing_of(tensors, found.tokens / found.sentences, coding, options.times)


def _budget(options: AllocationOptions, tensors: Sequence[TensorInfo], other_bytes: int) -> Budget:
    size = math.inf
    if options.bits is not None:
        size = options.bits * sum(math.prod(info.shape) for info in tensors) / 8
    elif options.size_mb is not None:
        size = options.size_mb * 1e6 - other_bytes
    return Budget(bytes=size, ms=math.inf if options.ms is None else options.ms)


def _source(options: AllocationOptions, found: Sensitivities, coding: Coding) -> str:
    limits = {"bits per weight": options.bits, "MB": options.size_mb, "ms per token": options.ms}
    within = " and ".join(f"{value:g} {unit}" for unit, value in limits.items() if value is not None)
    parts = [
        f"allocated within {within}",
        f"{found.coding.quantizer} sensitivities {'around a plan ' if found.around else ''}"
        f"{'by gradients ' if found.method == 'fisher' else ''}"
        f"on {found.sentences} sentences"
        + (f" for {coding.quantizer} codes" if coding.quantizer != found.coding.quantizer else ""),
        f"words by {options.words}",
        *(f"{pattern}={width}" for pattern, width in options.overrides),
    ]
    return "; ".join(parts)
