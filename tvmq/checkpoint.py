# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder, read without trusting it: the entrance of every compile.

Only JSON and safetensors are read, each checked before it is believed; pickles are never loaded.
Tensors are mapped and become float32 one at a time, when asked for. A coded checkpoint (``coded_checkpoint``)
reads like any other: its matrices have their own names and the values that its planes stand for.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan
from schedules.packing import BitPlanes, WordPlanes

from .coded_checkpoint import PLAN, WEIGHTS, CodedTensors
from .errors import InputError
from .store import read_bytes, read_json_object, sha256_file, show
from .tensor_file import TensorFile

SINGLE = WEIGHTS
INDEX = "model.safetensors.index.json"
FREQUENCIES = "token_freq.tsv"
_MAX_CONFIG = 4 << 20
_MAX_INDEX = 64 << 20
_MAX_FREQUENCIES = 256 << 20
_FREQUENCY_HEADER = "id\tpiece\tcount_src\tcount_tgt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checked model folder.

    Attributes:
        path: the folder.
        config: config.json.
        generation: generation_config.json, or {} where there is none.
    """

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    _tensors: dict[str, TensorFile]
    _coded: CodedTensors | None = None
    _hash: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Opens a folder with config.json and model.safetensors or its sharded index.

        Raises:
            InputError: one sentence that names the file, and the tensor where there is one.
        """
        folder = Path(path)
        try:
            return cls._read(folder)
        except OSError as exc:
            raise InputError(f"{folder}: cannot be read ({exc.strerror})") from exc

    @classmethod
    def _read(cls, folder: Path) -> Checkpoint:
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing there"
            raise InputError(f"{folder}: {found}, expected a model folder with config.json and {SINGLE}")
        config = read_json_object(folder / "config.json", _MAX_CONFIG)
        generation = folder / "generation_config.json"
        tensors, coded = _open_tensors(folder)
        return cls(
            path=folder,
            config=config,
            generation=read_json_object(generation, _MAX_CONFIG) if generation.exists() else {},
            _tensors=tensors,
            _coded=coded,
        )

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; an unknown name is an InputError."""
        file = self._file(name)
        if self._coded and name in self._coded.names():
            return self._coded.shape(name)
        return file.entries[name].shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A fresh float32 array of a tensor stored as F16, BF16, F32, F64 or planes, checked to be finite."""
        planes = self.planes(name)
        return self._file(name).float32(name) if planes is None else planes.dequantize()

    def planes(self, name: str) -> BitPlanes | WordPlanes | None:
        """The codes of a tensor that is stored as planes; None for any other."""
        coded = self._coded
        return coded.planes(name) if coded and name in coded.names() else None

    @property
    def plan(self) -> BitPlan | None:
        """The plan that a coded checkpoint was made by; None for any other."""
        return self._coded.plan if self._coded else None

    @property
    def sha256(self) -> str:
        """The hash over names and contents of config.json, the index, a stored plan and every tensor file."""
        if not self._hash:
            paths = {file.path for file in self._tensors.values()} | {self.path / "config.json"}
            if not (self.path / SINGLE).exists():
                paths.add(self.path / INDEX)
            if self._coded:
                paths.add(self.path / PLAN)
            lines = "".join(f"{sha256_file(p)}  {p.name}\n" for p in sorted(paths))
            self._hash.append(hashlib.sha256(lines.encode()).hexdigest())
        return self._hash[0]

    def frequencies(self) -> NDArray[np.int64] | None:
        """int64[vocabulary]: how often each token id occurs in source and target text together.

        From token_freq.tsv (``id piece count_src count_tgt``); None where the folder has none.
        """
        path = self.path / FREQUENCIES
        return read_frequencies(path, self.config.get("vocab_size")) if path.exists() else None

    def _file(self, name: str) -> TensorFile:
        if name not in self._tensors:
            near = difflib.get_close_matches(name, self._tensors, 1)
            hint = f" (did you mean {show(near[0])}?)" if near else ""
            raise InputError(f"{self.path}: no tensor named {show(name)}{hint}")
        return self._tensors[name]


