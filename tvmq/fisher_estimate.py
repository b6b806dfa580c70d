# SPDX-License-Identifier: Apache-2.0
"""Sensitivities without running the model again: what each width costs, to second order, by the gradients.

An error E of a matrix costs about 1/2 sum_i g_i (E H E^T)_ii nats per output of the model, H the second
moments of its inputs and g the squared gradients of its outputs: the Hessian of the KL divergence, with its
factors taken as independent. Quantizing every matrix at every width is all that is left to do. What one bit
does is no small error, so that its estimates are the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration
from .checkpoint import Checkpoint
from .errors import InputError
from .families import TensorInfo, get_family
from .installation import require
from .options import Progress, no_progress
from .parallel import run_jobs
from .quantization import moments_for, quantize_matrix
from .sensitivity import WIDTHS, Unit, rows_of, unit_sensitivity, units_of
from .sensitivity_table import SCHEMA, Coding, Sensitivities, UnitSensitivity
from .size import planes_bytes
from .store import sha256_file
from .word_bits import frequency_order


def estimate_sensitivities(
    model: Path,
    calibration: Path,
    *,
    coding: Coding = Coding(),
    widths: Sequence[int] = WIDTHS,
    frequencies: NDArray[np.integer] | None = None,
    jobs: int | None = 1,
    progress: Progress = no_progress,
) -> Sensitivities:
    """Estimate every unit of a model folder at every width; see ``measure_sensitivities``.

    Args:
        model: the folder.
        calibration: a file of ``Calibration.write`` with gradients.
        coding: how to quantize.
        widths: bits.
        frequencies: counts per word, for clusters of an embedding.
        jobs: see ``parallel.run_jobs``; the result does not depend on it.
        progress: called with units done of all.

    Raises:
        InputError: the calibration is of another model, or was made without gradients.
        MissingToolError: joblib is not installed.
    """
    require("joblib", "plan")
    from joblib import delayed

    checkpoint, held = Checkpoint.open(model), Calibration.read(calibration)
    held.check_model(checkpoint.sha256, str(model))
    family = get_family(checkpoint.config)
    infos = {info.name: info for info in family.tensors(family.read_config(checkpoint.config))}
    if not all(_has_gradients(held, name) for name in infos):
        raise InputError(f"{calibration}: made without gradients; calibrate again with --by fisher")
    order = None if frequencies is None else frequency_order(frequencies)
    sweep = _Sweep(model=model, calibration=calibration, coding=coding, widths=tuple(sorted(set(widths))))
    units = units_of(infos.values(), by_word=frequencies is not None)
    calls = (
        delayed(_estimate)(sweep, unit, infos[unit.tensor], rows_of(unit, infos[unit.tensor], order))
        for unit in units
    )
    found: list[UnitSensitivity] = []
    progress("sensitivities by gradients", 0, len(units))
    for result in run_jobs(calls, jobs):
        found.append(cast(UnitSensitivity, result))
        progress("sensitivities by gradients", len(found), len(units))
    return Sensitivities(
        schema=SCHEMA,
        model_sha256=checkpoint.sha256,
        samples_sha256=sha256_file(calibration),
        sentences=held.sentences,
        tokens=held.tokens,
        around="",
        coding=coding,
        units=tuple(found),
        method="fisher",
    )


def _has_gradients(calibration: Calibration, name: str) -> bool:
    found = (calibration.output_gradients(name), calibration.lookup_gradients(name))
    return any(gradients is not None for gradients in found)


def fisher_damage(
    calibration: Calibration, name: str, error: NDArray[np.float32], rows: NDArray[np.integer] | None = None
) -> float:
    """Nats per output of the model that an error of a matrix costs, to second order.

    Args:
        calibration: made with ``fisher``.
        name: the matrix.
        error: float32[r, k].
        rows: int[r], which rows; None for all.
    """
    taken = slice(None) if rows is None else rows
    outputs, lookups = calibration.output_gradients(name), calibration.lookup_gradients(name)
    total = 0.0
    if outputs is not None:
        energy = np.einsum("nk,nk->n", error, error @ calibration.input_moments(name), dtype=np.float64)
        total += float(outputs[taken] @ energy)
    if lookups is not None:
        total += float(calibration.shares(name)[taken] @ (np.square(error) @ lookups))
    return total / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """What every job shares; travels to the processes."""

    model: Path
    calibration: Path
    coding: Coding
    widths: tuple[int, ...]


def _estimate(sweep: _Sweep, unit: Unit, info: TensorInfo, rows: NDArray[np.int32] | None) -> UnitSensitivity:
    weight = Checkpoint.open(sweep.model).tensor(unit.tensor)
    part = weight if rows is None else weight[rows]
    held = Calibration.read(sweep.calibration)
    norm = float(np.square(part).sum(dtype=np.float64)) or 1.0

    def estimate(bits: int) -> tuple[float, float, int]:
        entry = sweep.coding.entry(info, bits)
        error = part - quantize_matrix(part, entry, moments_for(entry, held)).dequantize()
        relative = float(np.square(error).sum(dtype=np.float64)) / norm
        size = planes_bytes(entry, len(part), info.shape[1], bits)
        return fisher_damage(held, unit.tensor, error, rows), relative, size

    return unit_sensitivity(unit, sweep.widths, estimate)
