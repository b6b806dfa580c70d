# SPDX-License-Identifier: Apache-2.0
"""Coded checkpoints: a model folder whose planned matrices are stored as binary planes and scales.

``tvmq quantize`` and retraining write them, ``Checkpoint.open`` reads them, ``tvmq compile`` takes their
planes as they are. Beside config.json and the tokenizer lie plan.json and one model.safetensors::

    NAME:planes   uint8[bits, n, ceil(k / 8)]     a matrix NAME [n, k] with one width for all rows
    NAME:scales   float16 or float32[bits, n, groups]; int8 mantissas where the plan says pow2
    NAME:exponents  int8[n, groups], beside mantissas
    NAME:offsets  dtype of the scales [n, groups], where the plan has offsets
    NAME:starts, NAME:places, NAME:values         outliers, see ``schedules.outliers``
    NAME:order    int32[n]                        a word table: storage row -> word
    NAME:0:planes, NAME:0:scales, ...             and its clusters, most frequent words first
    NAME          float16 or float32              everything else

The header's metadata holds ``format`` and, for every coded NAME, its columns k (planes have whole bytes).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import (
    MAX_JSON_BYTES,
    BitPlan,
    BlockBits,
    WordBits,
    decode_plan,
    encode_plan,
)
from schedules.packing import BitPlanes, WordPlanes

from .coded_layout import (
    check_layout,
    check_values,
    coded_entries,
    coded_tensor,
    flat_arrays,
    parts_of,
    some,
)
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
_DTYPES = {"U8": "uint8", "I8": "int8", "U16": "uint16", "I32": "int32", "F16": "float16", "F32": "float32"}
_MAX_COLUMNS = 1 << 24

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
        entries = coded_entries(plan)
        columns = {name: _columns(file, name) for name in entries}
        layout = {name: (_DTYPES.get(e.dtype, e.dtype), e.shape) for name, e in file.entries.items()}
        try:
            check_layout(plan, columns, {n: stored for n, stored in layout.items() if not is_padding(n)})
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
        parts = parts_of(entry)
        return sum(self._file.entries[f"{part}:planes"].shape[1] for part in parts), self._columns[name]

    def planes(self, name: str) -> BitPlanes | WordPlanes:
        """What a coded tensor holds; InputError where its numbers are none that a quantizer makes."""
        stored = (other for other in self._file.entries if other.startswith(f"{name}:"))
        arrays = {other: self._file.raw(other) for other in stored}
        try:
            return coded_tensor(self._entries[name], self._columns[name], arrays)
        except ValueError as error:
            raise InputError(f"{self._file.path}: {error}") from None


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
    entries = coded_entries(plan)
    tensors = {name: narrowed(name, value) for name, value in sorted(floats.items())}
    for name in sorted(planes):
        tensors |= flat_arrays(name, planes[name])
    columns = {name: value.shape[1] for name, value in planes.items()}
    if strangers := sorted(planes.keys() ^ entries.keys()):
        raise ValueError(f"planes and plan differ in {some(strangers)}")
    check_layout(plan, columns, {name: (a.dtype.name, a.shape) for name, a in tensors.items()})
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


def _columns(file: TensorFile, name: str) -> int:
    text = file.metadata.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 8 and 1 <= int(text) <= _MAX_COLUMNS):
        raise InputError(
            f"{file.path}: the header does not say how many columns {show(name)} has, as plan.json expects"
        )
    return int(text)


def _copy_companions(model: Path, folder: Path) -> None:
    found = {path for pattern in COMPANIONS for path in model.glob(pattern) if path.is_file()}
    for path in sorted(found):
        place = folder / path.relative_to(model)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
