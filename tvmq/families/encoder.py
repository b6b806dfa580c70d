# SPDX-License-Identifier: Apache-2.0
"""BERT-like encoders in PyTorch, shaped for export: no padding, attention per text.

``EncoderModel`` holds the weights under the checkpoint's names. ``Body`` (ids to hidden states) and
``Logits`` (hidden states to logits) are its graphs. Imported at compile time only (torch).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tvmq.export import export_program

from . import ops
from .encoder_head import Head
from .encoder_layout import EncoderConfig, body_leaves, head_leaves, layout, sources
from .family import TensorSource
from .layers import LayerTree, make_layer
from .leaf import Leaf


class EncoderModel(LayerTree):
    """All weights of one model."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        for leaf in layout(config):
            self.attach(leaf.name, make_layer(leaf, config.epsilon))
        self.eval()
        self.requires_grad_(False)


class _Graph(LayerTree):
    """One exported graph: a view of the model with the layers that this graph uses."""

    def __init__(self, model: EncoderModel, leaves: Sequence[Leaf]) -> None:
        super().__init__()
        self.config = model.config
        for leaf in leaves:
            self.attach(leaf.name, model.get_submodule(leaf.name))
        self.eval()

    def layer(self, name: str, x: Tensor, i: int = 0) -> Tensor:
        return self.run(self.config.path(name, i), x)


class Body(_Graph):
    """Token ids to the last hidden states."""

    def __init__(self, model: EncoderModel) -> None:
        super().__init__(model, body_leaves(model.config))

    def forward(self, ids: Tensor, positions: Tensor, offsets: Tensor, types: Tensor | None = None) -> Tensor:
        """Encode a padding-free batch.

        Args:
            ids, positions: int32[T], tokens of all texts and their rows of the position table.
            offsets: int32[B + 1], text s is tokens offsets[s]..offsets[s + 1].
            types: int32[T], for models with token types only.

        Returns: float32[T, D].
        """
        names = self.config.names
        x = self.layer(names.words, ids)
        if types is not None:
            x = x + self.layer(names.types, types)
        x = self.layer(names.embedding_norm, x + self.layer(names.positions, positions))
        for i in range(self.config.layers):
            q, k, v = (self.layer(name, x, i) for name in (names.query, names.key, names.value))
            attended = ops.ragged_attention(q, k, v, offsets, self.config.heads)
            x = self.layer(names.attention_norm, self.layer(names.attention_out, attended, i) + x, i)
            hidden = activate(self.config.activation, self.layer(names.up, x, i))
            x = self.layer(names.ffn_norm, self.layer(names.down, hidden, i) + x, i)
        return x


class Logits(_Graph):
    """Hidden states to the logits of the head."""

    def __init__(self, model: EncoderModel) -> None:
        super().__init__(model, head_leaves(model.config))

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """float32[T, D], int32[B + 1] -> float32[B, labels], or [T, labels] for labels by token."""
        head = self.config.head
        assert head is not None
        return head_logits(self, head, ops.first_token(x, offsets) if head.kind == "classify" else x)


def head_logits(layers: LayerTree, head: Head, x: Tensor) -> Tensor:
    """Logits [..., labels] of rows [..., D]: the first token of each text, or any token."""
    if head.layers.dense:
        x = activate(head.layers.activation, layers.run(head.layers.dense, x))
    return layers.run(head.layers.out, x)


def activate(name: str, x: Tensor) -> Tensor:
    """The activation that the compiled kernels know by ``name``."""
    match name:
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "tanh":
            return torch.tanh(x)
        case _:
            return x


def export(model: EncoderModel) -> dict[str, ExportedProgram]:
    """The graphs "body" and, where there is a head, "classify" or "tag", with symbolic tokens and texts.

    Linear, embedding, layer norm, activations and the ``tvmq::*`` ops stay whole. Inputs in the order of
    ``Body.forward`` and ``Logits.forward``; parameters carry the checkpoint's names.
    """
    tokens, starts = Dim("tokens", min=1), Dim("starts", min=2)
    ids = torch.zeros(7, dtype=torch.int32)
    offsets = torch.tensor([0, 3, 7], dtype=torch.int32)
    inputs, free = (ids, ids.clone(), offsets), ({0: tokens}, {0: tokens}, {0: starts})
    if model.config.types:
        inputs, free = (*inputs, ids.clone()), (*free, {0: tokens})
    programs = {"body": export_program(Body(model), inputs, free)}
    if model.config.head is not None:
        hidden = torch.zeros(7, model.config.width)
        # torch takes one row as a case of its own; in Relax the rows are free from 1 on
        several = ({0: tokens}, {0: Dim("starts", min=3)})
        programs[model.config.head.kind] = export_program(Logits(model), (hidden, offsets), several)
    return programs


def load(checkpoint: TensorSource, config: EncoderConfig) -> EncoderModel:
    """Fill a model from a checkpoint; InputError where its tensors do not fit, see ``encoder_layout``."""
    found = sources(checkpoint, config)
    with torch.device("meta"):
        model = EncoderModel(config)
    state = {name: torch.from_numpy(checkpoint.tensor(stored)) for name, stored in found.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()
