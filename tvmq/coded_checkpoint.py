# SPDX-License-Identifier: Apache-2.0
"""Coded checkpoints: a model folder whose planned matrices are stored as binary planes and scales.

``tvmq quantize`` and retraining write them, ``Checkpoint.open`` reads them, ``tvmq compile`` takes their
planes as they are. Beside config.json and the tokenizer lie plan.json and one model.safetensors::

    NAME:planes   uint8[bits, n, ceil(k / 8)]     a matrix NAME [n, k] with one width for all rows
    NAME:scales   float16 or float32[bits, n, groups]; int8 mantissas where the plan says pow2
    NAME:exponents  int8[n, groups], beside mantissas
    NAME:offsets  dtype of the scales [n, groups], where the plan has offsets
    NAME:order    int32[n]                        a word table: storage row -> word
    NAME:0:planes, NAME:0:scales, ...             and its clusters, most frequent words first
    NAME          float16 or float32              everything else

The header's metadata holds ``format`` and, for every coded NAME, its columns k (planes have whole bytes).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import (
    FLOAT_BITS,
    MAX_JSON_BYTES,
    BitPlan,
    BlockBits,
    WordBits,
    decode_plan,
    encode_plan,
)
from schedules.packing import BitPlanes, WordPlanes
from schedules.pow2 import POW2, check_pow2, scale_storage

from .errors import InputError
from .store import atomic_dir, read_bytes, show
from .tensor_file import TensorFile, is_padding, write_weights

WEIGHTS, PLAN = "model.safetensors", "plan.json"
FORMAT = "tvmq coded checkpoint 1"
"""``format`` in the header's metadata; the number changes with the layout."""
_FAMILY_OF_FORMATS = "tvmq coded checkpoint"
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "source.spm", "target.spm", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.json", "token_freq.tsv",
    "modules.json", "sentence_bert_config.json", "*_Pooling/config.json",
    "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "PACKAGES.txt",
)  # fmt: skip
"""Files that a coded checkpoint takes over from its model folder, where they are there."""
_DTYPES = {"U8": "uint8", "I8": "int8", "I32": "int32", "F16": "float16", "F32": "float32"}
_MAX_COLUMNS = 1 << 24

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Stored name -> (dtype, shape)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedTensors:
    """The coded tensors of an open file; names, dtypes and shapes agree with ``plan``.

    What the tensors hold is checked when they are read.
    """

    plan: BitPlan
    _file: TensorFile
    _entries: dict[str, BlockBits | WordBits]
    _columns: dict[str, int]

    @classmethod
    def open(cls, file: TensorFile) -> CodedTensors | None:
        """The coded tensors of a folder's model.safetensors; None where it is an ordinary checkpoint.

        Raises:
            InputError: a format of another version, no plan.json beside the file, or one that does not
                describe what is stored.
        """
        version = file.metadata.get("format", "")
        if not version.startswith(_FAMILY_OF_FORMATS):
            return None
        if version != FORMAT:
            raise InputError(
                f"{file.path}: format {show(version)}, this version of tvmq reads {FORMAT!r} "
                "(quantize the model again)"
            )
        path = file.path.parent / PLAN
        try:
            plan = decode_plan(read_bytes(path, MAX_JSON_BYTES))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        entries = _coded(plan)
        columns = {name: _columns(file, name) for name in entries}
        layout = {name: (_DTYPES.get(e.dtype, e.dtype), e.shape) for name, e in file.entries.items()}
        try:
            _check_layout(plan, columns, {n: stored for n, stored in layout.items() if not is_padding(n)})
        except ValueError as error:
            raise InputError(f"{file.path}: {error}") from None
        return cls(plan=plan, _file=file, _entries=entries, _columns=columns)

    def names(self) -> set[str]:
        """The coded tensors."""
        return set(self._entries)

    def plain(self) -> list[str]:
        """The tensors that the file holds as floats."""
        return [name for name in self._file.entries if ":" not in name and not is_padding(name)]

    def shape(self, name: str) -> tuple[int, int]:
        """[n, k] of a coded tensor."""
        entry = self._entries[name]
        parts = _parts(entry)
        return sum(self._file.entries[f"{part}:planes"].shape[1] for part in parts), self._columns[name]

    def planes(self, name: str) -> BitPlanes | WordPlanes:
        """What a coded tensor holds; InputError where its numbers are none that a quantizer makes."""
        entry, columns = self._entries[name], self._columns[name]
        group = entry.group_size or columns
        segments = []
        for part in _parts(entry):
            codes = self._file.raw(f"{part}:planes")
            segments.append(
                BitPlanes(
                    planes=codes,
                    scales=self._file.raw(f"{part}:scales"),
                    offsets=self._file.raw(f"{part}:offsets") if entry.offset else None,
                    shape=(codes.shape[1], columns),
                    group_size=group,
                    exponents=self._file.raw(f"{part}:exponents") if entry.scale_dtype == POW2 else None,
                )
            )
        if isinstance(entry, WordBits):
            found = WordPlanes(order=self._file.raw(f"{name}:order"), segments=tuple(segments))
        else:
            (found,) = segments
        try:
            check_values(name, found)
        except ValueError as error:
            raise InputError(f"{self._file.path}: {error}") from None
        return found


