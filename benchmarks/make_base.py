# SPDX-License-Identifier: Apache-2.0
"""Write a random-weight Transformer base as a MarianMTModel folder (the shape that papers report).

6+6 layers, d_model 512, ffn 2048, 8 heads, one tied embedding of 32768 words, relu, FP32. The same
seed gives the same bytes. The tokenizer files are synthetic but consistent, so every converter that
takes a Marian folder takes this one: ``python -m benchmarks.make_base OUTPUT --seed 1``.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """Dimensions of the generated model; the defaults are Transformer base."""

    layers: int = 6
    width: int = 512
    ffn: int = 2048
    heads: int = 8
    vocabulary: int = 32768


def write_base(output: Path, *, seed: int = 1, shape: BaseShape | None = None) -> Path:
    """Write config, weights, vocabulary, SentencePiece models and word counts into ``output``."""
    from safetensors.numpy import save_file

    shape = shape or BaseShape()
    output.mkdir(parents=True, exist_ok=True)
    for name, value in _configs(shape).items():
        (output / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    pieces = _pieces(shape.vocabulary)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (output / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    model = _sentencepiece(pieces)
    for name in ("source.spm", "target.spm"):
        (output / name).write_bytes(model)
    (output / "token_freq.tsv").write_text(_frequencies(pieces), encoding="utf-8")
    save_file(_weights(shape, seed), output / "model.safetensors", metadata={"format": "pt"})
    return output


def _configs(shape: BaseShape) -> dict[str, dict[str, Any]]:
    pad = shape.vocabulary - 1
    tokens = {"eos_token_id": 0, "pad_token_id": pad, "decoder_start_token_id": pad, "forced_eos_token_id": 0}
    config = {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "activation_function": "relu",
        "d_model": shape.width,
        "decoder_vocab_size": shape.vocabulary,
        "vocab_size": shape.vocabulary,
        "is_encoder_decoder": True,
        "max_position_embeddings": 512,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "tie_word_embeddings": True,
        "use_cache": True,
        "dtype": "float32",
        "bos_token_id": None,
    }
    for side in ("encoder", "decoder"):
        config |= {
            f"{side}_layers": shape.layers,
            f"{side}_ffn_dim": shape.ffn,
            f"{side}_attention_heads": shape.heads,
        }
    generation = {"bad_words_ids": [[pad]], "max_length": 256, "num_beams": 4}
    tokenizer = {
        "source_lang": "en",
        "target_lang": "de",
        "model_max_length": 512,
        "tokenizer_class": "MarianTokenizer",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "separate_vocabs": False,
    }
    return {
        "config.json": config | tokens,
        "generation_config.json": generation | tokens,
        "tokenizer_config.json": tokenizer,
    }


def _pieces(vocabulary: int) -> list[str]:
    """Names of all ids: specials, single letters, then made-up words in base 26."""
    letters = ["▁", *ALPHABET]
    words = []
    for index in range(vocabulary - 3 - len(letters)):
        digits, rest = "", index
        for _ in range(4):
            rest, digit = divmod(rest, len(ALPHABET))
            digits += ALPHABET[digit]
        words.append("▁" + digits)
    return ["</s>", "<unk>", *letters, *words, "<pad>"]


def _sentencepiece(pieces: list[str]) -> bytes:
    from sentencepiece import sentencepiece_model_pb2 as proto

    model: Any = proto.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    model.trainer_spec.model_type = 1
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    kinds = {"<unk>": 2, "</s>": 3}
    order = ["<unk>", "</s>", *(piece for piece in pieces if piece not in {"<unk>", "</s>", "<pad>"})]
    for rank, piece in enumerate(order):
        model.pieces.add(piece=piece, score=-float(np.log(rank + 1.0)), type=kinds.get(piece, 1))
    model.trainer_spec.unk_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.bos_id = model.trainer_spec.pad_id = -1
    return model.SerializeToString(deterministic=True)


def _frequencies(pieces: list[str]) -> str:
    """Counts that fall as 1/rank (Zipf), so plans that give bits by word frequency apply."""
    lines = ["id\tpiece\tcount_src\tcount_tgt"]
    for index, piece in enumerate(pieces):
        count = 10_000_000 // (index + 1)
        lines.append(f"{index}\t{piece}\t{count}\t{count}")
    return "\n".join(lines) + "\n"


def _weights(shape: BaseShape, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def normal(*size: int, std: float) -> NDArray[np.float32]:
        return rng.standard_normal(size, dtype=np.float32) * np.float32(std)

    weights = {
        "final_logits_bias": np.zeros((1, shape.vocabulary), np.float32),
        "model.shared.weight": normal(shape.vocabulary, shape.width, std=EMBEDDING_STD),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        # Glorot: each product keeps the variance of its input, so nothing overflows at any depth.
        weights[f"{name}.weight"] = normal(rows, columns, std=(2.0 / (rows + columns)) ** 0.5)
        weights[f"{name}.bias"] = normal(rows, std=BIAS_STD)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = 1.0 + normal(shape.width, std=BIAS_STD)
        weights[f"{name}.bias"] = normal(shape.width, std=BIAS_STD)

    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        for layer in range(shape.layers):
            prefix = f"model.{side}.layers.{layer}"
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{prefix}.{attention}.{part}", shape.width, shape.width)
                norm(f"{prefix}.{attention}_layer_norm")
            linear(f"{prefix}.fc1", shape.ffn, shape.width)
            linear(f"{prefix}.fc2", shape.width, shape.ffn)
            norm(f"{prefix}.final_layer_norm")
    return weights


def main(output: Path, seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 1) -> None:
    """Write the random Transformer base into OUTPUT."""
    typer.echo(write_base(output, seed=seed))


if __name__ == "__main__":
    typer.run(main)
