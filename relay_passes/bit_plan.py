# SPDX-License-Identifier: Apache-2.0
"""The bit plan: which tensor gets how many bits, groups and which quantizer.

Made by ``tvmq.planning``, read by the quantizers and the passes. Its JSON form is ``plan.json``, one line
per tensor, which a person can read, edit and feed back in; decoding believes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import msgspec

ScaleDtype = Literal["float16", "float32", "pow2"]
"""What scales and offsets are stored in; pow2: mantissas over a shared power of two (``schedules.pow2``)."""
SCALE_DTYPES: tuple[str, ...] = get_args(ScaleDtype)
Mode = Literal["float", "block-int"]
"""What is between the matrices: float32 values, or blocks of small integers (``schedules.block_format``)."""
SCHEMA = 1
"""The only plan version this code reads and writes."""
FLOAT_BITS = 32
"""Bit width of a tensor that stays FP32."""
MAX_BITS = 8
"""Most planes a quantized tensor can have."""
ACTIVATION_BITS = 8
ACTIVATION_BLOCK = 64
"""Activations of mode block-int unless a plan says otherwise."""
MAX_OUTLIERS = 5.0
"""Percent; more of them cost more than another plane."""
MAX_JSON_BYTES = 16 << 20
_MAX_COLUMNS = 1 << 24
_MAX_ROWS = 1 << 31
_MAX_CLUSTERS = 64
_MAX_NAME = 512
_OPTIONAL = ("mode", "activation_bits", "activation_block", "outliers", "measure", "method")
"""Fields of plans and measurements that JSON leaves out at their default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBits:
    """Bits of one weight matrix [n, k].

    ``bits`` is 1..8, or 32 for "stays FP32". ``group_size`` None means one scale per row and plane. So many
    percent of the weights are ``outliers``, stored beside the planes. In mode block-int the matrix reads
    activations of ``activation_bits`` (2..8) whose blocks of ``activation_block`` columns share an exponent
    (None: the whole row).
    """

    tensor: str
    block: str
    bits: int
    group_size: int | None = None
    quantizer: str = "alternating"
    offset: bool = False
    scale_dtype: ScaleDtype = "float16"
    outliers: float = 0.0
    activation_bits: int = ACTIVATION_BITS
    activation_block: int | None = ACTIVATION_BLOCK

    def __post_init__(self) -> None:
        _check_common(self)
        if not 2 <= self.activation_bits <= ACTIVATION_BITS:
            raise ValueError(
                f"{self.tensor}: activations of {self.activation_bits} bits are impossible (expected 2 to 8)"
            )
        if self.activation_block is not None and not 1 <= self.activation_block <= _MAX_COLUMNS:
            raise ValueError(
                f"{self.tensor}: blocks of {self.activation_block} columns are impossible "
                "(expected 1 or more, or null)"
            )
        if not (1 <= self.bits <= MAX_BITS or self.bits == FLOAT_BITS):
            raise ValueError(
                f"{self.tensor}: {self.bits} bits are impossible (expected 1 to 8, or 32 for FP32)"
            )

    def by_word(self, clusters: tuple[tuple[int, int], ...]) -> WordBits:
        """The same tensor with bits by word, otherwise stored as this one."""
        return WordBits(clusters=clusters, **_common(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class WordBits:
    """Bits per row of an embedding: ``clusters`` of (rows, bits), most frequent words first."""

    tensor: str
    block: str
    clusters: tuple[tuple[int, int], ...]
    group_size: int | None = None
    quantizer: str = "alternating"
    offset: bool = False
    scale_dtype: ScaleDtype = "float16"
    outliers: float = 0.0

    def __post_init__(self) -> None:
        _check_common(self)
        if not 1 <= len(self.clusters) <= _MAX_CLUSTERS:
            raise ValueError(
                f"{self.tensor}: {len(self.clusters)} word clusters (expected 1 to {_MAX_CLUSTERS})"
            )
        for rows, bits in self.clusters:
            if not 1 <= rows < _MAX_ROWS:
                raise ValueError(f"{self.tensor}: a word cluster of {rows} rows (expected at least 1)")
            if not 1 <= bits <= MAX_BITS:
                raise ValueError(f"{self.tensor}: {bits} bits for words are impossible (expected 1 to 8)")

    @property
    def rows(self) -> int:
        """Words in all clusters."""
        return sum(rows for rows, _ in self.clusters)

    def cluster(self, bits: int) -> BlockBits:
        """A cluster of so many bits as a matrix of its own."""
        return BlockBits(bits=bits, **_common(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class BitPlan:
    """Bits of every quantizable tensor of one model. No tensor is named twice."""

    schema: int
    blocks: tuple[BlockBits, ...]
    words: tuple[WordBits, ...]
    source: str
    mode: Mode = "float"

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(
                f"the plan has schema {self.schema}, this version reads schema {SCHEMA}; make the plan again"
            )
        if self.mode != "float" and any(entry.outliers for entry in self.entries()):
            raise ValueError(f"mode {self.mode} has no outliers beside the planes")
        counts = Counter(entry.tensor for entry in self.entries())
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"the plan names a tensor more than once: {_some(twice)}")

    def entries(self) -> tuple[BlockBits | WordBits, ...]:
        """Blocks, then words."""
        return (*self.blocks, *self.words)

    def validate(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Check the plan against a model's quantizable matrices, name -> (rows, columns).

        Raises:
            ValueError: one sentence with every unknown and missing tensor, group size that does not
                divide and word count that differs.
        """
        planned = {entry.tensor: entry for entry in self.entries()}
        faults = []
        if unknown := sorted(planned.keys() - shapes.keys()):
            faults.append(f"names tensors that the model does not have: {_some(unknown)}")
        if missing := sorted(shapes.keys() - planned.keys()):
            faults.append(f"does not name {_some(missing)} (use 32 bits to keep a tensor FP32)")
        misfits = [_misfit(planned[name], shapes[name]) for name in planned.keys() & shapes.keys()]
        faults += sorted(fault for fault in misfits if fault)
        if faults:
            raise ValueError(f"the plan does not fit the model: it {'; it '.join(faults)}")


def encode_plan(plan: BitPlan) -> bytes:
    """``plan.json``: the same bytes for the same plan, one line per tensor."""
    encode = msgspec.json.Encoder().encode

    def lines(entries: tuple[BlockBits, ...] | tuple[WordBits, ...]) -> bytes:
        return b"[" + b",".join(b"\n    " + encode(written(entry)) for entry in entries) + b"]"

    parts = {
        "schema": encode(plan.schema),
        "source": encode(plan.source),
        **({} if plan.mode == "float" else {"mode": encode(plan.mode)}),
        "words": lines(plan.words),
        "blocks": lines(plan.blocks),
    }
    body = b",\n".join(b'  "' + key.encode() + b'": ' + value for key, value in parts.items())
    return b"{\n" + body + b"\n}\n"


def written(entry: Any) -> dict[str, Any]:
    """The fields of an entry as they are written: without optional ones at their default.

    Plans from before there were such fields are read, and plans that do not use them keep their hash.
    """
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    default = {field.name: field.default for field in fields(entry) if field.name in _OPTIONAL}
    return {name: value for name, value in values.items() if name not in default or value != default[name]}


def decode_plan(data: bytes) -> BitPlan:
    """The plan in ``data``; ValueError for anything but a complete, possible plan of this schema."""
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"the plan is {len(data)} bytes long (at most {MAX_JSON_BYTES} are read)")
    try:
        raw: Any = msgspec.json.decode(data, type=_PLAN)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a bit plan: {error}") from None
    return BitPlan(
        schema=raw.schema,
        source=raw.source,
        mode=raw.mode,
        blocks=tuple(BlockBits(**msgspec.structs.asdict(entry)) for entry in raw.blocks),
        words=tuple(WordBits(**msgspec.structs.asdict(entry)) for entry in raw.words),
    )


def check_percent(percent: float) -> None:
    """ValueError for a share of outliers that is none."""
    if not 0 <= percent <= MAX_OUTLIERS:
        raise ValueError(f"{percent:g} percent of outliers (expected 0 to {MAX_OUTLIERS:g})")


def plan_hash(plan: BitPlan) -> str:
    """sha256 of ``encode_plan``, in hex."""
    return hashlib.sha256(encode_plan(plan)).hexdigest()


def strict_struct(cls: type[Any], **replaced: Any) -> Any:
    """A msgspec struct with ``cls``'s fields, all but ``_OPTIONAL`` required, that refuses unknown ones."""
    hints = get_type_hints(cls) | replaced
    known: list[Any] = [(f.name, hints[f.name]) for f in fields(cls) if f.name not in _OPTIONAL]
    known += [(f.name, hints[f.name], f.default) for f in fields(cls) if f.name in _OPTIONAL]
    return msgspec.defstruct(f"{cls.__name__} entry", known, forbid_unknown_fields=True)


_PLAN = strict_struct(
    BitPlan, blocks=tuple[strict_struct(BlockBits), ...], words=tuple[strict_struct(WordBits), ...]
)


def _check_common(entry: BlockBits | WordBits) -> None:
    for label, text in (("tensor", entry.tensor), ("block", entry.block), ("quantizer", entry.quantizer)):
        if not 1 <= len(text) <= _MAX_NAME:
            raise ValueError(f"a {label} name has {len(text)} characters (expected 1 to {_MAX_NAME})")
    if entry.group_size is not None and not 1 <= entry.group_size <= _MAX_COLUMNS:
        raise ValueError(
            f"{entry.tensor}: group size {entry.group_size} is impossible (expected 1 or more, or null)"
        )
    if entry.scale_dtype not in SCALE_DTYPES:
        raise ValueError(
            f"{entry.tensor}: scales in {entry.scale_dtype!r} (expected {', '.join(SCALE_DTYPES)})"
        )
    try:
        check_percent(entry.outliers)
    except ValueError as error:
        raise ValueError(f"{entry.tensor}: {error}") from None


def _common(entry: BlockBits | WordBits) -> dict[str, Any]:
    """Everything but the bits."""
    names = (field.name for field in fields(WordBits) if field.name != "clusters")
    return {name: getattr(entry, name) for name in names}


def _misfit(entry: BlockBits | WordBits, shape: tuple[int, int]) -> str:
    rows, columns = shape
    if isinstance(entry, WordBits) and entry.rows != rows:
        return f"gives bits to {entry.rows} words of {entry.tensor}, which has {rows}"
    stays_float = isinstance(entry, BlockBits) and entry.bits == FLOAT_BITS
    if entry.group_size is not None and not stays_float and columns % entry.group_size:
        return f"gives {entry.tensor} group size {entry.group_size}, which does not divide {columns} columns"
    return ""


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
