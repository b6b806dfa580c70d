# SPDX-License-Identifier: Apache-2.0
"""Marian (encoder-decoder translation) in PyTorch, shaped for export: no padding, explicit caches.

``MarianModel`` holds the weights under the checkpoint's names. ``Encoder`` and ``DecoderStep`` are the two
graphs: they share its layers and hold only those that they use. Imported at compile time only (torch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tvmq.export import export_program
from tvmq.generated import sinusoidal

from . import ops
from .family import TensorSource
from .layers import LayerTree, make_layer
from .marian_config import MarianConfig, MarianLeaf, layout
from .marian_tensors import sources


class MarianModel(LayerTree):
    """All weights of one model; tied tables exist once.

    Buffers: ``positions`` float32[max_positions, D] (used by both sides), ``final_logits_bias`` float32[V].
    """

    positions: Tensor
    final_logits_bias: Tensor

    def __init__(self, config: MarianConfig) -> None:
        super().__init__()
        self.config = config
        for leaf in layout(config):
            self.attach(leaf.name, make_layer(leaf))
        self.register_buffer("positions", position_table(config))
        self.register_buffer("final_logits_bias", torch.zeros(config.decoder_vocab_size))
        self.eval()
        self.requires_grad_(False)


class _Graph(LayerTree):
    """One exported graph: a view of the model with the layers that this graph uses."""

    positions: Tensor

    def __init__(self, model: MarianModel, leaves: Sequence[MarianLeaf]) -> None:
        super().__init__()
        self.config = model.config
        for leaf in leaves:
            self.attach(leaf.name, model.get_submodule(leaf.name))
        self.register_buffer("positions", model.positions)
        self.scale = math.sqrt(model.config.d_model) if model.config.scale_embedding else 1.0
        self.eval()

    def embed(self, table: str, ids: Tensor, positions: Tensor) -> Tensor:
        words = self.run(table, ids)
        return (words * self.scale if self.scale != 1.0 else words) + F.embedding(positions, self.positions)

    def qkv(self, path: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.run(f"{path}.q_proj", x), self.run(f"{path}.k_proj", x), self.run(f"{path}.v_proj", x)

    def add_attention(self, path: str, x: Tensor, attended: Tensor) -> Tensor:
        return self.run(f"{path}_layer_norm", x + self.run(f"{path}.out_proj", attended))

    def add_feed_forward(self, path: str, x: Tensor) -> Tensor:
        match self.config.activation:
            case "relu":
                hidden = F.relu(self.run(f"{path}.fc1", x))
            case "gelu":
                hidden = F.gelu(self.run(f"{path}.fc1", x))
            case "silu":
                hidden = F.silu(self.run(f"{path}.fc1", x))
        return self.run(f"{path}.final_layer_norm", x + self.run(f"{path}.fc2", hidden))


class Encoder(_Graph):
    """Source tokens to the keys and values that the decoder's cross attention reads."""

    def __init__(self, model: MarianModel) -> None:
        super().__init__(model, [leaf for leaf in layout(model.config) if leaf.encode])

    def forward(self, ids: Tensor, positions: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """Encode a padding-free batch.

        Args:
            ids, positions: int32[T], tokens of all sentences and their places within the sentence.
            offsets: int32[B + 1], sentence s is tokens offsets[s]..offsets[s + 1].

        Returns: (k_0, v_0, k_1, v_1, ...), float32[T, D] for each decoder layer.
        """
        config = self.config
        x = self.embed(config.encoder_embedding, ids, positions)
        for i in range(config.encoder_layers):
            path = f"model.encoder.layers.{i}"
            q, k, v = self.qkv(f"{path}.self_attn", x)
            x = self.add_attention(
                f"{path}.self_attn", x, ops.ragged_attention(q, k, v, offsets, config.encoder_heads)
            )
            x = self.add_feed_forward(path, x)
        return tuple(
            self.run(f"model.decoder.layers.{i}.encoder_attn.{part}", x)
            for i in range(config.decoder_layers)
            for part in ("k_proj", "v_proj")
        )


class DecoderStep(_Graph):
    """One target token for each row (hypothesis). An output bias of zeros is left out."""

    final_logits_bias: Tensor | None

    def __init__(self, model: MarianModel) -> None:
        super().__init__(model, [leaf for leaf in layout(model.config) if leaf.decode])
        bias = model.final_logits_bias
        self.register_buffer("final_logits_bias", bias if bias.any() else None)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        sentences: Tensor,
        ancestry: Tensor,
        offsets: Tensor,
        caches: list[Tensor],
        memory: list[Tensor],
    ) -> Tensor:
        """Logits of the next token. Writes step ``position`` of row r into slot r of the caches, in place.

        Args:
            tokens, position, sentences: int32[m], last token, steps taken so far, and sentence of each row.
            ancestry: int32[m, Tmax], see ``ops.cached_attention``.
            offsets: int32[B + 1] of the memory.
            caches: k_0, v_0, k_1, ... float32[slots, Tmax, D].
            memory: the encoder's output.

        Returns: float32[m, V].
        """
        config, heads = self.config, self.config.decoder_heads
        x = self.embed(config.decoder_embedding, tokens, position)
        for i in range(config.decoder_layers):
            path = f"model.decoder.layers.{i}"
            q, k, v = self.qkv(f"{path}.self_attn", x)
            attended = ops.cached_attention(
                q, k, v, caches[2 * i], caches[2 * i + 1], position, ancestry, heads
            )
            x = self.add_attention(f"{path}.self_attn", x, attended)
            q = self.run(f"{path}.encoder_attn.q_proj", x)
            attended = ops.cross_attention(q, memory[2 * i], memory[2 * i + 1], offsets, sentences, heads)
            x = self.add_attention(f"{path}.encoder_attn", x, attended)
            x = self.add_feed_forward(path, x)
        return F.linear(x, self.get_parameter(f"{config.head}.weight"), self.final_logits_bias)


