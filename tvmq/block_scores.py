# SPDX-License-Identifier: Apache-2.0
"""Table 1 of Chung et al. 2020 for a model: BLEU with one block at one width and everything else in FP32.

One line per block, for people to read; decoding believes nothing. ``block_bleu`` measures it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from relay_passes.bit_plan import MAX_JSON_BYTES, strict_struct, written

from .errors import InputError
from .sensitivity_table import Coding
from .store import atomic_write, read_bytes

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockScore:
    """BLEU with one block quantized.

    Attributes:
        block: a block, or what several have in common before their underscore: ``Enc`` is all of the encoder.
        bits: the measured widths, ascending.
        bleu: one per width.
        low, high: ends of the 95 % interval of the difference to FP32, by paired bootstrap; one per width.
    """

    block: str
    bits: tuple[int, ...]
    bleu: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len({len(self.bits), len(self.bleu), len(self.low), len(self.high)}) != 1 or not self.bits:
            raise ValueError(f"{self.block}: as many values of bleu, low and high as bits are expected")
        if list(self.bits) != sorted(set(self.bits)) or not 1 <= self.bits[0] <= self.bits[-1] <= 8:
            raise ValueError(f"{self.block}: bits {self.bits} (expected 1 to 8, ascending)")
        if not all(0 <= value <= 100 for value in self.bleu):
            raise ValueError(f"{self.block}: BLEU outside of 0 to 100")
        if not all(map(math.isfinite, (*self.low, *self.high))):
            raise ValueError(f"{self.block}: intervals must be finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockScores:
    """The table of a model, and what it is bound to.

    Attributes:
        schema: version of the file.
        model_sha256: ``Checkpoint.sha256`` of the model.
        data_sha256: of the file of sentence pairs.
        sentences: how many of them were translated, by greedy search.
        signature: sacrebleu's.
        coding: how the blocks were quantized.
        bleu: of the FP32 model.
        rows: in the order of the model.
    """

    schema: int
    model_sha256: str
    data_sha256: str
    sentences: int
    signature: str
    coding: Coding
    bleu: float
    rows: tuple[BlockScore, ...]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"the file has schema {self.schema}, expected {SCHEMA}; measure again")
        if not 0 <= self.bleu <= 100 or not self.rows:
            raise ValueError("a BLEU of FP32 from 0 to 100 and at least one block are expected")

    @property
    def widths(self) -> list[int]:
        """All widths of all rows, widest first."""
        return sorted({bits for row in self.rows for bits in row.bits}, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """What ``tvmq plan --json`` prints of it."""
        return {
            "fp32": round(self.bleu, 2),
            "sentences": self.sentences,
            "signature": self.signature,
            "blocks": {
                row.block: {
                    str(bits): {"value": round(bleu, 2), "interval": [round(low, 2), round(high, 2)]}
                    for bits, bleu, low, high in zip(row.bits, row.bleu, row.low, row.high, strict=True)
                }
                for row in self.rows
            },
        }

    def write(self, path: Path) -> None:
        """A JSON file with one line per block."""
        encode = msgspec.json.Encoder().encode
        heads = [
            f'  "{field.name}": '.encode() + encode(_plain(getattr(self, field.name)))
            for field in fields(self)
            if field.name != "rows"
        ]
        rows = b",".join(b"\n    " + encode(row) for row in self.rows)
        atomic_write(path, b"{\n" + b",\n".join([*heads, b'  "rows": [' + rows + b"]"]) + b"\n}\n")

    @classmethod
    def read(cls, path: Path) -> BlockScores:
        """The file at ``path``; InputError for anything but a complete table of this schema."""
        try:
            return _decode(read_bytes(path, MAX_JSON_BYTES))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None


def _plain(value: Any) -> Any:
    return written(value) if isinstance(value, Coding) else value


def _decode(data: bytes) -> BlockScores:
    try:
        raw: Any = msgspec.json.decode(data, type=_TABLE)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a table of BLEU by block: {error}") from None
    values = {field.name: getattr(raw, field.name) for field in fields(BlockScores)}
    values["coding"] = Coding(**msgspec.structs.asdict(raw.coding))
    values["rows"] = tuple(BlockScore(**msgspec.structs.asdict(row)) for row in raw.rows)
    return BlockScores(**values)


_TABLE = strict_struct(
    BlockScores, coding=strict_struct(Coding), rows=tuple[strict_struct(BlockScore), ...]
)
