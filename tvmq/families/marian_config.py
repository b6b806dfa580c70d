# SPDX-License-Identifier: Apache-2.0
"""The shape of a Marian model (MarianMTModel folders): checked config and the list of its layers.

``layout`` is the single source of names: the torch modules, the loader and the planner follow it.
No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tvmq.errors import InputError

from .config_values import LARGEST, flag, heads_divide, only, positive, require_keys, token
from .family import Family, TensorInfo, TensorSource
from .leaf import Kind, Leaf, leaf_shapes, leaf_tensors

_SIZES = (
    "d_model",
    "vocab_size",
    "max_position_embeddings",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
)
_LIMITS = {
    "d_model": 1 << 16,
    "max_position_embeddings": 1 << 16,
    "encoder_layers": 1 << 10,
    "decoder_layers": 1 << 10,
}
"""Sizes that are computed with before any tensor has confirmed them."""
_TOKENS = ("eos_token_id", "pad_token_id", "decoder_start_token_id")
_FIXED = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}
"""Variants of old Marian configs: the only value that transformers' MarianMTModel computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarianConfig:
    """A checked Marian config. Post-norm layers, sinusoidal positions.

    ``share_embeddings``: one table for encoder and decoder. ``tie_head``: the output projection is the
    decoder's table. ``forced_eos_id``: token forced at the last step of generation, or None.
    """

    d_model: int
    vocab_size: int
    decoder_vocab_size: int
    max_positions: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    activation: Literal["relu", "gelu", "silu"]
    scale_embedding: bool
    share_embeddings: bool
    tie_head: bool
    eos_id: int
    pad_id: int
    start_id: int
    forced_eos_id: int | None

    @property
    def encoder_embedding(self) -> str:
        """Module name of the source word table."""
        return "model.shared" if self.share_embeddings else "model.encoder.embed_tokens"

    @property
    def decoder_embedding(self) -> str:
        """Module name of the target word table."""
        return "model.shared" if self.share_embeddings else "model.decoder.embed_tokens"

    @property
    def head(self) -> str:
        """Module name of the output projection."""
        return self.decoder_embedding if self.tie_head else "lm_head"

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> MarianConfig:
        """Check config.json; InputError names every missing key or the first impossible value."""
        require_keys(config, (*_SIZES, *_TOKENS))
        size = {key: positive(config, key, _LIMITS.get(key, LARGEST - 1)) for key in _SIZES}
        for side in ("encoder", "decoder"):
            heads_divide(size["d_model"], size[f"{side}_attention_heads"], "d_model", f"{side} heads")
        only(config, _FIXED)
        share = flag(config, "share_encoder_decoder_embeddings", True)
        vocab = size["vocab_size"]
        separate = config.get("decoder_vocab_size") is not None
        decoder_vocab = positive(config, "decoder_vocab_size") if separate else vocab
        if share and decoder_vocab != vocab:
            raise InputError(
                f"config.json: shared embeddings need equal vocab_size ({vocab}) and decoder_vocab_size "
                f"({decoder_vocab}); correct one of them or set share_encoder_decoder_embeddings to false"
            )
        return cls(
            d_model=size["d_model"],
            vocab_size=vocab,
            decoder_vocab_size=decoder_vocab,
            max_positions=size["max_position_embeddings"],
            encoder_layers=size["encoder_layers"],
            encoder_heads=size["encoder_attention_heads"],
            encoder_ffn=size["encoder_ffn_dim"],
            decoder_layers=size["decoder_layers"],
            decoder_heads=size["decoder_attention_heads"],
            decoder_ffn=size["decoder_ffn_dim"],
            activation=_activation(config),
            scale_embedding=flag(config, "scale_embedding", False),
            share_embeddings=share,
            tie_head=flag(config, "tie_word_embeddings", True),
            eos_id=token(config, "eos_token_id", decoder_vocab),
            pad_id=token(config, "pad_token_id", decoder_vocab),
            start_id=token(config, "decoder_start_token_id", decoder_vocab),
            forced_eos_id=(
                None
                if config.get("forced_eos_token_id") is None
                else token(config, "forced_eos_token_id", decoder_vocab)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MarianLeaf(Leaf):
    """A layer, and which of the two graphs uses it."""

    encode: bool
    decode: bool


def layout(config: MarianConfig) -> list[MarianLeaf]:
    """Every layer of the model, in graph order; tied tables once, under the name that is computed with."""
    leaves: list[MarianLeaf] = []

    def add(name: str, kind: Kind, block: str, rows: int, columns: int, use: str) -> None:
        sides = {"encode": "e" in use, "decode": "d" in use}
        leaves.append(MarianLeaf(name=name, kind=kind, block=block, rows=rows, columns=columns, **sides))

    d = config.d_model
    if config.share_embeddings:
        add("model.shared", "embedding", "Emb", config.vocab_size, d, "ed")
    else:
        add(config.encoder_embedding, "embedding", "Emb", config.vocab_size, d, "e")
        add(config.decoder_embedding, "embedding", "Emb", config.decoder_vocab_size, d, "d")

    def attention(path: str, block: str, memory_use: str, use: str) -> None:
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            add(f"{path}.{part}", "linear", block, d, d, memory_use if part in ("k_proj", "v_proj") else use)
        add(f"{path}_layer_norm", "norm", block, d, 1, use)

    def feed_forward(path: str, block: str, width: int, use: str) -> None:
        add(f"{path}.fc1", "linear", block, width, d, use)
        add(f"{path}.fc2", "linear", block, d, width, use)
        add(f"{path}.final_layer_norm", "norm", block, d, 1, use)

    for i in range(config.encoder_layers):
        path = f"model.encoder.layers.{i}"
        attention(f"{path}.self_attn", "Enc_ee", "e", "e")
        feed_forward(path, "Enc_ffn", config.encoder_ffn, "e")
    for i in range(config.decoder_layers):
        path = f"model.decoder.layers.{i}"
        attention(f"{path}.self_attn", "Dec_dd", "d", "d")
        # the memory's keys and values are computed once per sentence, in the encode graph
        attention(f"{path}.encoder_attn", "Dec_ed", "e", "d")
        feed_forward(path, "Dec_ffn", config.decoder_ffn, "d")
    if not config.tie_head:
        add("lm_head", "head", "Emb", config.decoder_vocab_size, d, "d")
    return leaves


def tensors(config: MarianConfig) -> list[TensorInfo]:
    """The matrices that can be quantized."""
    return leaf_tensors(layout(config))


def shapes(config: MarianConfig) -> dict[str, tuple[int, ...]]:
    """Name in the checkpoint -> shape, of everything that the model computes with."""
    return leaf_shapes(layout(config)) | {"final_logits_bias": (1, config.decoder_vocab_size)}


def family() -> Family:
    """The registry entry; torch is imported by ``load``, ``export`` and ``whole`` only."""

    def sources(checkpoint: TensorSource) -> dict[str, str]:
        from .marian_tensors import sources

        return sources(checkpoint)

    def load(checkpoint: TensorSource) -> Any:
        from . import marian

        return marian.load(checkpoint)

    def export(model: Any) -> dict[str, Any]:
        from . import marian

        return marian.export(model)

    def whole(model: Any) -> Any:
        from .marian_whole import MarianWhole

        return MarianWhole(model)

    return Family(
        name="marian",
        task="translate",
        read_config=MarianConfig.from_dict,
        tensors=tensors,
        shapes=shapes,
        sources=sources,
        load=load,
        export=export,
        whole=whole,
    )


def _activation(config: dict[str, Any]) -> Literal["relu", "gelu", "silu"]:
    match config.get("activation_function", "gelu"):
        case "relu":
            return "relu"
        case "gelu":
            return "gelu"
        case "swish" | "silu":
            return "silu"
        case other:
            raise InputError(
                f"config.json: activation_function {other!r} is unknown; known: relu, gelu, swish, silu"
            )
