# SPDX-License-Identifier: Apache-2.0
"""Marian over whole padded batches with the known target: calibration, sensitivities and retraining run it.

The same layers and names as ``marian.MarianModel``; differentiable, on any device and in any float dtype.
Weights can be replaced for one call by ``torch.func.functional_call``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import LayerTree
from .marian import MarianModel
from .marian_config import layout


class MarianWhole(LayerTree):
    """All positions of all sentences at once, the target's own tokens as the decoder's input."""

    positions: Tensor
    final_logits_bias: Tensor

    def __init__(self, model: MarianModel) -> None:
        super().__init__()
        self.config = model.config
        for leaf in layout(model.config):
            self.attach(leaf.name, model.get_submodule(leaf.name))
        self.register_buffer("positions", model.positions)
        self.register_buffer("final_logits_bias", model.final_logits_bias)
        self.scale = math.sqrt(model.config.d_model) if model.config.scale_embedding else 1.0

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """Logits [B, T, V] of every target position, padding included (callers leave it out).

        Args:
            source: int64[B, S], padded at the end.
            source_lengths: int64[B].
            target: int64[B, T]; position t sees the start token and target[:, :t].
        """
        memory, mask = self.encode(source, source_lengths)
        start = torch.full_like(target[:, :1], self.config.start_id)
        return self.decode(torch.cat([start, target[:, :-1]], 1), memory, mask)

    def encode(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output [B, S, D] and the mask bool[B, 1, 1, S] of its real tokens."""
        mask = (torch.arange(source.shape[1], device=source.device) < source_lengths[:, None])[:, None, None]
        x = self._embed(self.config.encoder_embedding, source)
        for i in range(self.config.encoder_layers):
            path = f"model.encoder.layers.{i}"
            attended = self._attend(f"{path}.self_attn", x, x, self.config.encoder_heads, mask)
            x = self.run(f"{path}.self_attn_layer_norm", x + attended)
            x = self._feed_forward(path, x)
        return x, mask

    def decode(self, inputs: Tensor, memory: Tensor, mask: Tensor, *, last: bool = False) -> Tensor:
        """Logits [B, T, V] after every prefix of ``inputs`` int64[B, T], whose first column is the start.

        With ``last`` only those after all of it: [B, 1, V].
        """
        config = self.config
        x = self._embed(config.decoder_embedding, inputs)
        for i in range(config.decoder_layers):
            path = f"model.decoder.layers.{i}"
            attended = self._attend(f"{path}.self_attn", x, x, config.decoder_heads, None)
            x = self.run(f"{path}.self_attn_layer_norm", x + attended)
            attended = self._attend(f"{path}.encoder_attn", x, memory, config.decoder_heads, mask)
            x = self.run(f"{path}.encoder_attn_layer_norm", x + attended)
            x = self._feed_forward(path, x)
        weight = self.get_submodule(config.head).weight
        assert isinstance(weight, Tensor)  # no Parameter while functional_call replaces it
        return F.linear(x[:, -1:] if last else x, weight, self.final_logits_bias.to(x.dtype))

    def _embed(self, table: str, ids: Tensor) -> Tensor:
        words = self.run(table, ids) * self.scale
        return words + self.positions[: ids.shape[1]].to(words.dtype)

    def _attend(self, path: str, x: Tensor, memory: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        """Multi-head attention of ``x`` over ``memory``; causal where there is no mask."""

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        q = split(self.run(f"{path}.q_proj", x))
        k, v = split(self.run(f"{path}.k_proj", memory)), split(self.run(f"{path}.v_proj", memory))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.run(f"{path}.out_proj", mixed.transpose(1, 2).flatten(2))

    def _feed_forward(self, path: str, x: Tensor) -> Tensor:
        hidden = self.run(f"{path}.fc1", x)
        match self.config.activation:
            case "relu":
                hidden = F.relu(hidden)
            case "gelu":
                hidden = F.gelu(hidden)
            case "silu":
                hidden = F.silu(hidden)
        return self.run(f"{path}.final_layer_norm", x + self.run(f"{path}.fc2", hidden))
