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
op: Any = relax.op
LOWEST = float(np.finfo(np.float32).min)
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def attention(node: fx.Node, importer: Any) -> relax.Var:
    """Scaled dot product attention over the last two axes, as products and a softmax.

    Boolean and additive masks, causal masks, an own scale and grouped heads are respected; a row that may
    look at nothing gives zeros, as in torch.
    """
    given: dict[str, Any] = dict(zip(_ARGUMENTS, importer.retrieve_args(node), strict=False))
    given |= {key: importer.env.get(value, value) if isinstance(value, fx.Node) else value
              for key, value in node.kwargs.items()}  # fmt: skip
    if given.get("dropout_p"):
        raise InputError("attention with dropout cannot be compiled; call module.eval() and give dropout_p=0")
    emit = importer.block_builder.emit
    query, key, value = given["query"], given["key"], given["value"]
    if given.get("enable_gqa"):
        key, value = (_repeat_heads(emit, x, query) for x in (key, value))
    axes = list(range(query.ty.ndim))
    turned = emit(op.permute_dims(key, [*axes[:-2], axes[-1], axes[-2]]))
    scale = given.get("scale")
    scale = 1 / math.sqrt(int(query.ty.shape[-1])) if scale is None else float(scale)
    scores = emit(op.multiply(op.matmul(query, turned), relax.const(scale, "float32")))
    mask = given.get("attn_mask")
    if mask is not None:
        scores = emit(_masked(scores, mask))
    if given.get("is_causal"):
        scores = emit(op.add(scores, _causal(query, key)))
    weights = _safe_softmax(emit, scores) if mask is not None else emit(op.nn.softmax(scores, axis=-1))
    return emit(op.matmul(weights, value))


def layer_norm(node: fx.Node, importer: Any) -> relax.Var:
    """Layer norm over the last axes; a missing scale is one, a missing shift zero."""
    x, shape, *rest = importer.retrieve_args(node)
    rest += [None, None, 1e-5][len(rest) :]
    gamma, beta, epsilon = rest[:3]
    gamma = relax.const(np.ones(shape, np.float32)) if gamma is None else gamma
    beta = relax.const(np.zeros(shape, np.float32)) if beta is None else beta
    axes = list(range(-len(shape), 0))
    return importer.block_builder.emit(op.nn.layer_norm(x, gamma, beta, axes=axes, epsilon=float(epsilon)))


def select(node: fx.Node, importer: Any) -> relax.Var:
    """One place of an axis, which then is gone; TVM's own converter gathers, and warns about it."""
    x, axis, place = importer.retrieve_args(node)
    axis %= x.ty.ndim
    extent = x.ty.shape[axis]
    start = place if not isinstance(place, int) or place >= 0 else extent + place
    part = importer.block_builder.emit(op.strided_slice(x, [axis], [start], [start + 1]))
    return importer.block_builder.emit(op.squeeze(part, [axis]))


def _repeat_heads(emit: Any, x: Any, query: Any) -> Any:
    """Keys or values [..., g, t, d] for the heads of ``query`` [..., h, s, d], h a multiple of g."""
    times = int(query.ty.shape[-3]) // int(x.ty.shape[-3])
    return x if times == 1 else emit(op.repeat(x, times, axis=x.ty.ndim - 3))


def _masked(scores: Any, mask: Any) -> Any:
    if str(mask.ty.dtype) == "bool":
        return op.where(mask, scores, relax.const(-math.inf, "float32"))
    return op.add(scores, mask)


def _causal(query: Any, key: Any) -> Any:
    """[s, t]: minus infinity where position t lies after s, else zero."""
    shape = relax.ShapeExpr([query.ty.shape[-2], key.ty.shape[-2]])
    return op.triu(op.full(shape, relax.const(-math.inf, "float32"), "float32"), k=1)


def _safe_softmax(emit: Any, scores: Any) -> Any:
    """Softmax over the last axis; zeros for a row of minus infinities."""
    top = op.maximum(op.max(scores, axis=-1, keepdims=True), relax.const(LOWEST, "float32"))
    powers = emit(op.exp(op.subtract(scores, emit(top))))
    total = op.maximum(op.sum(powers, axis=-1, keepdims=True), relax.const(1e-30, "float32"))
    return emit(op.divide(powers, emit(total)))
