# SPDX-License-Identifier: Apache-2.0
"""The table of a measurement: what each width does to each unit, its JSON file, and what it is bound to.

One line per unit, for people to read; decoding believes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from relay_passes.bit_plan import MAX_JSON_BYTES, BlockBits, ScaleDtype, strict_struct, written

from .errors import InputError
from .families.family import TensorInfo
from .store import atomic_write, read_bytes

SCHEMA = 1
KL_PER_TOKEN = "KL per token"
"""Measure of files that name none."""
_MAX_MEASURE = 60
Method = Literal["kl", "fisher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """How quantized tensors are stored: what a measurement holds for besides the bits.

    Attributes:
        quantizer: registry name.
        group_size: columns that share a scale; None is one scale per row.
        offset: an offset per group besides the scales.
        scale_dtype: dtype of scales and offsets.
        outliers: percent of the weights that are stored beside the planes.
    """

    quantizer: str = "alternating"
    group_size: int | None = None
    offset: bool = False
    scale_dtype: ScaleDtype = "float16"
    outliers: float = 0.0

    def entry(self, info: TensorInfo, bits: int) -> BlockBits:
        """``info`` stored so, in ``bits``."""
        return BlockBits(
            tensor=info.name,
            block=info.block,
            bits=bits,
            group_size=self.group_size,
            quantizer=self.quantizer,
            offset=self.offset,
            scale_dtype=self.scale_dtype,
            outliers=self.outliers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSensitivity:
    """What each width does to one unit.

    Attributes:
        tensor: the matrix.
        block: its block.
        first: frequency rank of the first row for words; 0 for a whole matrix.
        rows: number of rows.
        bits: the measured widths, ascending.
        kl: what the width adds to the mean KL(p_FP32 || p_q) in nats, or to another measure of the table; one
            per width.
        error: squared error over squared norm of the outputs where there is a calibration, else of the rows;
            one per width.
        bytes: planes, scales and offsets, one per width.
    """

    tensor: str
    block: str
    first: int
    rows: int
    bits: tuple[int, ...]
    kl: tuple[float, ...]
    error: tuple[float, ...]
    bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        where = f"{self.tensor} from row {self.first}"
        if len({len(self.bits), len(self.kl), len(self.error), len(self.bytes)}) != 1 or not self.bits:
            raise ValueError(f"{where}: as many values of kl, error and bytes as bits are expected")
        if list(self.bits) != sorted(set(self.bits)) or not 1 <= self.bits[0] <= self.bits[-1] <= 8:
            raise ValueError(f"{where}: bits {self.bits} (expected 1 to 8, ascending)")
        if self.first < 0 or self.rows < 1 or min(self.bytes) < 1:
            raise ValueError(f"{where}: {self.rows} rows and {min(self.bytes)} bytes (expected at least 1)")
        if not all(np.isfinite(value) and value >= 0 for value in (*self.kl, *self.error)):
            raise ValueError(f"{where}: kl and error must be finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """A measurement of a whole model, and what it is bound to.

    Attributes:
        schema: version of the file.
        model_sha256: ``Checkpoint.sha256`` of the model.
        samples_sha256: the sample sentences as token ids.
        sentences: how many sample sentences were read.
        tokens: target tokens, or those of an encoder's texts.
        around: where the other matrices stood meanwhile: ``plan_hash`` of a plan, or "" for FP32.
        coding: how the tensors were quantized.
        units: matrices in the order of the model, words by frequency rank.
        measure: what ``kl`` is and its means run over, in words: KL (in nats) per token, 1 - cosine per text.
        method: ``kl`` was measured, ``fisher`` is an estimate by the gradients (``fisher_estimate``).
    """

    schema: int
    model_sha256: str
    samples_sha256: str
    sentences: int
    tokens: int
    around: str
    coding: Coding
    units: tuple[UnitSensitivity, ...]
    measure: str = KL_PER_TOKEN
    method: Method = "kl"

    def __post_init__(self) -> None:
        if not (self.measure.isprintable() and 1 <= len(self.measure) <= _MAX_MEASURE):
            raise ValueError(f"the measure must be printable text of 1 to {_MAX_MEASURE} characters")
        if self.schema != SCHEMA:
            raise ValueError(f"the file has schema {self.schema}, expected {SCHEMA}; measure again")

    def by_tensor(self) -> dict[str, list[UnitSensitivity]]:
        """The units of each tensor, rows ascending."""
        found: dict[str, list[UnitSensitivity]] = {}
        for unit in sorted(self.units, key=lambda unit: unit.first):
            found.setdefault(unit.tensor, []).append(unit)
        return found

    def write(self, path: Path) -> None:
        """A JSON file with one line per unit."""
        atomic_write(path, encode_sensitivities(self))

    @classmethod
    def read(cls, path: Path) -> Sensitivities:
        """The file at ``path``; InputError for anything but a complete measurement of this schema."""
        try:
            return decode_sensitivities(read_bytes(path, MAX_JSON_BYTES))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    def check(self, tensors: Sequence[TensorInfo], model_sha256: str) -> None:
        """InputError unless this was measured on the model with this hash and covers ``tensors``."""
        if self.model_sha256 != model_sha256:
            raise InputError(
                "the sensitivities were measured on another model (its hash differs); measure this one"
            )
        found = self.by_tensor()
        for info in tensors:
            ranks, row = found.get(info.name, []), 0
            for unit in ranks:
                if unit.first != row:
                    break
                row += unit.rows
            if row != info.shape[0]:
                raise InputError(
                    f"the sensitivities cover {row} of {info.shape[0]} rows of {info.name}; measure again"
                )


def encode_sensitivities(table: Sensitivities) -> bytes:
    """The same bytes for the same table, one line per unit."""
    encode = msgspec.json.Encoder().encode
    heads = [
        f'  "{name}": '.encode() + encode(written(value) if name == "coding" else value)
        for name, value in written(table).items()
        if name != "units"
    ]
    units = b",".join(b"\n    " + encode(unit) for unit in table.units)
    return b"{\n" + b",\n".join([*heads, b'  "units": [' + units + b"]"]) + b"\n}\n"


def decode_sensitivities(data: bytes) -> Sensitivities:
    """The table in ``data``; ValueError for anything else."""
    try:
        raw: Any = msgspec.json.decode(data, type=_TABLE)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a table of sensitivities: {error}") from None
    return Sensitivities(
        schema=raw.schema,
        model_sha256=raw.model_sha256,
        samples_sha256=raw.samples_sha256,
        sentences=raw.sentences,
        tokens=raw.tokens,
        around=raw.around,
        coding=Coding(**msgspec.structs.asdict(raw.coding)),
        units=tuple(UnitSensitivity(**msgspec.structs.asdict(unit)) for unit in raw.units),
        measure=raw.measure,
        method=raw.method,
    )


_TABLE = strict_struct(
    Sensitivities, coding=strict_struct(Coding), units=tuple[strict_struct(UnitSensitivity), ...]
)
