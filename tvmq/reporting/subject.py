# SPDX-License-Identifier: Apache-2.0
"""What a report is about: the matrices with their bits and bytes, of a plan or of an artifact as it ships."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import (
    FLOAT_BITS,
    MAX_JSON_BYTES,
    BitPlan,
    BlockBits,
    Mode,
    WordBits,
    decode_plan,
    plan_hash,
)
from schedules.level_packing import PANEL_ROWS, TILE_COLUMNS
from schedules.packing import BLOCK_ROWS, STEP_COLUMNS
from tvmq import artifact, manifest
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError, UsageError, VerificationError
from tvmq.families import TensorInfo, get_family
from tvmq.model_plan import plan_model, report_plan
from tvmq.options import PlanOptions
from tvmq.sensitivity_table import Coding
from tvmq.size import order_bytes, planned_bytes
from tvmq.store import read_bytes, show
from tvmq.tensor_file import TensorEntry, TensorFile
from tvmq.word_bits import Clusters

Kind = Literal["plan", "coded checkpoint", "artifact"]
EMBEDDING = "Emb"
_PLANES, _ORDER = ("keys", "levels", "row_bits", "row_levels"), ("order", "rank")
_SCALES = (
    *("scales", "exponents", "offsets", "starts", "places", "values"),
    *("alphas", "group_shifts", "row_alphas", "row_exponents", "row_shifts", "top"),
)
"""Scales and outliers; those of mode block-int."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Bytes of a matrix, or of many, by what they hold.

    Attributes:
        planes: signs, or whole levels.
        scales: scales, offsets and outliers.
        orders: which stored row is which word.
        floats: values that stay floats.
    """

    planes: int = 0
    scales: int = 0
    orders: int = 0
    floats: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.planes + self.scales + self.orders + self.floats

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            planes=self.planes + other.planes,
            scales=self.scales + other.scales,
            orders=self.orders + other.orders,
            floats=self.floats + other.floats,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix.

    Attributes:
        info: name, block and shape; an artifact's shapes are those of its padded rows.
        clusters: (rows, bits), most frequent words first; one pair for a matrix of one width.
        coding: how it is quantized; None where it stays FP32.
        parts: bytes.
    """

    info: TensorInfo
    clusters: Clusters
    coding: Coding | None
    parts: Parts

    @property
    def bits(self) -> float:
        """Mean width over the rows."""
        return sum(rows * bits for rows, bits in self.clusters) / sum(rows for rows, _ in self.clusters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with its bits.

    Attributes:
        name: of the model.
        kind: what was given.
        plan: the bits.
        matrices: in the order of the model.
        blocks: stored bits per weight and number of weights by block.
        bytes: everything that the model computes with.
        fp32_bytes: the same in FP32.
        ratio: how many times smaller.
        bits_per_weight: of the matrices, scales, offsets and orders included.
        other_bytes: what is not in a matrix: biases, norms.
        frequencies: counts per word, where the folder has them.
        model_sha256: hash of the float model; None where it cannot be told.
        facts: what else is known, in words.
    """

    name: str
    kind: Kind
    plan: BitPlan
    matrices: tuple[Matrix, ...]
    blocks: Mapping[str, tuple[float, int]]
    bytes: int
    fp32_bytes: int
    ratio: float
    bits_per_weight: float
    other_bytes: int
    frequencies: NDArray[np.int64] | None
    model_sha256: str | None
    facts: Mapping[str, str]

    @property
    def weights(self) -> int:
        """Number of weights in all matrices."""
        return sum(count for _, count in self.blocks.values())


def read_subject(target: Path, plan: Path | None) -> Subject:
    """The model at ``target``: a model folder with a plan, a coded checkpoint or an artifact.

    Raises:
        InputError: the folder or the plan cannot be used.
        UsageError: a plan is missing, or given for something that has its own.
        VerificationError: the artifact is damaged.
    """
    if not (target / manifest.FILE_NAME).exists():
        found = _of_folder(target, plan)
    elif plan is not None:
        raise UsageError(f"{target} is an artifact, which has its own plan; leave out --plan")
    else:
        found = _of_artifact(target)
    if not found.matrices:
        raise InputError(f"{target}: its plan names no matrix, there is nothing to report")
    return found


def _of_folder(folder: Path, plan: Path | None) -> Subject:
    checkpoint = Checkpoint.open(folder)
    coded = checkpoint.plan is not None
    if plan is None and not coded:
        raise UsageError(
            f"{folder} is a float model; say which bits the report is about with --plan plan.json"
        )
    family = get_family(checkpoint.config)
    tensors = family.tensors(family.read_config(checkpoint.config))
    chosen = plan_model(folder, PlanOptions(plan=plan)).plan
    found = report_plan(checkpoint, tensors, chosen, None)
    entries = {entry.tensor: entry for entry in chosen.entries()}
    return Subject(
        name=folder.resolve().name,
        kind="coded checkpoint" if coded else "plan",
        plan=chosen,
        matrices=tuple(_planned(info, entries[info.name], chosen.mode) for info in tensors),
        blocks={block.name: (block.bits_per_weight, block.weights) for block in found.size.blocks},
        bytes=found.size.bytes,
        fp32_bytes=found.fp32_bytes,
        ratio=found.ratio,
        bits_per_weight=found.size.bits_per_weight,
        other_bytes=found.size.other_bytes,
        frequencies=checkpoint.frequencies(),
        model_sha256=None if coded else checkpoint.sha256,
        facts={},
    )


def _planned(info: TensorInfo, entry: BlockBits | WordBits, mode: Mode) -> Matrix:
    size = planned_bytes(info, entry, mode)
    clusters = clusters_of(entry, info.shape[0])
    if clusters[0][1] == FLOAT_BITS:
        return Matrix(info=info, clusters=clusters, coding=None, parts=Parts(floats=size))
    planes = sum(bits * rows * -(-info.shape[1] // 8) for rows, bits in clusters)
    orders = order_bytes(entry.rows) if isinstance(entry, WordBits) else 0
    parts = Parts(planes=planes, scales=size - planes - orders, orders=orders)
    return Matrix(info=info, clusters=clusters, coding=coding_of(entry), parts=parts)


def clusters_of(entry: BlockBits | WordBits, rows: int) -> Clusters:
    """(rows, bits) of a planned matrix with so many rows."""
    return entry.clusters if isinstance(entry, WordBits) else ((rows, entry.bits),)


def coding_of(entry: BlockBits | WordBits) -> Coding:
    """How a planned matrix is quantized."""
    return Coding(
        quantizer=entry.quantizer,
        group_size=entry.group_size,
        offset=entry.offset,
        scale_dtype=entry.scale_dtype,
        outliers=entry.outliers,
    )


def _of_artifact(path: Path) -> Subject:
    opened = artifact.open_artifact(path)
    place = opened.file("plan.json")
    try:
        plan = decode_plan(read_bytes(place, MAX_JSON_BYTES, error=VerificationError))
    except ValueError as error:
        raise VerificationError(f"{place}: {error} (compile the model again)") from None
    described = opened.manifest
    if plan_hash(plan) != described.plan_sha256:
        raise VerificationError(f"{place}: changed since it was written (compile or copy the artifact again)")
    file = TensorFile.open(opened.file(described.weights.file), error=VerificationError)
    stored: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in file.entries.items():
        stored.setdefault(name.partition(":")[0], {})[name] = entry
    matrices = tuple(
        _stored(path, entry, stored.get(entry.tensor, {})) for entry in (*plan.words, *plan.blocks)
    )
    bits = described.bits
    return Subject(
        name=described.model.name,
        kind="artifact",
        plan=plan,
        matrices=matrices,
        blocks={block.name: (block.bits, block.params) for block in bits.blocks},
        bytes=bits.size_bytes,
        fp32_bytes=bits.fp32_bytes,
        ratio=bits.ratio,
        bits_per_weight=bits.bits_per_weight,
        other_bytes=bits.size_bytes - sum(matrix.parts.total for matrix in matrices),
        frequencies=None,
        model_sha256=None,
        facts={
            "runs on": ", ".join(level.name for level in described.isa_levels),
            "lookup tables": described.tables,
            "licence": described.model.licence,
        },
    )


def _stored(path: Path, entry: BlockBits | WordBits, arrays: Mapping[str, TensorEntry]) -> Matrix:
    """A matrix as the weights file holds it."""

    def size(kinds: Iterable[str]) -> int:
        return sum(a.end - a.begin for name, a in arrays.items() if name.rpartition(":")[2] in kinds)

    if not arrays:
        raise VerificationError(
            f"{path}: the plan names {show(entry.tensor)}, which the weights do not hold (compile again)"
        )
    total = sum(a.end - a.begin for a in arrays.values())
    parts = Parts(planes=size(_PLANES), scales=size(_SCALES), orders=size(_ORDER))
    parts = replace(parts, floats=total - parts.total)
    rows, columns = _shape(arrays)
    if isinstance(entry, WordBits):
        rows = entry.rows
    clusters = clusters_of(entry, rows)
    info = TensorInfo(
        name=entry.tensor,
        block=entry.block,
        shape=(rows, columns),
        is_embedding=isinstance(entry, WordBits) or entry.block == EMBEDDING,
    )
    coding = None if clusters[0][1] == FLOAT_BITS else coding_of(entry)
    return Matrix(info=info, clusters=clusters, coding=coding, parts=parts)


def _shape(arrays: Mapping[str, TensorEntry]) -> tuple[int, int]:
    """[n, k] of a stored matrix, n padded to whole blocks of the kernels."""
    for name, array in arrays.items():
        shape = array.shape
        if name.endswith(":keys") and len(shape) == 5:
            return shape[0] * BLOCK_ROWS, shape[2] * STEP_COLUMNS
        if name.endswith(":packed") and len(shape) == 3:
            return shape[0] * shape[2], shape[1]
        if name.endswith(":levels") and len(shape) == 4:
            return shape[0] * PANEL_ROWS, shape[1] * TILE_COLUMNS
        if name.endswith(":row_bits") and len(shape) == 3:
            return shape[0], shape[2] * 8
    largest = max((array.shape for array in arrays.values()), key=math.prod)
    return largest[0] if largest else 1, math.prod(largest[1:])


def cluster_shares(matrix: Matrix, frequencies: NDArray[np.integer] | None) -> list[float]:
    """Part of all tokens that each cluster's words are; empty without counts of these words."""
    if frequencies is None or len(frequencies) != matrix.info.shape[0] or not frequencies.sum():
        return []
    running = np.concatenate([[0.0], np.cumsum(np.sort(frequencies)[::-1], dtype=np.float64)])
    ends = np.cumsum([0, *(rows for rows, _ in matrix.clusters)])
    return (np.diff(running[ends]) / running[-1]).tolist()
