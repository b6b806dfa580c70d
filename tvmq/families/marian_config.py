# SPDX-License-Identifier: Apache-2.0
"""The shape of a Marian model (MarianMTModel folders): checked config and the list of its layers.

``layout`` is the single source of names: the torch modules, the loader and the planner follow it.
No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tvmq.errors import InputError

from .family import Family, TensorInfo, TensorSource

Kind = Literal["linear", "norm", "embedding", "head"]
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
        missing = [key for key in (*_SIZES, *_TOKENS) if config.get(key) is None]
        if missing:
            raise InputError(f"config.json lacks {', '.join(missing)}; use the file saved with the model")
        size = {key: _positive(config, key) for key in _SIZES}
        for side in ("encoder", "decoder"):
            heads = size[f"{side}_attention_heads"]
            if size["d_model"] % heads:
                raise InputError(
                    f"config.json: d_model {size['d_model']} is not divisible by {heads} {side} heads"
                )
        for key, supported in _FIXED.items():
            if config.get(key, supported) is not supported:
                raise InputError(
                    f"config.json: {key}={config[key]!r} is not supported, only {key}={supported} is"
                )
        share = _flag(config, "share_encoder_decoder_embeddings", True)
        vocab = size["vocab_size"]
        separate = config.get("decoder_vocab_size") is not None
        decoder_vocab = _positive(config, "decoder_vocab_size") if separate else vocab
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
            scale_embedding=_flag(config, "scale_embedding", False),
            share_embeddings=share,
            tie_head=_flag(config, "tie_word_embeddings", True),
            eos_id=_token(config, "eos_token_id", decoder_vocab),
            pad_id=_token(config, "pad_token_id", decoder_vocab),
            start_id=_token(config, "decoder_start_token_id", decoder_vocab),
            forced_eos_id=(
                None
                if config.get("forced_eos_token_id") is None
                else _token(config, "forced_eos_token_id", decoder_vocab)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One layer with weights: ``name`` is its module path, ``rows`` x ``columns`` its weight.

    A norm has ``rows`` values of weight and of bias; a linear has ``rows`` of bias unless it is the head.
    ``encode`` / ``decode``: which of the two graphs uses it.
    """

    name: str
    kind: Kind
    block: str
    rows: int
    columns: int
    encode: bool
    decode: bool


def layout(config: MarianConfig) -> list[Leaf]:
    """Every layer of the model, in graph order; tied tables once, under the name that is computed with."""
    leaves: list[Leaf] = []

    def add(name: str, kind: Kind, block: str, rows: int, columns: int, use: str) -> None:
        use_e, use_d = "e" in use, "d" in use
        leaf = Leaf(name=name, kind=kind, block=block, rows=rows, columns=columns, encode=use_e, decode=use_d)
        leaves.append(leaf)

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
    """The matrices that can be quantized (word tables, linears); biases and norms stay FP32."""
    return [
        TensorInfo(
            name=f"{leaf.name}.weight",
            block=leaf.block,
            shape=(leaf.rows, leaf.columns),
            is_embedding=leaf.kind in ("embedding", "head"),
        )
        for leaf in layout(config)
        if leaf.kind != "norm"
    ]


def family() -> Family:
    """The registry entry; torch is imported by ``load``, ``export`` and ``whole`` only."""

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
        read_config=MarianConfig.from_dict,
        tensors=tensors,
        load=load,
        export=export,
        whole=whole,
    )


def _positive(config: dict[str, Any], key: str) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise InputError(f"config.json: {key} is {value!r}, expected a positive whole number")
    if value > _LIMITS.get(key, value):
        raise InputError(f"config.json: {key} is {value}, expected at most {_LIMITS[key]}")
    return value


def _token(config: dict[str, Any], key: str, vocab: int) -> int:
    value = config[key]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab:
        raise InputError(f"config.json: {key} is {value!r}, expected one token id below {vocab}")
    return value


def _flag(config: dict[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {key} is {value!r}, expected true or false")
    return value


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
