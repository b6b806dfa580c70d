# SPDX-License-Identifier: Apache-2.0
"""One safetensors file: a bounded reader that believes nothing, and an aligned writer.

Checkpoints (``checkpoint``) and artifacts (``artifact``) read through the same header check. What we
write puts every tensor on a 64-byte boundary, so that kernels load it from the mapped file; the format
forbids holes, so the gaps are tensors of their own (``__pad__N``), which the reader leaves out.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, TvmqError
from .store import parse_json, show

ALIGNMENT = 64
"""Bytes; one cache line, one AVX-512 register."""
MAX_HEADER = 100_000_000
"""Bytes; the limit that the format itself sets."""
MAX_DIMENSIONS = 8
_PAD = "__pad__"

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_NUMPY = {
    "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "I32": "<i4",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_WRITABLE = {
    "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "int32": "I32", "float16": "F16",
    "float32": "F32",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: ``begin`` and ``end`` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """A checked header over a read-only mapping of the file.

    The entries cover the data exactly: no hole, no overlap, every length equal to shape x dtype.
    """

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    error: type[TvmqError]
    _mapping: mmap.mmap
    _bytes: NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path, *, error: type[TvmqError] = InputError) -> TensorFile:
        """Maps the file and checks its header; any defect raises ``error`` naming file and tensor."""
        mapping = _map(path, error)
        data = np.frombuffer(mapping, np.uint8)
        data.flags.writeable = False  # private pages: DLPack may hand them on, nothing writes the file
        start = _header_end(path, data, error)
        header = parse_json(data[8:start].tobytes(), f"{path}: header", error=error)
        if not isinstance(header, dict):
            raise error(f"{path}: the header is not a JSON object")
        metadata = _metadata(path, header.pop("__metadata__", {}), error)
        entries = {name: _entry(path, name, value, start, error) for name, value in header.items()}
        _check_cover(path, entries, start, data.size, error)
        return cls(
            path=path, entries=entries, metadata=metadata, error=error, _mapping=mapping, _bytes=data
        )

    def raw(self, name: str) -> NDArray[Any]:
        """A read-only view of a tensor in its stored dtype; BF16 as its uint16 bit pattern."""
        entry = self.entries[name]
        dtype = "<u2" if entry.dtype == "BF16" else _NUMPY.get(entry.dtype)
        if dtype is None:
            raise self.error(f"{self.path}: tensor {show(name)} has the unsupported dtype {entry.dtype}")
        return self._bytes[entry.begin : entry.end].view(dtype).reshape(entry.shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        """A fresh float32 array of a float tensor, checked to be finite."""
        entry, raw = self.entries[name], self.raw(name)
        match entry.dtype:
            case "BF16":
                values = (raw.astype(np.uint32) << 16).view(np.float32)
            case "F16" | "F32" | "F64":
                with np.errstate(over="ignore", invalid="ignore"):
                    values = raw.astype(np.float32)
            case other:
                raise self.error(
                    f"{self.path}: tensor {show(name)} has dtype {other}, expected F16, BF16, F32 or F64"
                )
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            raise self.error(
                f"{self.path}: tensor {show(name)} holds {bad} values that are not finite "
                "(NaN or infinity in FP32), expected none (export the model again)"
            )
        self.release(name)
        return values

    def release(self, name: str) -> None:
        """Gives the pages of a tensor back to the system; views of it stay valid and read the file again."""
        entry = self.entries[name]
        first = entry.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        if hasattr(mmap, "MADV_DONTNEED") and entry.end > first:
            self._mapping.madvise(mmap.MADV_DONTNEED, first, entry.end - first)


def write_weights(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors in the given order, each on a 64-byte boundary, as a valid safetensors file.

    Args:
        path: the file to make, inside a staging folder (see ``store.atomic_dir``).
        tensors: name -> array of uint8, int8, uint16, int16, int32, float16 or float32. Names starting with
            ``__`` are the format's own.
        metadata: text for the header, name -> value.

    Raises:
        ValueError: an unsupported dtype or a reserved name.
    """
    header, gaps = _layout(tensors)
    if metadata:
        header = {"__metadata__": dict(metadata)} | header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array, gap in zip(tensors.values(), gaps, strict=True):
            file.write(bytes(gap))
            file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).data)


