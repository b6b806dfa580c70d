# SPDX-License-Identifier: Apache-2.0
"""DistilBERT: BERT's layers without token types and pooler, under names and config keys of its own."""

from __future__ import annotations

from typing import Any

from .config_values import heads_divide, positive, require_keys, token
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

LAYER = "transformer.layer.{i}"
NAMES = Names(
    prefix="distilbert.",
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    types="",
    embedding_norm="embeddings.LayerNorm",
    query=f"{LAYER}.attention.q_lin",
    key=f"{LAYER}.attention.k_lin",
    value=f"{LAYER}.attention.v_lin",
    attention_out=f"{LAYER}.attention.out_lin",
    attention_norm=f"{LAYER}.sa_layer_norm",
    up=f"{LAYER}.ffn.lin1",
    down=f"{LAYER}.ffn.lin2",
    ffn_norm=f"{LAYER}.output_layer_norm",
    classify=HeadLayers(dense="pre_classifier", activation="relu", out="classifier"),
    tag=HeadLayers(dense="", activation="", out="classifier"),
    ignored=("embeddings.position_ids",),
)
ARCHITECTURES: dict[str, HeadKind | None] = {
    "DistilBertModel": None,
    "DistilBertForSequenceClassification": "classify",
    "DistilBertForTokenClassification": "tag",
}
SIZES = {
    "width": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "ffn": "hidden_dim",
    "vocab_size": "vocab_size",
    "positions": "max_position_embeddings",
}
"""Field -> key in config.json."""
EPSILON = 1e-12
"""Of every norm; not in config.json."""


def read_config(config: dict[str, Any]) -> EncoderConfig:
    """Check config.json; InputError names every missing key or the first impossible value."""
    require_keys(config, tuple(SIZES.values()))
    size = {field: positive(config, key, SIZE_LIMITS.get(field, 2**31 - 1)) for field, key in SIZES.items()}
    heads_divide(size["width"], size["heads"], "dim")
    pad_id = 0 if config.get("pad_token_id") is None else token(config, "pad_token_id", size["vocab_size"])
    return EncoderConfig(
        names=NAMES,
        **size,
        first_position=0,
        types=0,
        activation=read_activation(config, "activation"),
        epsilon=EPSILON,
        pad_id=pad_id,
        head=read_head(config, NAMES, ARCHITECTURES),
    )


def family() -> Family:
    """The registry entry."""
    return encoder_family("distilbert", read_config)