def coded_folder(output: Path, model: Path, force: bool) -> AbstractContextManager[Path]:
    """``atomic_dir`` for a coded checkpoint made from the folder ``model``."""
    return atomic_dir(output, force, inputs=[model], kind="a coded checkpoint", markers=(PLAN, WEIGHTS))


def write_coded(
    output: Path,
    *,
    model: Path,
    plan: BitPlan,
    planes: Mapping[str, BitPlanes | WordPlanes],
    floats: Mapping[str, NDArray[Any]],
    force: bool,
) -> None:
    """Writes a coded checkpoint; it appears complete or not at all.

    Args:
        output: the folder to write.
        force: replace an existing coded checkpoint.
        model, plan, planes, floats: see ``fill_coded``.

    Raises:
        ValueError: ``planes`` and ``floats`` are not what the plan says.
        UsageError: the output exists or overlaps the model folder.
        InputError: the output cannot be written, or a file of the model folder not be read.
    """
    with coded_folder(output, model, force) as staging:
        fill_coded(staging, model=model, plan=plan, planes=planes, floats=floats)


def fill_coded(
    folder: Path,
    *,
    model: Path,
    plan: BitPlan,
    planes: Mapping[str, BitPlanes | WordPlanes],
    floats: Mapping[str, NDArray[Any]],
) -> None:
    """Writes the files of a coded checkpoint into ``folder``, the empty one that ``coded_folder`` gives.

    Args:
        folder: where to write.
        model: the folder that config.json, the tokenizer and licence notes come from.
        plan: bits of every tensor.
        planes: codes of every tensor that ``plan`` does not keep in FP32.
        floats: the other tensors that the model computes with (biases, norms, tensors of 32 bits) by their
            names in the checkpoint; stored in float16 where that is exact for every value, else in float32.

    Raises:
        ValueError: ``planes`` and ``floats`` are not what the plan says.
    """
    entries = _coded(plan)
    tensors = {name: narrowed(name, value) for name, value in sorted(floats.items())}
    for name in sorted(planes):
        tensors |= _flat(name, planes[name])
    columns = {name: value.shape[1] for name, value in planes.items()}
    if strangers := sorted(planes.keys() ^ entries.keys()):
        raise ValueError(f"planes and plan differ in {some(strangers)}")
    _check_layout(plan, columns, {name: (a.dtype.name, a.shape) for name, a in tensors.items()})
    for name, value in planes.items():
        check_values(name, value)
    metadata = {"format": FORMAT} | {name: str(columns[name]) for name in sorted(columns)}
    _copy_companions(model, folder)
    (folder / PLAN).write_bytes(encode_plan(plan))
    write_weights(folder / WEIGHTS, tensors, metadata)


def narrowed(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """A float array in float16 where that keeps every value, else in float32; ValueError where not finite."""
    single = np.asarray(value, np.float32)
    if not np.isfinite(single).all():
        raise ValueError(f"tensor {show(name)} holds values that are not finite")
    with np.errstate(over="ignore"):
        half = single.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), single) else single


def check_values(name: str, value: BitPlanes | WordPlanes) -> None:
    """ValueError for set spare bits, scales that are not finite or overflow, an order with repetitions."""
    segments = value.segments if isinstance(value, WordPlanes) else (value,)
    for segment in segments:
        spare = -segment.shape[1] % 8
        if spare and (segment.planes[:, :, -1] >> (8 - spare)).any():
            raise ValueError(f"tensor {show(name)}: bits beyond column {segment.shape[1]} are set")
        if segment.exponents is not None:
            _check_pow2(name, segment)
            continue
        largest = np.abs(segment.scales.astype(np.float64)).sum(0)
        if segment.offsets is not None:
            largest = largest + np.abs(segment.offsets.astype(np.float64))
        if not (largest <= np.finfo(np.float32).max).all():
            raise ValueError(f"tensor {show(name)}: scales or offsets are not finite in FP32")
    if isinstance(value, WordPlanes):
        rows = value.shape[0]
        if not np.array_equal(np.sort(value.order), np.arange(rows)):
            raise ValueError(f"tensor {show(name)}: the order does not name each of {rows} words once")


