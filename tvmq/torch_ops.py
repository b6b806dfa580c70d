# SPDX-License-Identifier: Apache-2.0
"""Torch operators that TVM's importer reads incompletely, converted here with every argument respected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx
from tvm import relax

from .errors import InputError

Converter = Callable[[fx.Node, Any], relax.Var]
LOWEST = float(np.finfo(np.float32).min)
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def attention(node: fx.Node, importer: Any) -> relax.Var:
    """Scaled dot product attention over the last two axes, as products and a softmax.

    Boolean and additive masks, causal masks, an own scale and grouped heads are respected; a row that may
    look at nothing gives zeros, as in torch.
    """
    given = dict(zip(_ARGUMENTS, importer.retrieve_args(node), strict=False))
    given |= {key: importer.env.get(value, value) if isinstance(value, fx.Node) else value
              for key, value in node.kwargs.items()}  # fmt: skip
    if given.get("dropout_p"):
        raise InputError("attention with dropout cannot be compiled; call module.eval() and give dropout_p=0")
    emit = importer.block_builder.emit
    query, key, value = given["query"], given["key"], given["value"]
    if given.get("enable_gqa"):
        key, value = (_repeat_heads(emit, x, query) for x in (key, value))
    axes = list(range(query.ty.ndim))
    turned = emit(relax.op.permute_dims(key, [*axes[:-2], axes[-1], axes[-2]]))
    scale = given.get("scale")
    scale = 1 / math.sqrt(int(query.ty.shape[-1])) if scale is None else float(scale)
    scores = emit(relax.op.multiply(relax.op.matmul(query, turned), relax.const(scale, "float32")))
    mask = given.get("attn_mask")
    if mask is not None:
        scores = emit(_masked(scores, mask))
    if given.get("is_causal"):
        scores = emit(relax.op.add(scores, _causal(query, key)))
    weights = _safe_softmax(emit, scores) if mask is not None else emit(relax.op.nn.softmax(scores, axis=-1))
    return emit(relax.op.matmul(weights, value))


def select(node: fx.Node, importer: Any) -> relax.Var:
    """One place of an axis, which then is gone; TVM's own converter gathers, and warns about it."""
    x, axis, place = importer.retrieve_args(node)
    axis %= x.ty.ndim
    extent = x.ty.shape[axis]
    start = place if not isinstance(place, int) or place >= 0 else extent + place
    part = importer.block_builder.emit(relax.op.strided_slice(x, [axis], [start], [start + 1]))
    return importer.block_builder.emit(relax.op.squeeze(part, [axis]))


def _repeat_heads(emit: Any, x: Any, query: Any) -> Any:
    """Keys or values [..., g, t, d] for the heads of ``query`` [..., h, s, d], h a multiple of g."""
    times = int(query.ty.shape[-3]) // int(x.ty.shape[-3])
    return x if times == 1 else emit(relax.op.repeat(x, times, axis=x.ty.ndim - 3))


def _masked(scores: Any, mask: Any) -> Any:
    if str(mask.ty.dtype) == "bool":
        return relax.op.where(mask, scores, relax.const(-math.inf, "float32"))
    return relax.op.add(scores, mask)


def _causal(query: Any, key: Any) -> Any:
    """[s, t]: minus infinity where position t lies after s, else zero."""
    shape = relax.ShapeExpr([query.ty.shape[-2], key.ty.shape[-2]])
    return relax.op.triu(relax.op.full(shape, relax.const(-math.inf, "float32"), "float32"), k=1)


def _safe_softmax(emit: Any, scores: Any) -> Any:
    """Softmax over the last axis; zeros for a row of minus infinities."""
    top = relax.op.maximum(relax.op.max(scores, axis=-1, keepdims=True), relax.const(LOWEST, "float32"))
    powers = emit(relax.op.exp(relax.op.subtract(scores, emit(top))))
    total = relax.op.maximum(relax.op.sum(powers, axis=-1, keepdims=True), relax.const(1e-30, "float32"))
    return emit(relax.op.divide(powers, emit(total)))
