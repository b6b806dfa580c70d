# SPDX-License-Identifier: Apache-2.0
"""The operators over padding-free batches in the exported graphs, as torch custom ops named ``tvmq::*``.

Each appears as one node after torch.export and is lowered to one kernel. The bodies here are plain PyTorch on
the CPU: the executable reference. Batches carry no padding: tokens of all sentences are concatenated.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of q[m, D] over k, v [t, D]; scale 1 / sqrt(D / heads)."""
    m, d = q.shape
    dh = d // heads
    qh = q.view(m, heads, dh).transpose(0, 1)
    scores = qh @ k.view(-1, heads, dh).permute(1, 2, 0) * dh**-0.5
    return (scores.softmax(-1) @ v.view(-1, heads, dh).transpose(0, 1)).transpose(0, 1).reshape(m, d)


@torch.library.custom_op("tvmq::ragged_attention", mutates_args=())
def ragged_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, heads: int) -> Tensor:
    """Self attention within each sentence.

    Args:
        q, k, v: float32[T, D], unscaled projections of all sentences' tokens, one sentence after the other.
        offsets: int32[B + 1], sentence s is rows offsets[s]..offsets[s + 1].
        heads: number of heads, divides D.

    Returns: float32[T, D].
    """
    out = torch.empty_like(q)
    bounds = offsets.tolist()
    for start, end in pairwise(bounds):
        out[start:end] = _attend(q[start:end], k[start:end], v[start:end], heads)
    return out


@torch.library.custom_op("tvmq::cached_attention", mutates_args=())
def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    ancestry: Tensor,
    heads: int,
) -> Tensor:
    """Causal self attention of one decode step, over caches that are **written in place**.

    Row r first stores k[r], v[r] at cache[r, position[r]]; it attends over cache[ancestry[r, t], t] for
    t < position[r] and over its own new key and value. The schema declares no mutation although the caches
    change: a declared one would become auto_functionalized copies under torch.export. The compiled kernel
    writes in place too. Callers must not rely on the caches' old contents.

    Args:
        q, k, v: float32[m, D], q unscaled.
        k_cache, v_cache: float32[slots, Tmax, D], slots >= m.
        position: int32[m], steps already taken by the row.
        ancestry: int32[m, Tmax], slot in which step t of the row's hypothesis was written (t < position[r]).
        heads: number of heads, divides D.

    Returns: float32[m, D].
    """
    m, d = q.shape
    dh = d // heads
    rows = torch.arange(m)
    k_cache[rows, position] = k
    v_cache[rows, position] = v
    steps = torch.arange(int(position.max()) + 1)
    own = rows[:, None].to(ancestry.dtype)
    slots = torch.where(steps < position[:, None], ancestry[:, : len(steps)], own)
    keys = k_cache[slots, steps].view(m, -1, heads, dh)
    values = v_cache[slots, steps].view(m, -1, heads, dh)
    scores = torch.einsum("mhd,mthd->mht", q.view(m, heads, dh), keys) * dh**-0.5
    scores = scores.masked_fill((steps > position[:, None])[:, None], float("-inf"))
    return torch.einsum("mht,mthd->mhd", scores.softmax(-1), values).reshape(m, d)


@torch.library.custom_op("tvmq::cross_attention", mutates_args=())
def cross_attention(
    q: Tensor, k_mem: Tensor, v_mem: Tensor, offsets: Tensor, sentences: Tensor, heads: int
) -> Tensor:
    """Attention of each row over the encoder memory of its sentence.

    Args:
        q: float32[m, D], unscaled.
        k_mem, v_mem: float32[T, D], projected memory of all sentences.
        offsets: int32[B + 1], memory of sentence s is rows offsets[s]..offsets[s + 1].
        sentences: int32[m], sentence of each row.
        heads: number of heads, divides D.

    Returns: float32[m, D].
    """
    out = torch.empty_like(q)
    bounds = offsets.tolist()
    for s in sorted(set(sentences.tolist())):
        rows = sentences == s
        start, end = bounds[s], bounds[s + 1]
        out[rows] = _attend(q[rows], k_mem[start:end], v_mem[start:end], heads)
    return out


@torch.library.custom_op("tvmq::mean_tokens", mutates_args=())
def mean_tokens(x: Tensor, offsets: Tensor) -> Tensor:
    """Mean over the tokens of each sentence: float32[T, D], int32[B + 1] -> float32[B, D]."""
    return torch.stack([x[start:end].mean(0) for start, end in pairwise(offsets.tolist())])


@torch.library.custom_op("tvmq::first_token", mutates_args=())
def first_token(x: Tensor, offsets: Tensor) -> Tensor:
    """The first token of each sentence: float32[T, D], int32[B + 1] -> float32[B, D]."""
    return x[offsets[:-1].long()]


@torch.library.custom_op("tvmq::l2_normalize", mutates_args=())
def l2_normalize(x: Tensor) -> Tensor:
    """Rows divided by their length, float32[m, D]."""
    return torch.nn.functional.normalize(x, dim=-1)


@ragged_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, heads: int) -> Tensor:
    return torch.empty_like(q)


@cached_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    ancestry: Tensor,
    heads: int,
) -> Tensor:
    return torch.empty_like(q)


@cross_attention.register_fake
def _(q: Tensor, k_mem: Tensor, v_mem: Tensor, offsets: Tensor, sentences: Tensor, heads: int) -> Tensor:
    return torch.empty_like(q)


@mean_tokens.register_fake
def _(x: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1])


@first_token.register_fake
def _(x: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1])


@l2_normalize.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