def _open_tensors(folder: Path) -> tuple[dict[str, TensorFile], CodedTensors | None]:
    if (folder / SINGLE).exists():
        file = TensorFile.open(folder / SINGLE)
        coded = CodedTensors.open(file)
        names = [*coded.plain(), *coded.names()] if coded else file.entries
        return _not_empty(folder, dict.fromkeys(names, file)), coded
    if (folder / INDEX).exists():
        return _not_empty(folder, _open_shards(folder)), None
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickles:
        raise InputError(
            f"{folder}: only {pickles[0]} and no {SINGLE}; pickles can run code and are never loaded "
            "(where you trust the file, convert it once with transformers: "
            "MarianMTModel.from_pretrained(folder).save_pretrained(new_folder))"
        )
    raise InputError(f"{folder}: neither {SINGLE} nor {INDEX} found, expected the weights as safetensors")


def _not_empty(folder: Path, tensors: dict[str, TensorFile]) -> dict[str, TensorFile]:
    if not tensors:
        raise InputError(f"{folder}: the checkpoint holds no tensors")
    return tensors


def _open_shards(folder: Path) -> dict[str, TensorFile]:
    index = folder / INDEX
    weight_map = read_json_object(index, _MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: no weight_map, expected an object of tensor name -> file name")
    shards = {name: TensorFile.open(_shard(index, name)) for name in _shard_names(index, weight_map.values())}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].entries:
            raise InputError(f"{index}: tensor {show(tensor)} is not in {show(shard)} as the index says")
    for shard, file in shards.items():
        for tensor in file.entries:
            if weight_map.get(tensor) != shard:
                raise InputError(f"{index}: {shard} holds tensor {show(tensor)} against the index")
    return {tensor: shards[shard] for tensor, shard in weight_map.items()}


def _shard_names(index: Path, names: Iterable[object]) -> list[str]:
    """The distinct shard names; each a plain file name, so that no index leads out of its folder."""
    distinct: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or set(name) & set("/\\\0"):
            raise InputError(f"{index}: {show(str(name))} is not a plain file name ending in .safetensors")
        distinct[name] = None
    return list(distinct)


def _shard(index: Path, name: str) -> Path:
    shard = index.parent / name
    if not shard.exists():
        raise InputError(f"{index}: the shard {show(name)} is missing (download the folder again)")
    return shard


def read_frequencies(path: Path, vocabulary: object) -> NDArray[np.int64]:
    """Counts per token id of a token_freq.tsv; ``vocabulary``, where it is a number, must be their count."""
    try:
        text = read_bytes(path, _MAX_FREQUENCIES).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not valid UTF-8 text") from exc
    header, *lines = text.removesuffix("\n").split("\n")  # a piece may be any other line separator
    if header != _FREQUENCY_HEADER:
        raise InputError(f"{path}: the first line must be {_FREQUENCY_HEADER!r}")
    if isinstance(vocabulary, int) and len(lines) != vocabulary:
        raise InputError(f"{path}: {len(lines)} tokens, expected vocab_size {vocabulary} as in config.json")
    counts = np.full(len(lines), -1, np.int64)
    for number, line in enumerate(lines, start=2):
        token, *numbers = _frequency_line(path, number, line)
        if token >= len(lines) or counts[token] >= 0:
            raise InputError(f"{path}: line {number}: id {token} is out of range or occurs twice")
        counts[token] = sum(numbers)
    return counts


def _frequency_line(path: Path, number: int, line: str) -> tuple[int, int, int]:
    columns = line.split("\t")
    digits = [columns[i] for i in (0, 2, 3)] if len(columns) == 4 else []
    if not digits or not all(d.isascii() and d.isdigit() and len(d) <= 17 for d in digits):
        raise InputError(f"{path}: line {number}: expected id, piece and two counts, separated by tabs")
    token, source, target = (int(d) for d in digits)
    return token, source, target
