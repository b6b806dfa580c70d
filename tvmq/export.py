# SPDX-License-Identifier: Apache-2.0
"""torch.export with the operators that tvmq lowers kept whole, for model families and users' own modules."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.modules import transformer


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
    """Errors say what is wrong; torch's own log and graph dumps do not reach the user."""
    log = logging.getLogger("torch")
    level = log.level
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Transformer layers of torch.nn as plain operators.

    Their fused fast path is one opaque operator; their search for causal masks looks at values, only to
    pick a faster path.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with mock.patch.object(transformer, "_detect_is_causal_mask", _as_said):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _as_said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return bool(is_causal)
