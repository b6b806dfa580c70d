# SPDX-License-Identifier: Apache-2.0
"""Matrices as a table: a line for every kind of matrix of a block, a column for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .subject import Matrix

_SHORT = ("self_attn", "encoder_attn", "weight")
"""Parts of a name that its block says already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of matrix.

    Attributes:
        block: its block.
        label: its name without layer and block.
        cells: layer -> mean bits; the layer is None for a matrix outside of all layers.
    """

    block: str
    label: str
    cells: Mapping[int | None, float]


def grid(matrices: Sequence[Matrix]) -> list[Row]:
    """Rows in the order of the model, the rows of a block together; every matrix is in one cell."""
    blocks = {block: i for i, block in enumerate(dict.fromkeys(matrix.info.block for matrix in matrices))}
    found: dict[tuple[str, str], dict[int | None, float]] = {}
    for matrix in matrices:
        pattern, layer = _split(matrix.info.name)
        found.setdefault((matrix.info.block, pattern), {})[layer] = matrix.bits
    return [
        Row(block=block, label=_label(pattern), cells=cells)
        for (block, pattern), cells in sorted(found.items(), key=lambda entry: blocks[entry[0][0]])
    ]


def _split(name: str) -> tuple[str, int | None]:
    """The name with ``*`` for its first number, and that number: ``a.layers.*.fc1.weight``, 3."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) <= 6 and str(int(part)) == part:
            return ".".join([*parts[:i], "*", *parts[i + 1 :]]), int(part)
    return name, None


def _label(pattern: str) -> str:
    """What follows the layer, without parts that say nothing; all of it where nothing is left."""
    after = pattern.rpartition("*.")[2] if "*." in pattern else pattern
    kept = [part for part in after.split(".") if part not in _SHORT]
    return ".".join(kept[-2:]) or pattern
