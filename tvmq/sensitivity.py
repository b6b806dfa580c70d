# SPDX-License-Identifier: Apache-2.0
"""How much the output suffers when one matrix, or one cluster of words, is stored in q bits.

Every unit is quantized alone, the FP32 model reads the samples once more (translations with their known
targets), and the mean KL(p_FP32 || p_q) per target token is the unit's damage: Table 1 of Chung et al. 2020
for each matrix instead of each block, by KL instead of BLEU. Encoders have it per text or per labelled token;
for embeddings it is 1 - cosine, the KL of Gaussians of unit variance around them. The sweep runs through
``joblib.Parallel``, so ``joblib.parallel_config`` points it at any backend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, plan_hash

from .calibration import Calibration
from .checkpoint import Checkpoint
from .errors import InputError, UsageError
from .families import TensorInfo, get_family
from .installation import require
from .options import Progress, no_progress
from .parallel import run_jobs
from .quantization import moments_for, quantize_matrix
from .quantizers import NEED_MOMENTS, quantizer_names
from .samples import Samples
from .sensitivity_table import SCHEMA, Coding, Sensitivities, UnitSensitivity
from .size import planes_bytes
from .store import sha256_file
from .sweep_log import SweepLog
from .tasks import get_task
from .word_bits import frequency_order

if TYPE_CHECKING:
    from .sensitivity_probe import Probe

WIDTHS = (1, 2, 3, 4)
CLUSTER_ROWS = 64
"""Word clusters end at multiples of this: kernels work on whole blocks of so many rows."""
WORD_CLUSTERS = 8
"""Equal parts of an embedding; the first is halved until ``CLUSTER_ROWS`` are left, as counts fall fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Rows that get one width: a whole matrix, or ``rows`` words from frequency rank ``first`` on."""

    tensor: str
    block: str
    first: int
    rows: int


def units_of(tensors: Iterable[TensorInfo], *, by_word: bool) -> list[Unit]:
    """The matrices, embeddings cut into clusters of frequency ranks where ``by_word``."""
    units = []
    for info in tensors:
        ends = _cluster_ends(info.shape[0]) if info.is_embedding and by_word else [info.shape[0]]
        for first, last in zip([0, *ends], ends, strict=False):
            units.append(Unit(tensor=info.name, block=info.block, first=first, rows=last - first))
    return units


def _cluster_ends(rows: int) -> list[int]:
    """End ranks: equal parts, the first halved again and again, all but the last at ``CLUSTER_ROWS``."""
    ends = {rows * part // WORD_CLUSTERS for part in range(1, WORD_CLUSTERS)}
    first = rows // WORD_CLUSTERS
    while first > CLUSTER_ROWS:
        first //= 2
        ends.add(first)
    return sorted({end // CLUSTER_ROWS * CLUSTER_ROWS for end in ends} - {0} | {rows})


def samples_sha256(samples: Samples) -> str:
    """The hash over all token ids."""
    digest = hashlib.sha256()
    for sample in samples:
        ids = (*sample.source, *sample.target, *sample.types)
        digest.update(np.asarray([len(sample.source), *ids], np.int64).tobytes())
    return digest.hexdigest()


def measure_sensitivities(
    model: Path,
    samples: Samples,
    *,
    coding: Coding = Coding(),
    calibration: Path | None = None,
    widths: Sequence[int] = WIDTHS,
    frequencies: NDArray[np.integer] | None = None,
    around: BitPlan | None = None,
    jobs: int | None = 1,
    log: Path | None = None,
    progress: Progress = no_progress,
) -> Sensitivities:
    """Measure every unit of a model folder at every width.

    Args:
        model: the folder.
        samples: sentence pairs, of which a hundred or two are enough, or texts for an encoder.
        coding: how to quantize.
        calibration: a file of ``Calibration.write``, for quantizers that go by the inputs' second moments.
        widths: bits to measure.
        frequencies: counts per word, for clusters of an embedding; None measures it as one unit.
        around: leave all other matrices as this plan stores them, instead of FP32, and measure what a unit
            adds to their damage. Errors add up to more than their sum, and this sees it.
        jobs: see ``parallel.run_jobs``; each runs on one thread.
        log: file for finished units, so that a killed measurement goes on; it is left to the caller.
        progress: called with units done of all.

    Raises:
        InputError: the model cannot be read or the samples hold no target to translate to.
        MissingToolError: joblib or torch is not installed.
    """
    require("joblib", "plan")
    require("torch", "compile")
    from joblib import delayed

    checkpoint = Checkpoint.open(model)
    _check(checkpoint, samples, coding, calibration, widths)
    family = get_family(checkpoint.config)
    infos = {info.name: info for info in family.tensors(family.read_config(checkpoint.config))}
    units = units_of(infos.values(), by_word=frequencies is not None)
    order = None if frequencies is None else frequency_order(frequencies)
    digest = samples_sha256(samples)
    sweep = Sweep(
        model=model,
        samples=samples,
        digest=digest,
        coding=coding,
        calibration=calibration,
        widths=tuple(sorted(set(widths))),
        around={} if around is None else plan_weights(checkpoint, around, order, calibration),
    )
    measured = "" if calibration is None else sha256_file(calibration)
    place = "" if around is None else plan_hash(around)
    words = "" if order is None else hashlib.sha256(order.tobytes()).hexdigest()
    facts = (SCHEMA, checkpoint.sha256, digest, coding, sweep.widths, place, measured, words)
    kept = SweepLog(log, facts)
    found = {unit: kept.get(unit.tensor, unit.first) for unit in units}
    missing = [unit for unit, value in found.items() if value is None or value.rows != unit.rows]
    calls = (
        delayed(_measure)(sweep, unit, infos[unit.tensor], rows_of(unit, infos[unit.tensor], order))
        for unit in missing
    )
    progress("sensitivities", len(units) - len(missing), len(units))
    for done, result in enumerate(run_jobs(calls, jobs), 1):
        value = cast(UnitSensitivity, result)
        found[missing[done - 1]] = value
        kept.add(value)
        progress("sensitivities", len(units) - len(missing) + done, len(units))
    return Sensitivities(
        schema=SCHEMA,
        model_sha256=checkpoint.sha256,
        samples_sha256=digest,
        sentences=len(samples),
        tokens=sum(len(sample.target or sample.source) for sample in samples),
        around=place,
        coding=coding,
        units=tuple(value for value in found.values() if value is not None),
        measure=get_task(family.task).measure(family.read_config(checkpoint.config)),
    )


def _check(
    checkpoint: Checkpoint,
    samples: Samples,
    coding: Coding,
    calibration: Path | None,
    widths: Sequence[int],
) -> None:
    """InputError or UsageError for what cannot be measured."""
    translates = get_family(checkpoint.config).task == "translate"
    if translates and not any(sample.target for sample in samples):
        raise InputError("the samples hold no target tokens to compare the output at")
    if not widths or min(widths) < 1 or max(widths) > 8:
        raise UsageError(f"widths {list(widths)} cannot be measured (expected 1 to 8 bits)")
    if coding.quantizer not in quantizer_names():
        raise UsageError(f"unknown quantizer {coding.quantizer!r}: known are {', '.join(quantizer_names())}")
    if calibration is not None:
        Calibration.read(calibration).check_model(checkpoint.sha256, str(checkpoint.path))
    elif coding.quantizer in NEED_MOMENTS:
        raise UsageError(f"the quantizer {coding.quantizer} needs a calibration: give --calibration FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What every job of one measurement shares; travels to the processes."""

    model: Path
    samples: Samples
    digest: str
    coding: Coding
    calibration: Path | None
    widths: tuple[int, ...]
    around: Mapping[str, NDArray[np.float32]]


