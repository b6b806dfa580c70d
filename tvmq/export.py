# SPDX-License-Identifier: Apache-2.0
"""torch.export with the operators that tvmq lowers kept whole, for model families and users' own modules."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram


def export_program(module: nn.Module, inputs: tuple[Any, ...], shapes: Any = None) -> ExportedProgram:
    """The graph of ``module`` at aten level.

    Linears, products, embeddings, layer norms, activations and attention stay one node each.

    Args:
        module: in evaluation mode.
        inputs: example arguments.
        shapes: torch.export's ``dynamic_shapes``; None makes every extent fixed.

    Raises:
        Exception: whatever torch.export raises for a module that it cannot trace.
    """
    with _quiet(), _plain_attention(), torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
        return program.run_decompositions(_decompositions())


def _decompositions() -> Any:
    table = torch.export.default_decompositions()
    aten = torch.ops.aten
    whole = (
        aten.linear, aten.matmul, aten.embedding, aten.layer_norm, aten.gelu, aten.silu, aten.relu,
        aten.scaled_dot_product_attention,
    )  # fmt: skip
    for op in whole:
        table.pop(op.default, None)
    return table


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export about its own tree specs
        yield


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused fast path of nn.TransformerEncoderLayer, which is one opaque operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
