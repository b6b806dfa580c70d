# SPDX-License-Identifier: Apache-2.0
"""BERT-like encoders over whole padded batches: what calibration and sensitivities run.

The same layers and names as ``encoder.EncoderModel``; differentiable, on any device and in any float dtype.
Weights can be replaced for one call by ``torch.func.functional_call``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoder import EncoderModel, activate, head_logits
from .encoder_layout import layout
from .layers import LayerTree


class EncoderWhole(LayerTree):
    """All tokens of all texts at once, texts padded at the end."""

    def __init__(self, model: EncoderModel) -> None:
        super().__init__()
        self.config = model.config
        for leaf in layout(model.config):
            self.attach(leaf.name, model.get_submodule(leaf.name))

    def forward(self, ids: Tensor, lengths: Tensor, types: Tensor | None = None) -> Tensor:
        """Logits of the head, [B, labels] or [B, S, labels]; the hidden states [B, S, D] without a head.

        Args:
            ids: int64[B, S], padded at the end; results at padding have no meaning.
            lengths: int64[B].
            types: int64[B, S]; zeros without it, unused by models without token types.
        """
        x = self.encode(ids, lengths, types)
        head = self.config.head
        if head is None:
            return x
        return head_logits(self, head, x[:, 0] if head.kind == "classify" else x)

    def encode(self, ids: Tensor, lengths: Tensor, types: Tensor | None = None) -> Tensor:
        """The last hidden states [B, S, D]."""
        config, names = self.config, self.config.names
        places = torch.arange(ids.shape[1], device=ids.device)
        mask = (places < lengths[:, None])[:, None, None]
        x = self.run(config.path(names.words), ids)
        if config.types:
            x = x + self.run(config.path(names.types), torch.zeros_like(ids) if types is None else types)
        # padding beyond the table reads its last row
        rows = (places + config.first_position).clamp(max=config.positions - 1).expand_as(ids)
        x = x + self.run(config.path(names.positions), rows)
        x = self.run(config.path(names.embedding_norm), x)
        for i in range(config.layers):
            x = self.run(config.path(names.attention_norm, i), self._attend(x, mask, i) + x)
            hidden = activate(config.activation, self.run(config.path(names.up, i), x))
            x = self.run(config.path(names.ffn_norm, i), self.run(config.path(names.down, i), hidden) + x)
        return x

    def _attend(self, x: Tensor, mask: Tensor, i: int) -> Tensor:
        """Multi-head attention of every text's tokens over its own tokens."""
        names = self.config.names

        def split(name: str) -> Tensor:
            heads = self.run(self.config.path(name, i), x).unflatten(-1, (self.config.heads, -1))
            return heads.transpose(1, 2)

        q, k, v = (split(name) for name in (names.query, names.key, names.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.run(self.config.path(names.attention_out, i), mixed.transpose(1, 2).flatten(2))