def _check_pow2(name: str, segment: BitPlanes) -> None:
    mantissas, offsets = segment.scales, segment.offsets
    together = mantissas if offsets is None else np.concatenate([mantissas, offsets[None]])
    assert segment.exponents is not None
    try:
        check_pow2(together.astype(np.int8), segment.exponents)
    except ValueError as error:
        raise ValueError(f"tensor {show(name)}: {error}") from None


def some(names: Iterable[str], limit: int = 3) -> str:
    """A few untrusted names for a one-line message."""
    found = list(names)
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(show(name) for name in found[:limit]) + more


def _coded(plan: BitPlan) -> dict[str, BlockBits | WordBits]:
    return {e.tensor: e for e in plan.entries() if isinstance(e, WordBits) or e.bits != FLOAT_BITS}


def _parts(entry: BlockBits | WordBits) -> list[str]:
    """The prefixes that the planes of a tensor are stored under."""
    if isinstance(entry, WordBits):
        return [f"{entry.tensor}:{i}" for i in range(len(entry.clusters))]
    return [entry.tensor]


def _columns(file: TensorFile, name: str) -> int:
    text = file.metadata.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 8 and 1 <= int(text) <= _MAX_COLUMNS):
        raise InputError(
            f"{file.path}: the header does not say how many columns {show(name)} has, as plan.json expects"
        )
    return int(text)


def _check_layout(plan: BitPlan, columns: Mapping[str, int], layout: Layout) -> None:
    """ValueError, in one sentence, where stored names, dtypes or shapes are not what the plan says."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, entry in _coded(plan).items():
        if name in layout:
            raise ValueError(f"tensor {show(name)} is stored as floats and planned as planes, expected one")
        expected |= _expected(entry, columns[name], layout)
    stored = {name for name in layout if ":" in name}
    kept = {e.tensor for e in plan.blocks if e.bits == FLOAT_BITS}
    if missing := sorted((expected.keys() - stored) | (kept - layout.keys())):
        raise ValueError(f"{some(missing)} of the plan is not stored (use plan and weights of one model)")
    if strangers := sorted(stored - expected.keys()):
        raise ValueError(f"{some(strangers)} is not in the plan (use plan and weights of one model)")
    for name, wanted in expected.items():
        if layout[name] != wanted:
            raise ValueError(
                f"tensor {show(name)} is {_text(layout[name])}, the plan expects {_text(wanted)}"
            )


def _expected(
    entry: BlockBits | WordBits, columns: int, layout: Layout
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What one coded tensor is stored as. No plan has the rows of a matrix: they are those of its planes."""
    name, group = entry.tensor, entry.group_size or columns
    if columns % group:
        raise ValueError(f"{show(name)} has {columns} columns, which group size {group} does not divide")
    groups, width, dtype = columns // group, -(-columns // 8), scale_storage(entry.scale_dtype)
    result: dict[str, tuple[str, tuple[int, ...]]] = {}
    if isinstance(entry, WordBits):
        clusters = entry.clusters
        result[f"{name}:order"] = ("int32", (entry.rows,))
    else:
        shape = layout.get(f"{name}:planes", ("", ()))[1]
        clusters = ((shape[1] if len(shape) == 3 else 1, entry.bits),)
    for part, (rows, bits) in zip(_parts(entry), clusters, strict=True):
        result[f"{part}:planes"] = ("uint8", (bits, max(rows, 1), width))
        result[f"{part}:scales"] = (dtype, (bits, rows, groups))
        if entry.scale_dtype == POW2:
            result[f"{part}:exponents"] = ("int8", (rows, groups))
        if entry.offset:
            result[f"{part}:offsets"] = (dtype, (rows, groups))
    return result


def _text(stored: tuple[str, tuple[int, ...]]) -> str:
    return f"{stored[0]}{list(stored[1])}"


def _flat(name: str, value: BitPlanes | WordPlanes) -> dict[str, NDArray[Any]]:
    """The stored arrays of one coded tensor."""
    if isinstance(value, WordPlanes):
        parts = {f"{name}:{i}": segment for i, segment in enumerate(value.segments)}
        arrays: dict[str, NDArray[Any]] = {f"{name}:order": value.order}
    else:
        parts, arrays = {name: value}, {}
    for part, segment in parts.items():
        arrays |= {f"{part}:planes": segment.planes, f"{part}:scales": segment.scales}
        if segment.exponents is not None:
            arrays[f"{part}:exponents"] = segment.exponents
        if segment.offsets is not None:
            arrays[f"{part}:offsets"] = segment.offsets
    return arrays


def _copy_companions(model: Path, folder: Path) -> None:
    found = {path for pattern in COMPANIONS for path in model.glob(pattern) if path.is_file()}
    for path in sorted(found):
        place = folder / path.relative_to(model)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
