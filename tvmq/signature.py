# SPDX-License-Identifier: Apache-2.0
"""What a compiled module takes and gives: names, dtypes, extents; kept in the manifest as readable text.

``ids int64[batch, length] < 1000`` is an input of word ids with two free extents. Free of torch and tvm:
the runtime checks every call against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from .errors import InputError

Extent = int | str
"""A fixed extent, or the name of a free one."""
Returns = Literal["tensor", "tuple", "dict"]

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_TENSOR = re.compile(r"(?P<name>\S+) (?P<dtype>\w+)\[(?P<shape>[^\[\]]*)\](?: < (?P<limit>\d{1,18}))?")
_DIMENSION = re.compile(r"(\d{1,18})\.\.(\d{0,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output; ``limit``: integer values must lie in 0..limit - 1 (0: any value)."""

    name: str
    dtype: str
    shape: tuple[Extent, ...]
    limit: int = 0

    def __str__(self) -> str:
        text = f"{self.name} {self.dtype}[{', '.join(str(extent) for extent in self.shape)}]"
        return f"{text} < {self.limit}" if self.limit else text

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Reads ``str(spec)``; ValueError for anything else."""
        match = _TENSOR.fullmatch(text)
        if match is None or match["dtype"] not in DTYPES:
            raise ValueError(f"{text!r} does not describe a tensor")
        parts = [part.strip() for part in match["shape"].split(",")] if match["shape"] else []
        shape = tuple(int(part) if part.isdecimal() else part for part in parts)
        if not all(shape):
            raise ValueError(f"{text!r} has an empty extent")
        return cls(name=match["name"], dtype=match["dtype"], shape=shape, limit=int(match["limit"] or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The calling convention of a module.

    Attributes:
        inputs: in the order of ``forward``.
        outputs: in the order of the result.
        ranges: free extent -> (smallest, largest or None).
        returns: whether ``forward`` gives one tensor, a tuple, or a dict by output name.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, tuple[int, int | None]]
    returns: Returns

    def to_architecture(self) -> dict[str, int | float | str | bool]:
        """The manifest's ``architecture`` entries."""
        entries: dict[str, int | float | str | bool] = {"returns": self.returns}
        entries |= {f"input.{i}": str(spec) for i, spec in enumerate(self.inputs)}
        entries |= {f"output.{i}": str(spec) for i, spec in enumerate(self.outputs)}
        ranges = self.ranges.items()
        return entries | {f"extent.{name}": f"{low}..{high or ''}" for name, (low, high) in ranges}

    @classmethod
    def from_architecture(cls, entries: Mapping[str, Any]) -> Signature:
        """Reads ``to_architecture``; ValueError for anything that it does not write."""
        texts = {key: str(value) for key, value in entries.items()}
        ranges = {
            key.removeprefix("extent."): _range(text)
            for key, text in texts.items()
            if key.startswith("extent.")
        }
        match texts.get("returns"):
            case ("tensor" | "tuple" | "dict") as returns:
                pass
            case other:
                raise ValueError(f"returns is {other!r}")
        found = cls(
            inputs=_specs(texts, "input"), outputs=_specs(texts, "output"), ranges=ranges, returns=returns
        )
        free = {extent for spec in found.inputs for extent in spec.shape if isinstance(extent, str)}
        if not found.inputs or not found.outputs or not free <= ranges.keys():
            raise ValueError("inputs, outputs or ranges are incomplete")
        return found

    def check(self, arrays: Sequence[NDArray[Any]]) -> dict[str, int]:
        """The free extents of a call; InputError in one sentence for arrays that do not fit."""
        if len(arrays) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"{len(arrays)} inputs given, the module takes {len(self.inputs)}: {names}")
        extents: dict[str, int] = {}
        for spec, array in zip(self.inputs, arrays, strict=True):
            self._check_array(spec, array, extents)
        return extents

    def _check_array(self, spec: TensorSpec, array: NDArray[Any], extents: dict[str, int]) -> None:
        found = f"input {spec.name} is {array.dtype}{list(array.shape)}"
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise InputError(f"{found}, expected {spec}")
        for axis, (extent, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if isinstance(wanted, int):
                if extent != wanted:
                    raise InputError(f"{found}: axis {axis} must be {wanted}, the extent it was compiled for")
                continue
            low, high = self.ranges[wanted]
            if extent < low or (high is not None and extent > high):
                raise InputError(f"{found}: {wanted} (axis {axis}) must be {low} to {high or 'any number'}")
            if extents.setdefault(wanted, extent) != extent:
                raise InputError(f"{found}: {wanted} (axis {axis}) is {extents[wanted]} in an earlier input")
        if spec.limit and array.size and not (array.min() >= 0 and array.max() < spec.limit):
            raise InputError(f"input {spec.name} holds ids outside 0..{spec.limit - 1}")


def _specs(texts: Mapping[str, str], kind: str) -> tuple[TensorSpec, ...]:
    count = sum(key.startswith(f"{kind}.") for key in texts)
    try:
        return tuple(TensorSpec.parse(texts[f"{kind}.{i}"]) for i in range(count))
    except KeyError as error:
        raise ValueError(f"{error} is missing") from None


def _range(text: str) -> tuple[int, int | None]:
    match = _DIMENSION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no range of extents")
    return int(match[1]), int(match[2]) if match[2] else None
