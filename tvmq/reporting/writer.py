# SPDX-License-Identifier: Apache-2.0
"""From a target and its files to the page and the figures on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tvmq.block_scores import BlockScores
from tvmq.calibration import Calibration
from tvmq.checkpoint import read_frequencies
from tvmq.errors import InputError, UsageError
from tvmq.options import ReportOptions
from tvmq.sensitivity_table import Sensitivities
from tvmq.store import atomic_write

from . import figures
from .block_table import block_figure
from .drawing import Drawing, finish, style
from .grid import grid
from .losses import Losses, expected_losses
from .measured import Measured, read_measured
from .page import page
from .subject import Parts, Subject, cluster_shares, read_subject

OTHER = "biases, norms"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """What was written.

    Attributes:
        output: the page.
        figures: files of the figures, if any were asked for.
        bytes: size of the model.
        bits_per_weight: of its matrices.
        ratio: how many times smaller than FP32.
        loss: expected; None without sensitivities.
        measure: what the loss is, in words.
    """

    output: Path
    figures: tuple[Path, ...]
    bytes: int
    bits_per_weight: float
    ratio: float
    loss: float | None
    measure: str | None

    def to_json(self) -> dict[str, Any]:
        """The object that ``tvmq report --json`` prints."""
        return {
            "output": str(self.output),
            "figures": [str(path) for path in self.figures],
            "size_bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "ratio": round(self.ratio, 3),
            "damage": self.loss,
            "measure": self.measure,
        }


def write_report(target: Path, output: Path, options: ReportOptions) -> ReportResult:
    """Write the page, and the figures where ``options`` name a folder for them.

    The same inputs give the same bytes.

    Raises:
        InputError: something given cannot be used.
        UsageError: an output exists, or the options contradict each other.
        VerificationError: the artifact is damaged.
        MissingToolError: scipy is not installed.
    """
    _check_output(output, options)
    subject = read_subject(target, options.plan)
    frequencies = _frequencies(subject, options)
    losses = None
    if options.sensitivities is not None:
        found = Sensitivities.read(options.sensitivities)
        losses = expected_losses(subject, found, frequencies, options.times)
    measured = () if options.measured is None else read_measured(options.measured, subject)
    scores = None if options.bleu is None else _scores(options.bleu, subject)
    parts = _parts(subject)
    with style():
        drawings = _drawings(
            subject, parts, frequencies, losses, measured, scores, png=options.figures is not None
        )
    shares = {
        matrix.info.name: cluster_shares(matrix, frequencies)
        for matrix in subject.matrices
        if matrix.info.is_embedding
    }
    text = page(
        subject, drawings, parts=parts, shares=shares, losses=losses, measured=measured, scores=scores
    )
    files = _figure_files(options.figures, drawings)
    if taken := [path for path in files if path.exists() and not options.force]:
        raise UsageError(f"{taken[0]} exists; add --force to replace it")
    if options.figures is not None:
        options.figures.mkdir(exist_ok=True)
    for path, data in files.items():
        atomic_write(path, data)
    atomic_write(output, text)
    return ReportResult(
        output=output,
        figures=tuple(files),
        bytes=subject.bytes,
        bits_per_weight=subject.bits_per_weight,
        ratio=subject.ratio,
        loss=None if losses is None else losses.plan.loss,
        measure=None if losses is None else losses.measure,
    )


def _check_output(output: Path, options: ReportOptions) -> None:
    if output.is_dir():
        raise UsageError(f"{output} is a folder, expected a file name such as report.html")
    if output.exists() and not options.force:
        raise UsageError(f"{output} exists; add --force to replace it")
    if options.times is not None and options.sensitivities is None:
        raise UsageError("--times is for the curve of expected losses; give --sensitivities with it")
    folder = options.figures
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, expected a folder for the figures")
    for place in (output, *([] if folder is None else [folder])):
        if not place.parent.is_dir():
            raise InputError(
                f"cannot write {place}: the folder {place.parent} does not exist (create it first)"
            )


def _frequencies(subject: Subject, options: ReportOptions) -> NDArray[np.integer] | None:
    if options.frequencies is not None and options.calibration is not None:
        raise UsageError("--frequencies and --calibration both count words; give one of them")
    if options.frequencies is not None:
        counts = read_frequencies(options.frequencies, None)
        rows = [matrix.info.shape[0] for matrix in subject.matrices if matrix.info.is_embedding]
        if rows and len(counts) not in rows:
            raise InputError(
                f"{options.frequencies}: counts of {len(counts)} words, but the model's table has {rows[0]}"
            )
        return counts
    if options.calibration is not None:
        calibration = Calibration.read(options.calibration)
        if subject.model_sha256 is not None:
            calibration.check_model(subject.model_sha256, subject.name)
        return calibration.frequencies
    return subject.frequencies


def _scores(path: Path, subject: Subject) -> BlockScores:
    """BLEU by block; InputError where it was measured on another model."""
    found = BlockScores.read(path)
    if subject.model_sha256 not in (None, found.model_sha256):
        raise InputError(f"{path}: measured on another model (its hash differs); measure this one")
    return found


def _parts(subject: Subject) -> dict[str, Parts]:
    """Bytes by block, and what lies outside of all matrices."""
    found: dict[str, Parts] = {}
    for matrix in subject.matrices:
        block = matrix.info.block
        found[block] = found.get(block, Parts()) + matrix.parts
    return found | {OTHER: Parts(floats=subject.other_bytes)}


def _drawings(
    subject: Subject,
    parts: Mapping[str, Parts],
    frequencies: NDArray[np.integer] | None,
    losses: Losses | None,
    measured: tuple[Measured, ...],
    scores: BlockScores | None,
    *,
    png: bool,
) -> dict[str, Drawing]:
    """Every figure that there is something to draw for, by name."""
    made: dict[str, tuple[str, Figure]] = {
        "bit-map": ("Bit width of every matrix", figures.bit_map(grid(subject.matrices))),
        "block-bytes": ("Megabytes of every block", figures.block_bytes(parts)),
    }
    embeddings = [matrix for matrix in subject.matrices if matrix.info.is_embedding]
    if embeddings:
        made["word-bits"] = ("Bits of words by frequency rank", figures.word_bits(embeddings, frequencies))
    if losses is not None:
        made["sensitivity"] = (
            "Loss of each block alone by bit width",
            figures.sensitivity_curves(losses, _chosen(subject, losses)),
        )
        made["size-curve"] = (
            "Expected loss against size",
            figures.size_curve(losses, measured, subject),
        )
        if losses.time_curve:
            made["time-curve"] = ("Expected loss against time", figures.time_curve(losses))
    if scores is not None:
        made["bleu"] = ("BLEU with one block quantized by bit width", block_figure(scores))
    if any(row.score is not None for row in measured):
        made["scores"] = ("Measured score against size", figures.scores(measured, subject))
    return {name: finish(figure, name, title, png=png) for name, (title, figure) in made.items()}


def _chosen(subject: Subject, losses: Losses) -> dict[str, tuple[float, float]]:
    """Mean bits and expected loss of each block."""
    totals: dict[str, tuple[float, int]] = {}
    for matrix in subject.matrices:
        bits, weights = totals.get(matrix.info.block, (0.0, 0))
        count = matrix.info.shape[0] * matrix.info.shape[1]
        totals[matrix.info.block] = (bits + matrix.bits * count, weights + count)
    expected = losses.by_block(subject)
    return {block: (bits / weights, expected[block]) for block, (bits, weights) in totals.items()}


def _figure_files(folder: Path | None, drawings: Mapping[str, Drawing]) -> dict[Path, bytes]:
    if folder is None:
        return {}
    files: dict[Path, bytes] = {}
    for name, drawing in drawings.items():
        files |= {folder / f"{name}.svg": drawing.svg.encode(), folder / f"{name}.png": drawing.png}
    return files
