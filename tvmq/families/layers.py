# SPDX-License-Identifier: Apache-2.0
"""Modules whose layers are reached by their checkpoint names; imported at compile time only (torch)."""

from __future__ import annotations

from torch import Tensor, nn

from .leaf import Leaf


class LayerTree(nn.Module):
    """A module whose layers are reached by their checkpoint names."""

    def attach(self, name: str, layer: nn.Module) -> None:
        """Put ``layer`` at the dotted path ``name``, making bare containers on the way."""
        *path, last = name.split(".")
        parent: nn.Module = self
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, layer)

    def run(self, name: str, x: Tensor) -> Tensor:
        """Apply the layer at ``name``."""
        return self.get_submodule(name)(x)


def make_layer(leaf: Leaf, epsilon: float = 1e-5) -> nn.Module:
    """The layer that a leaf describes; ``epsilon`` is that of its norm."""
    match leaf.kind:
        case "linear":
            return nn.Linear(leaf.columns, leaf.rows)
        case "head":
            return nn.Linear(leaf.columns, leaf.rows, bias=False)
        case "norm":
            return nn.LayerNorm(leaf.rows, eps=epsilon)
        case "embedding" | "table" | "fixed":
            return nn.Embedding(leaf.rows, leaf.columns)
