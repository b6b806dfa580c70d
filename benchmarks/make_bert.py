# SPDX-License-Identifier: Apache-2.0
"""Write a random-weight BERT base as a BertModel folder (the shape that papers report).

12 layers, width 768, ffn 3072, 12 heads, a vocabulary of 30522 pieces, 512 positions, gelu, FP32. The same
seed gives the same bytes. The WordPiece tokenizer is synthetic but complete: every lower-case word of a to z
has pieces. ``python -m benchmarks.make_bert OUTPUT --seed 1``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

EMBEDDING_STD = 0.04
BIAS_STD = 0.01
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    """Dimensions of the generated model; the defaults are BERT base."""

    layers: int = 12
    width: int = 768
    ffn: int = 3072
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 512


def write_bert(output: Path, *, seed: int = 1, shape: BertShape | None = None) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json into ``output``."""
    from safetensors.numpy import save_file

    shape = shape or BertShape()
    output.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": _config(shape),
        "tokenizer.json": _tokenizer(_pieces(shape.vocabulary)),
        "tokenizer_config.json": _tokenizer_config(shape),
    }
    for name, value in files.items():
        (output / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    save_file(_weights(shape, seed), output / "model.safetensors", metadata={"format": "pt"})
    return output


def _config(shape: BertShape) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "hidden_size": shape.width,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": shape.positions,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": shape.vocabulary,
    }


def _pieces(vocabulary: int) -> list[str]:
    """Specials, letters, letters that continue a word, then made-up words in base 26."""
    pieces = [*SPECIAL, *ALPHABET, *(f"##{letter}" for letter in ALPHABET)]
    for index in range(vocabulary - len(pieces)):
        digits, rest = "", index
        for _ in range(4):
            rest, digit = divmod(rest, len(ALPHABET))
            digits += ALPHABET[digit]
        pieces.append(digits)
    return pieces


def _tokenizer(pieces: list[str]) -> dict[str, Any]:
    """A tokenizer.json of BERT's kind."""
    ids = {piece: index for index, piece in enumerate(pieces)}

    def special(token: str, kind: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": kind}}

    def sequence(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    single = [special("[CLS]"), sequence("A", 0), special("[SEP]")]
    used = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in SPECIAL],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, sequence("B", 1), special("[SEP]", 1)],
            "special_tokens": used,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }


def _tokenizer_config(shape: BertShape) -> dict[str, Any]:
    keys = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": shape.positions,
        **dict(zip(keys, SPECIAL, strict=True)),
    }


def _weights(shape: BertShape, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def normal(*size: int, std: float) -> NDArray[np.float32]:
        return rng.standard_normal(size, dtype=np.float32) * np.float32(std)

    weights = {
        f"embeddings.{name}_embeddings.weight": normal(rows, shape.width, std=EMBEDDING_STD)
        for name, rows in (("word", shape.vocabulary), ("position", shape.positions), ("token_type", 2))
    }

    def linear(name: str, rows: int, columns: int) -> None:
        # Glorot: each product keeps the variance of its input, so nothing overflows at any depth.
        weights[f"{name}.weight"] = normal(rows, columns, std=(2.0 / (rows + columns)) ** 0.5)
        weights[f"{name}.bias"] = normal(rows, std=BIAS_STD)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = 1.0 + normal(shape.width, std=BIAS_STD)
        weights[f"{name}.bias"] = normal(shape.width, std=BIAS_STD)

    norm("embeddings.LayerNorm")
    for layer in range(shape.layers):
        prefix = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{prefix}.attention.self.{part}", shape.width, shape.width)
        linear(f"{prefix}.attention.output.dense", shape.width, shape.width)
        norm(f"{prefix}.attention.output.LayerNorm")
        linear(f"{prefix}.intermediate.dense", shape.ffn, shape.width)
        linear(f"{prefix}.output.dense", shape.width, shape.ffn)
        norm(f"{prefix}.output.LayerNorm")
    linear("pooler.dense", shape.width, shape.width)
    return weights


def main(output: Path, seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 1) -> None:
    """Write the random BERT base into OUTPUT."""
    typer.echo(write_bert(output, seed=seed))


if __name__ == "__main__":
    typer.run(main)
