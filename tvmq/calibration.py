# SPDX-License-Identifier: Apache-2.0
"""What a model's matrices read and how much each output matters, measured once on sample text.

Per matrix W [n, k] the second moment H = E[x x^T] of its inputs: the mean squared change of W x under an
error E of the weights is tr(E H E^T). With ``fisher`` also the squared gradients of the outputs, so that
errors of different matrices can be compared. One file, which quantizers, sensitivities and retraining read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan

from .checkpoint import Checkpoint
from .errors import InputError, UsageError
from .installation import require
from .options import Progress, no_progress
from .parallel import run_jobs
from .quantizers import NEED_MOMENTS
from .samples import Sample, Samples
from .store import atomic_file, parse_json, show
from .tensor_file import TensorFile, write_weights
from .triangles import side_of, unpack_triangle

if TYPE_CHECKING:
    from .activations import ActivationRecorder

SCHEMA = 1
CHUNK = 128
"""Samples summed by one process at a time: fixed, so that the result does not depend on the processes."""
_KIND = "calibration"
_MOMENTS = "moments:{}"
"""Name of a stored triangle by its number."""
LOOKUP = 1.0
"""Weight of a word table's own rows beside its use as output projection, see ``Calibration.moments``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over the real tokens of some sentences; what one process hands back.

    Attributes:
        inputs: matrix -> which of ``packed`` holds its inputs.
        tables: word tables that are looked up beside their use as output projection.
        packed: upper triangles of sum x x^T, float32[k (k + 1) / 2], row after row.
        counts: inputs summed in each of ``packed``.
        outputs: matrix -> sum of squared gradients of its outputs, float32[n]; empty without ``fisher``.
        lookups: word table -> sum of squared gradients of looked up rows, float32[k]; empty without it.
        rows: table whose rows are no words -> how often each is looked up, int64[n].
        frequencies: int64[V], tokens of both sides.
        predicted: outputs that gradients start from: target tokens, or texts or tokens of an encoder.
    """

    inputs: dict[str, int]
    tables: tuple[str, ...]
    packed: list[NDArray[np.float32]]
    counts: list[int]
    outputs: dict[str, NDArray[np.float32]]
    lookups: dict[str, NDArray[np.float32]]
    rows: dict[str, NDArray[np.int64]]
    frequencies: NDArray[np.int64]
    predicted: int

    def add(self, other: Sums) -> Sums:
        """Both together; this one's arrays are added to in place."""
        for mine, theirs in (
            *zip(self.packed, other.packed, strict=True),
            *((self.outputs[name], other.outputs[name]) for name in self.outputs),
            *((self.lookups[name], other.lookups[name]) for name in self.lookups),
            *((self.rows[name], other.rows[name]) for name in self.rows),
            (self.frequencies, other.frequencies),
        ):
            mine += theirs
        return Sums(
            inputs=self.inputs,
            tables=self.tables,
            packed=self.packed,
            counts=[a + b for a, b in zip(self.counts, other.counts, strict=True)],
            outputs=self.outputs,
            lookups=self.lookups,
            rows=self.rows,
            frequencies=self.frequencies,
            predicted=self.predicted + other.predicted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Second moments of inputs, squared gradients of outputs and token counts of one model on sample text.

    Attributes:
        model_sha256: ``Checkpoint.sha256`` of the measured model.
        sentences: how many were read.
        tokens: outputs that gradients are means over: predicted target tokens, texts where an encoder says
            one thing about each, or their tokens where it labels those.
        frequencies: int64[V], how often each token id occurs on both sides.
    """

    model_sha256: str
    sentences: int
    tokens: int
    frequencies: NDArray[np.int64]
    _inputs: Mapping[str, int]
    _tables: tuple[str, ...]
    _packed: Sequence[NDArray[np.float32]]
    _outputs: Mapping[str, NDArray[np.float32]]
    _lookups: Mapping[str, NDArray[np.float32]]
    _rows: Mapping[str, NDArray[np.int64]]
    _file: TensorFile | None = None

    def names(self) -> list[str]:
        """The matrices that were measured."""
        return list(self._inputs)

    def moments(self, name: str) -> NDArray[np.float32]:
        """float32[k, k]: E[x x^T] over the inputs x of a matrix: what its errors are weighed by.

        A word table that is also the output projection gets E[x x^T] of the latter plus ``LOOKUP`` times its
        mean diagonal: rows that are looked up enter the model as they are, so their errors count alike in all
        directions. A table that is only looked up gets the identity.

        InputError where the matrix was not measured.
        """
        moments = self.input_moments(name)
        if name in self._tables:
            moments[np.diag_indices_from(moments)] += LOOKUP * np.diag(moments).mean()
        return moments

    def input_moments(self, name: str) -> NDArray[np.float32]:
        """float32[k, k]: E[x x^T] over the products with a matrix; InputError where it was not measured."""
        if name not in self._inputs:
            raise InputError(f"the calibration does not hold {show(name)}; make it from this model again")
        place = self._inputs[name]
        moments = unpack_triangle(self._packed[place])
        if self._file is not None:
            self._file.release(_MOMENTS.format(place))
        return moments

    def output_gradients(self, name: str) -> NDArray[np.float32] | None:
        """float32[n]: sum over inputs of the squared gradient of each output, per output of the model.

        The gradients are those of the log-likelihood of outputs drawn from the model itself, so that their
        second moment is the Hessian of KL(p || p') at p' = p (``distributions``). An error E of the matrix
        costs about 1/2 sum_i g_i (E H E^T)_ii for each input. None without ``fisher``.
        """
        return self._outputs.get(name)

    def lookup_gradients(self, name: str) -> NDArray[np.float32] | None:
        """float32[k]: as ``output_gradients`` for rows of a table that are looked up.

        An error e_v of row v costs about 1/2 (f_v / sum f) sum_j g_j e_vj^2, f its count.
        """
        return self._lookups.get(name)

    def fisher(self, name: str) -> NDArray[np.float32] | None:
        """float32[n, k]: diagonal of the Fisher information of a matrix, per output of the model.

        F_ij = g_i H_jj (gradients of outputs independent of the inputs), for a table that is looked up
        plus (f_v / sum f) g_j of the lookups. None without ``fisher``.
        """
        rows, columns = self.output_gradients(name), self.lookup_gradients(name)
        if rows is None and columns is None:
            return None
        looked_up = 0.0 if columns is None else np.outer(self.shares(name), columns)
        projected = 0.0 if rows is None else np.outer(rows, np.diag(self.input_moments(name)))
        return cast("NDArray[np.float32]", projected + looked_up)

    def shares(self, name: str) -> NDArray[np.float32]:
        """float32[n]: part of all lookups in a table that each of its rows is."""
        counts = self._rows.get(name, self.frequencies)
        return (counts / max(1, int(counts.sum()))).astype(np.float32)

    def check_model(self, sha256: str, where: str) -> None:
        """InputError unless the measured model is the one with this hash."""
        if sha256 != self.model_sha256:
            raise InputError(
                f"the calibration was made from another model than {where}; run tvmq plan --calibration again"
            )

    def write(self, path: Path) -> None:
        """One safetensors file; InputError or UsageError where it cannot be written."""
        header = {
            "kind": _KIND,
            "schema": str(SCHEMA),
            "model_sha256": self.model_sha256,
            "sentences": str(self.sentences),
            "tokens": str(self.tokens),
            "inputs": json.dumps(dict(self._inputs)),
            "tables": json.dumps(self._tables),
        }
        tensors: dict[str, NDArray] = {"frequencies": self.frequencies.astype(np.int32)}
        tensors |= {_MOMENTS.format(i): packed for i, packed in enumerate(self._packed)}
        tensors |= {f"outputs:{name}": values for name, values in self._outputs.items()}
        tensors |= {f"lookups:{name}": values for name, values in self._lookups.items()}
        tensors |= {f"rows:{name}": counts.astype(np.int32) for name, counts in self._rows.items()}
        with atomic_file(path) as place:
            write_weights(place, tensors, header)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """A file of ``write``, mapped; every defect is an InputError."""
        file = TensorFile.open(path)
        header = file.metadata
        if header.get("kind") != _KIND:
            raise InputError(f"{path}: not a calibration file; make one with tvmq plan --calibration")
        if header.get("schema") != str(SCHEMA):
            found = show(header.get("schema", "none"))
            raise InputError(f"{path}: schema {found}, this version reads {SCHEMA}; calibrate again")
        inputs = _input_map(path, header.get("inputs", ""))
        count = len(set(inputs.values()))
        return cls(
            model_sha256=header.get("model_sha256", ""),
            sentences=_whole(path, header, "sentences"),
            tokens=_whole(path, header, "tokens"),
            frequencies=_held(file, "frequencies", "int32").astype(np.int64),
            _inputs=inputs,
            _tables=_names(path, header.get("tables", "")),
            _packed=[_triangle(file, _MOMENTS.format(i)) for i in range(count)],
            _outputs=_vectors(file, "outputs:", "float32"),
            _lookups=_vectors(file, "lookups:", "float32"),
            _rows={name: n.astype(np.int64) for name, n in _vectors(file, "rows:", "int32").items()},
            _file=file,
        )


def calibrate(
    model: Path,
    samples: Sequence[Sample],
    *,
    fisher: bool = False,
    counted: Samples | None = None,
    jobs: int | None = 1,
    threads: int = 1,
    progress: Progress = no_progress,
) -> Calibration:
    """Run the FP32 model of a folder once over ``samples`` and keep the statistics of its matrices.

    Args:
        model: folder of the checkpoint.
        samples: with targets for models that translate, whose decoder reads the true ones.
        fisher: also go backward once, from outputs drawn from the model, for the squared gradients: target
            tokens, labels of a head, or embeddings with Gaussian noise.
        counted: more samples, whose tokens are counted instead.
        jobs: see ``parallel.run_jobs``; the result does not depend on it.
        threads: threads of each process.
        progress: called with sentences done.

    Raises:
        TvmqError: the model cannot be used, there are no samples, or torch or joblib is not installed.
    """
    require("torch", "compile")
    require("joblib", "plan")
    from joblib import delayed

    table = samples if isinstance(samples, Samples) else Samples(samples)
    if not len(table):
        raise UsageError("calibration needs at least one sentence")
    digest = Checkpoint.open(model).sha256
    starts = range(0, len(table), CHUNK)
    progress("calibrate", 0, len(table))
    calls = (
        delayed(_measure)(model, digest, table[first : first + CHUNK], fisher, first, threads)
        for first in starts
    )
    total: Sums | None = None
    for first, part in zip(starts, cast("Iterator[Sums]", run_jobs(calls, jobs)), strict=True):
        total = part if total is None else total.add(part)
        progress("calibrate", min(first + CHUNK, len(table)), len(table))
    _recorders.clear()
    assert total is not None
    if counted is not None:
        total = replace(total, frequencies=counted.counts(len(total.frequencies)))
    return _means(total, digest, len(table))


def calibration_of(model: Path, path: Path | None, plan: BitPlan) -> Calibration | None:
    """The calibration file of the float model in ``model``, for the codes of ``plan``; None without a path.

    Raises UsageError for a coded checkpoint and for plans that go by none, InputError for a file that is
    damaged or of another model.
    """
    if path is None:
        return None
    checkpoint = Checkpoint.open(model)
    if checkpoint.plan is not None:
        raise UsageError(f"{model} is a coded checkpoint, its codes are fixed; leave out --calibration")
    used = {entry.quantizer for entry in plan.entries()}
    if plan.mode == "float" and not used & set(NEED_MOMENTS):
        raise UsageError(
            f"no codes of this plan go by a calibration ({', '.join(sorted(used))}); leave out "
            f"--calibration, or take --quantizer {NEED_MOMENTS[0]}"
        )
    calibration = Calibration.read(path)
    calibration.check_model(checkpoint.sha256, str(model))
    return calibration


def word_counts(
    checkpoint: Checkpoint, given: NDArray[np.integer] | None, calibration: Calibration | None
) -> NDArray[np.integer] | None:
    """Counts per word: those ``given``, else the model folder's, else those of the calibration text."""
    counts = checkpoint.frequencies() if given is None else given
    return calibration.frequencies if counts is None and calibration is not None else counts


def _means(total: Sums, digest: str, sentences: int) -> Calibration:
    for packed, count in zip(total.packed, total.counts, strict=True):
        packed /= max(1, count)
    for values in (*total.outputs.values(), *total.lookups.values()):
        values /= max(1, total.predicted)
    return Calibration(
        model_sha256=digest,
        sentences=sentences,
        tokens=total.predicted,
        frequencies=total.frequencies,
        _inputs=total.inputs,
        _tables=total.tables,
        _packed=total.packed,
        _outputs=total.outputs,
        _lookups=total.lookups,
        _rows=total.rows,
    )


_recorders: dict[tuple[Path, str], ActivationRecorder] = {}
"""The one model that this process has open: a chunk is too short to read it anew."""


def _measure(model: Path, digest: str, samples: Samples, fisher: bool, seed: int, threads: int) -> Sums:
    from .activations import ActivationRecorder, torch_threads
    from .whole_model import open_whole

    with torch_threads(threads):
        recorder = _recorders.get((model, digest))
        if recorder is None:
            recorder = ActivationRecorder(open_whole(model))
            _recorders.clear()
            _recorders[model, digest] = recorder
        return recorder.measure(samples, fisher=fisher, seed=seed)


def _input_map(path: Path, text: str) -> dict[str, int]:
    value = parse_json(text.encode(), f"{path}: inputs in the header")
    if not isinstance(value, dict) or not value or not all(type(v) is int for v in value.values()):
        raise InputError(f"{path}: inputs in the header must map matrices to numbers")
    if set(value.values()) != set(range(max(value.values()) + 1)):
        raise InputError(f"{path}: inputs in the header must be numbered from 0 without gaps")
    return value


def _names(path: Path, text: str) -> tuple[str, ...]:
    value = parse_json(text.encode(), f"{path}: tables in the header")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{path}: tables in the header must be a list of names")
    return tuple(value)


def _whole(path: Path, header: Mapping[str, str], key: str) -> int:
    text = header.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InputError(f"{path}: {key} in the header is {show(text)}, expected a whole number")
    return int(text)


def _held(file: TensorFile, name: str, dtype: str) -> NDArray:
    if name not in file.entries:
        raise InputError(f"{file.path}: no tensor {show(name)} (truncated or edited? calibrate again)")
    values = file.raw(name)
    if values.dtype != dtype or values.ndim != 1 or (dtype == "float32" and not np.isfinite(values).all()):
        raise InputError(f"{file.path}: tensor {show(name)} must be one row of finite {dtype}")
    if values.size and values.min() < 0 and not name.startswith("moments:"):
        raise InputError(f"{file.path}: tensor {show(name)} holds negative values")
    return values


def _triangle(file: TensorFile, name: str) -> NDArray[np.float32]:
    values = _held(file, name, "float32")
    if not side_of(len(values)):
        raise InputError(f"{file.path}: tensor {show(name)} of {len(values)} values is not half a matrix")
    file.release(name)
    return values


def _vectors(file: TensorFile, prefix: str, dtype: str) -> dict[str, NDArray]:
    names = [name for name in file.entries if name.startswith(prefix)]
    return {name.removeprefix(prefix): _held(file, name, dtype) for name in names}