def open_weights(path: Path, *, error: type[TvmqError] = InputError) -> dict[str, NDArray[Any]]:
    """Read-only views of every tensor of a file made by ``write_weights``, mapped, 64-byte aligned."""
    file = TensorFile.open(path, error=error)
    names = [name for name in file.entries if not is_padding(name)]
    for name in names:
        if file.entries[name].begin % ALIGNMENT:
            raise error(f"{path}: tensor {show(name)} is not aligned to {ALIGNMENT} bytes (compile again)")
    return {name: file.raw(name) for name in names}


def is_padding(name: str) -> bool:
    """Whether a tensor only fills the gap before an aligned one."""
    return name.startswith(_PAD)


def _layout(tensors: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], list[int]]:
    """The header, and the pad bytes before each tensor."""
    header: dict[str, Any] = {}
    gaps: list[int] = []
    position = 0
    for name, array in tensors.items():
        dtype = _WRITABLE.get(array.dtype.name)
        if dtype is None or name.startswith("__"):
            known = ", ".join(_WRITABLE)
            raise ValueError(f"tensor {name!r} of {array.dtype} cannot be stored; dtypes: {known}")
        gap = -position % ALIGNMENT
        if gap:
            span = [position, position + gap]
            header[f"{_PAD}{len(gaps)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": span}
        gaps.append(gap)
        position += gap
        span = [position, position + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        position += array.nbytes
    return header, gaps


def _map(path: Path, error: type[TvmqError]) -> mmap.mmap:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not make the reader wait
    except OSError as exc:
        raise error(f"{path}: cannot be read ({exc.strerror})") from exc
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise error(f"{path}: not a regular file")
        if info.st_size < 8:
            raise error(f"{path}: {info.st_size} bytes, too short for a safetensors file")
        return mmap.mmap(handle, info.st_size, access=mmap.ACCESS_COPY)
    except OSError as exc:
        raise error(f"{path}: cannot be mapped ({exc.strerror})") from exc
    finally:
        os.close(handle)


def _header_end(path: Path, data: NDArray[np.uint8], error: type[TvmqError]) -> int:
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER:
        raise error(f"{path}: the header claims {length} bytes, expected at most {MAX_HEADER}")
    if 8 + length > data.size:
        raise error(f"{path}: the header claims {length} bytes, but the file has {data.size} (truncated?)")
    return 8 + length


def _metadata(path: Path, metadata: object, error: type[TvmqError]) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise error(f"{path}: __metadata__ in the header must map names to text")
    return metadata


def _entry(path: Path, name: str, value: object, start: int, error: type[TvmqError]) -> TensorEntry:
    where = f"{path}: tensor {show(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise error(f"{where}: expected exactly dtype, shape and data_offsets in the header")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise error(f"{where}: unknown dtype {show(str(dtype))}, expected one of {', '.join(_ITEM_BYTES)}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise error(f"{where}: shape {show(str(shape))}, expected at most {MAX_DIMENSIONS} whole numbers")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error(f"{where}: data_offsets {show(str(offsets))}, expected a begin and an end")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise error(
            f"{where}: data_offsets hold {show(str(offsets[1] - offsets[0]))} bytes, "
            f"but {dtype} of shape {shape} needs {expected}"
        )
    return TensorEntry(dtype=dtype, shape=tuple(shape), begin=start + offsets[0], end=start + offsets[1])


def _sizes(value: object) -> bool:
    """Whether a value is a list of plain numbers from 0 to 2^62 (bool is an int to Python, not to us)."""
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in value)


def _check_cover(
    path: Path, entries: dict[str, TensorEntry], start: int, size: int, error: type[TvmqError]
) -> None:
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.end > size:
            raise error(
                f"{path}: tensor {show(name)} ends at byte {entry.end}, but the file has {size} (truncated?)"
            )
        if entry.begin != position:
            defect = "leaves a hole after" if entry.begin > position else "overlaps"
            raise error(f"{path}: tensor {show(name)} {defect} the tensor before it")
        position = entry.end
    if position != size:
        raise error(f"{path}: {size - position} bytes after the last tensor, expected none")
