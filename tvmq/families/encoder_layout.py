# SPDX-License-Identifier: Apache-2.0
"""The shape of a BERT-like encoder: what its families share. No torch here.

Post-norm layers, learned positions. A family says where its checkpoints keep what (``Names``) and how its
config.json spells the sizes; ``layout`` is then the single source of names for modules, loader and planner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tvmq.errors import InputError
from tvmq.store import show

from .encoder_head import Head, HeadKind, HeadLayers, read_architecture, read_labels, read_scores
from .family import Family, TensorInfo, TensorSource
from .leaf import Kind, Leaf, check_tensors, leaf_shapes, leaf_tensors

Activation = Literal["relu", "gelu", "gelu_tanh"]
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
SIZE_LIMITS = {"width": 1 << 16, "layers": 1 << 10, "ffn": 1 << 20, "positions": 1 << 20, "types": 1 << 10}
"""Sizes that are computed with before any tensor has confirmed them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Module names of one architecture; ``{i}`` stands for the layer's number.

    Attributes:
        prefix: what precedes all but the head's own names where the checkpoint has a head.
        types: "" where the architecture has no token types.
        classify, tag: layers of the heads.
        ignored: tensors that may be there and are not computed with.
    """

    prefix: str
    words: str
    positions: str
    types: str
    embedding_norm: str
    query: str
    key: str
    value: str
    attention_out: str
    attention_norm: str
    up: str
    down: str
    ffn_norm: str
    classify: HeadLayers
    tag: HeadLayers
    ignored: tuple[str, ...]

    def body(self, name: str, layer: int = 0, *, with_head: bool) -> str:
        """A module of the encoder itself, as a checkpoint with or without a head spells it."""
        return (self.prefix if with_head else "") + name.format(i=layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A checked config.

    Attributes:
        positions: rows of the position table.
        first_position: the row of a text's first token.
        types: rows of the token type table; 0 where there is none.
        epsilon: of the norms.
        head: None for the encoder alone.
    """

    names: Names
    width: int
    layers: int
    heads: int
    ffn: int
    vocab_size: int
    positions: int
    first_position: int
    types: int
    activation: Activation
    epsilon: float
    pad_id: int
    head: Head | None

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text."""
        return self.positions - self.first_position

    def path(self, name: str, layer: int = 0) -> str:
        """A module of the encoder itself in this checkpoint."""
        return self.names.body(name, layer, with_head=self.head is not None)


def layout(config: EncoderConfig) -> list[Leaf]:
    """Every layer of the model, in graph order; those of the head last."""
    return [*body_leaves(config), *head_leaves(config)]


def body_leaves(config: EncoderConfig) -> list[Leaf]:
    """Tables, attention, feed forward and norms: from token ids to the last hidden states."""
    names, d, leaves = config.names, config.width, list[Leaf]()

    def add(name: str, kind: Kind, block: str, rows: int, columns: int, layer: int = 0) -> None:
        path = config.path(name, layer)
        leaves.append(Leaf(name=path, kind=kind, block=block, rows=rows, columns=columns))

    add(names.words, "embedding", "Emb", config.vocab_size, d)
    add(names.positions, "table", "Emb", config.positions, d)
    if config.types:
        # a few rows: as planes they would fill blocks of 64 and be larger than in FP32
        add(names.types, "fixed", "Emb", config.types, d)
    add(names.embedding_norm, "norm", "Emb", d, 1)
    for i in range(config.layers):
        for name in (names.query, names.key, names.value, names.attention_out):
            add(name, "linear", "Attn", d, d, i)
        add(names.attention_norm, "norm", "Attn", d, 1, i)
        add(names.up, "linear", "FFN", config.ffn, d, i)
        add(names.down, "linear", "FFN", d, config.ffn, i)
        add(names.ffn_norm, "norm", "FFN", d, 1, i)
    return leaves


def head_leaves(config: EncoderConfig) -> list[Leaf]:
    """The layers from hidden states to logits; none for the encoder alone."""
    if config.head is None:
        return []
    sizes = {config.head.layers.dense: config.width, config.head.layers.out: len(config.head.labels)}
    return [
        Leaf(name=name, kind="linear", block="Head", rows=rows, columns=config.width)
        for name, rows in sizes.items()
        if name
    ]


def tensors(config: EncoderConfig) -> list[TensorInfo]:
    """The matrices that can be quantized; biases, norms and the token type table stay FP32."""
    return leaf_tensors(layout(config))


def shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the model computes with."""
    return leaf_shapes(layout(config))


def sources(checkpoint: TensorSource, config: EncoderConfig) -> dict[str, str]:
    """Tensor that the model computes with -> name that the checkpoint stores it under, here the same.

    What the encoder does not compute with (a pooler without a classifier, stored position numbers) may be
    there; a head that config.json does not name may not.

    Raises:
        InputError: every missing, unexpected or misshapen tensor.
    """
    expected = shapes(config)
    prefix = "" if config.head is None else config.names.prefix
    ignored = [prefix + name for name in config.names.ignored if prefix + name not in expected]
    missing = [name for name in expected if name not in set(checkpoint.names())]
    named = checkpoint.config.get("architectures")
    what = f"config.json ({named[0]})" if named else "config.json, which names no architecture with a head"
    check_tensors(checkpoint, expected, missing, ignored=ignored, what=what)
    return {name: name for name in expected}


def read_head(config: Mapping[str, Any], names: Names, known: Mapping[str, HeadKind | None]) -> Head | None:
    """The head that config.json describes; ``known`` maps architectures to their kind of head."""
    kind = read_architecture(config, known)
    if kind is None:
        return None
    labels = read_labels(config)
    layers = names.classify if kind == "classify" else names.tag
    return Head(kind=kind, layers=layers, labels=labels, scores=read_scores(config, len(labels)))


def read_activation(config: Mapping[str, Any], key: str) -> Activation:
    """The activation of the feed forward; gelu where config.json names none."""
    name = config.get(key, "gelu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise InputError(f"config.json: {key} {show(str(name))} is unknown; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def encoder_family(name: str, read_config: Callable[[dict[str, Any]], EncoderConfig]) -> Family:
    """The registry entry of an encoder; torch is imported by ``load``, ``export`` and ``whole`` only."""

    def load(checkpoint: TensorSource) -> Any:
        from . import encoder

        return encoder.load(checkpoint, read_config(checkpoint.config))

    def export(model: Any) -> dict[str, Any]:
        from . import encoder

        return encoder.export(model)

    def whole(model: Any) -> Any:
        from .encoder_whole import EncoderWhole

        return EncoderWhole(model)

    return Family(
        name=name,
        task="encode",
        read_config=read_config,
        tensors=tensors,
        shapes=shapes,
        sources=lambda checkpoint: sources(checkpoint, read_config(checkpoint.config)),
        load=load,
        export=export,
        whole=whole,
    )
