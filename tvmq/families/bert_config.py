# SPDX-License-Identifier: Apache-2.0
"""BERT: BertModel and its heads, and what has the same layers under the same names, such as MiniLM."""

from __future__ import annotations

from typing import Any

from .config_values import epsilon, heads_divide, only, positive, require_keys, token
from .encoder_head import HeadKind, HeadLayers
from .encoder_layout import (
    SIZE_LIMITS,
    EncoderConfig,
    Names,
    encoder_family,
    read_activation,
    read_head,
)
from .family import Family

LAYER = "encoder.layer.{i}"
NAMES = Names(
    prefix="bert.",
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
    embedding_norm="embeddings.LayerNorm",
    query=f"{LAYER}.attention.self.query",
    key=f"{LAYER}.attention.self.key",
    value=f"{LAYER}.attention.self.value",
    attention_out=f"{LAYER}.attention.output.dense",
    attention_norm=f"{LAYER}.attention.output.LayerNorm",
    up=f"{LAYER}.intermediate.dense",
    down=f"{LAYER}.output.dense",
    ffn_norm=f"{LAYER}.output.LayerNorm",
    classify=HeadLayers(dense="bert.pooler.dense", activation="tanh", out="classifier"),
    tag=HeadLayers(dense="", activation="", out="classifier"),
    ignored=(
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    ),
)
ARCHITECTURES: dict[str, HeadKind | None] = {
    "BertModel": None,
    "BertForSequenceClassification": "classify",
    "BertForTokenClassification": "tag",
}
SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab_size": "vocab_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
}
"""Field -> key in config.json."""
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
"""Variants of which only one is computed."""


def read_config(config: dict[str, Any]) -> EncoderConfig:
    """Check config.json; InputError names every missing key or the first impossible value."""
    return read_bert(config, NAMES, ARCHITECTURES)


def read_bert(
    config: dict[str, Any], names: Names, architectures: dict[str, HeadKind | None]
) -> EncoderConfig:
    """As ``read_config`` for any family whose config.json spells things as BERT's does."""
    require_keys(config, tuple(SIZES.values()))
    size = {field: positive(config, key, SIZE_LIMITS.get(field, 2**31 - 1)) for field, key in SIZES.items()}
    heads_divide(size["width"], size["heads"], "hidden_size")
    only(config, FIXED)
    pad_id = 0 if config.get("pad_token_id") is None else token(config, "pad_token_id", size["vocab_size"])
    return EncoderConfig(
        names=names,
        **size,
        first_position=0,
        activation=read_activation(config, "hidden_act"),
        epsilon=epsilon(config, "layer_norm_eps", 1e-12),
        pad_id=pad_id,
        head=read_head(config, names, architectures),
    )


def family() -> Family:
    """The registry entry."""
    return encoder_family("bert", read_config)