def position_table(config: MarianConfig) -> Tensor:
    """float32[max_positions, D]: sines in the first half of the columns, cosines in the second."""
    return torch.from_numpy(sinusoidal(config.max_positions, config.d_model))


def export(model: MarianModel) -> dict[str, ExportedProgram]:
    """The graphs "encode" and "decode" with every size but the model's own symbolic.

    Linear, embedding, layer norm, activations and the ``tvmq::*`` ops stay whole. Inputs in the order of
    ``Encoder.forward`` and ``DecoderStep.forward``; parameters carry the checkpoint's names.
    """
    tokens, starts, rows = Dim("tokens", min=1), Dim("starts", min=2), Dim("rows", min=1)
    slots, steps = Dim("slots", min=1), Dim("steps", min=1)
    d, layers = model.config.d_model, model.config.decoder_layers
    ids = torch.zeros(7, dtype=torch.int32)
    offsets = torch.tensor([0, 3, 7], dtype=torch.int32)
    row = torch.zeros(5, dtype=torch.int32)
    ancestry = torch.zeros((5, 6), dtype=torch.int32)
    caches = [torch.zeros(8, 6, d) for _ in range(2 * layers)]
    memory = [torch.zeros(7, d) for _ in range(2 * layers)]
    encode_shapes = ({0: tokens}, {0: tokens}, {0: starts})
    decode_shapes = (
        *({0: rows},) * 3,
        {0: rows, 1: steps},
        {0: starts},
        [{0: slots, 1: steps}] * (2 * layers),
        [{0: tokens}] * (2 * layers),
    )
    decode_inputs = (row, row.clone(), row.clone(), ancestry, offsets, caches, memory)
    return {
        "encode": export_program(Encoder(model), (ids, ids.clone(), offsets), encode_shapes),
        "decode": export_program(DecoderStep(model), decode_inputs, decode_shapes),
    }


def load(checkpoint: TensorSource) -> MarianModel:
    """Fill a model from a checkpoint; InputError where its tensors do not fit, see ``marian_tensors``."""
    config = MarianConfig.from_dict(checkpoint.config)
    found = sources(checkpoint)
    with torch.device("meta"):
        model = MarianModel(config)
    state = {name: torch.from_numpy(checkpoint.tensor(stored)) for name, stored in found.items()}
    bias = state.pop("final_logits_bias", torch.zeros(config.decoder_vocab_size))
    state |= {"positions": position_table(config), "final_logits_bias": bias.reshape(-1)}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()
