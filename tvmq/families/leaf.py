# SPDX-License-Identifier: Apache-2.0
"""One layer with weights, as a family's layout lists it: name, kind and extents. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tvmq.errors import InputError

from .family import TensorInfo, TensorSource

Kind = Literal["linear", "norm", "embedding", "head", "table", "fixed"]
"""``embedding`` rows are words, ``head`` is a linear without bias whose rows are words, ``table`` any other
table of rows, ``fixed`` a table that is never quantized."""
SHOWN = 8
"""Names that an error spells out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One layer: ``name`` is its module path, ``rows`` x ``columns`` its weight.

    A norm has ``rows`` values of weight and of bias; a linear has ``rows`` of bias.
    """

    name: str
    kind: Kind
    block: str
    rows: int
    columns: int


def leaf_shapes(leaves: Iterable[Leaf]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the layers, in their order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for leaf in leaves:
        shapes[f"{leaf.name}.weight"] = (leaf.rows,) if leaf.kind == "norm" else (leaf.rows, leaf.columns)
        if leaf.kind in ("linear", "norm"):
            shapes[f"{leaf.name}.bias"] = (leaf.rows,)
    return shapes


def leaf_tensors(leaves: Iterable[Leaf]) -> list[TensorInfo]:
    """The matrices that can be quantized (tables, linears); biases and norms stay FP32."""
    return [
        TensorInfo(
            name=f"{leaf.name}.weight",
            block=leaf.block,
            shape=(leaf.rows, leaf.columns),
            is_embedding=leaf.kind in ("embedding", "head"),
        )
        for leaf in leaves
        if leaf.kind not in ("norm", "fixed")
    ]


def check_tensors(
    checkpoint: TensorSource,
    shapes: dict[str, tuple[int, ...]],
    missing: Sequence[str],
    *,
    ignored: Sequence[str] = (),
    what: str = "config.json",
) -> None:
    """One InputError for all missing, unexpected and misshapen tensors.

    Args:
        checkpoint: what is there.
        shapes: every name that may be there, with its shape.
        missing: names that must be there and are not.
        ignored: names that may be there in any shape.
        what: what they should fit.
    """
    problems = []
    if missing:
        problems.append(f"missing: {_few(missing)}")
    names = [name for name in checkpoint.names() if name not in ignored]
    if unexpected := [name for name in names if name not in shapes]:
        problems.append(f"unexpected: {_few(unexpected)}")
    found = {name: tuple(checkpoint.shape(name)) for name in names if name in shapes}
    if wrong := [name for name, shape in found.items() if shape != shapes[name]]:
        facts = [f"{name} is {found[name]}, expected {shapes[name]}" for name in wrong]
        problems.append(f"wrong shape: {_few(facts)}")
    if problems:
        detail = "; ".join(problems)
        raise InputError(f"the tensors do not fit {what}; {detail}; use the files of one model")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