def rows_of(unit: Unit, info: TensorInfo, order: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    """Rows of the matrix that belong to the unit; None for all of them."""
    if order is None or unit.rows == info.shape[0]:
        return None
    return order[unit.first : unit.first + unit.rows]


def _measure(sweep: Sweep, unit: Unit, info: TensorInfo, rows: NDArray[np.int32] | None) -> UnitSensitivity:
    probe = _probe(sweep)
    weight = probe.weight(unit.tensor)
    part = weight if rows is None else weight[rows]
    moments = None if sweep.calibration is None else Calibration.read(sweep.calibration).moments(unit.tensor)
    around = dict(sweep.around)
    others = around.get(unit.tensor, weight)
    alone = probe.divergence(around | {unit.tensor: _with(others, rows, part)}) if around else 0.0
    norm = _energy(part, moments) or 1.0

    def measure(bits: int) -> tuple[float, float, int]:
        entry = sweep.coding.entry(info, bits)
        coded = _coded(part, entry, moments if entry.quantizer in NEED_MOMENTS else None)
        changed = {unit.tensor: _with(others, rows, coded)}
        kl = max(probe.divergence(around | changed) - alone, 0.0)
        size = planes_bytes(entry, len(part), info.shape[1], bits)
        return kl, _energy(part - coded, moments) / norm, size

    return unit_sensitivity(unit, sweep.widths, measure)


def unit_sensitivity(
    unit: Unit, widths: tuple[int, ...], measure: Callable[[int], tuple[float, float, int]]
) -> UnitSensitivity:
    """What ``measure(bits)`` finds of a unit at every width: its loss, its relative error, its bytes."""
    kl, error, sizes = zip(*map(measure, widths), strict=True)
    return UnitSensitivity(
        tensor=unit.tensor,
        block=unit.block,
        first=unit.first,
        rows=unit.rows,
        bits=widths,
        kl=kl,
        error=error,
        bytes=sizes,
    )


def plan_weights(
    checkpoint: Checkpoint, plan: BitPlan, order: NDArray[np.int32] | None, calibration: Path | None
) -> dict[str, NDArray[np.float32]]:
    """Every matrix of ``plan`` as it would be stored, by name.

    Args:
        checkpoint: the float model.
        plan: bits.
        order: word ids by falling frequency, for plans with bits by word.
        calibration: file, for quantizers that go by the inputs' second moments.
    """
    plan.validate({entry.tensor: _matrix(checkpoint, entry.tensor) for entry in plan.entries()})
    held = None if calibration is None else Calibration.read(calibration)
    found = {}
    for entry in plan.entries():
        weight = checkpoint.tensor(entry.tensor)
        moments = moments_for(entry, held)
        if isinstance(entry, BlockBits):
            found[entry.tensor] = weight if entry.bits == FLOAT_BITS else _coded(weight, entry, moments)
            continue
        if order is None:
            raise InputError("the plan gives words bits by frequency, but there are no token frequencies")
        first = 0
        for rows, bits in entry.clusters:
            words = order[first : first + rows]
            weight[words] = _coded(weight[words], entry.cluster(bits), moments)
            first += rows
        found[entry.tensor] = weight
    return found


def _matrix(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    rows, columns = checkpoint.shape(name)
    return rows, columns


def _coded(
    part: NDArray[np.float32], entry: BlockBits, moments: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    try:
        return quantize_matrix(part, entry, moments).dequantize()
    except ValueError as error:
        raise InputError(f"{entry.tensor}: {error}") from error


def _energy(part: NDArray[np.float32], moments: NDArray[np.float32] | None) -> float:
    """tr(A H A^T), the mean squared output of ``part`` as a matrix; without moments the squared norm."""
    seen = part if moments is None else part @ moments
    return float(np.einsum("nk,nk->", part, seen, dtype=np.float64))


def _with(
    table: NDArray[np.float32], rows: NDArray[np.int32] | None, values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``table`` with ``values`` in these rows; None for all of them."""
    if rows is None:
        return values
    changed = np.array(table)
    changed[rows] = values
    return changed


_open: dict[tuple[Path, str], Probe] = {}
"""The one probe of this process: a model and its reference output are too large to open per job."""


def _probe(sweep: Sweep) -> Probe:
    key = (sweep.model, sweep.digest)
    if key not in _open:
        from .sensitivity_probe import Probe

        _open.clear()
        _open[key] = Probe.open(sweep.model, sweep.samples)
    return _open[key]
