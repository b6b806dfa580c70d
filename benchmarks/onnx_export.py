# SPDX-License-Identifier: Apache-2.0
"""Export a Marian folder to ONNX for the ONNX Runtime peer.

Three graphs over one weight file: ``encoder`` (also computes the cross-attention keys and values,
once per sentence), ``greedy`` and ``beam`` (one decoder step each, with the self-attention cache
written in place and the beams' top-k inside, so that only a few numbers leave it).
Q, K and V are one product with its bias inside. Each choice of operator is the fastest one measured
on CPU: grouped-query attention for one beam, decoder-masked attention with parent indices for
several, Add + LayerNormalization instead of SkipLayerNormalization, LogSoftmax instead of
ReduceLogSumExp.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from tvmq.checkpoint import Checkpoint

from .onnx_graph import CONTRIB, WEIGHT_FILE, Graph, Precision, WeightFile
from .onnx_search import MAX_STEPS

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
LAYER_NORM_EPSILON = 1e-5
BANNED = -1e9
MAX_BEAMS = 64
Array = NDArray[np.float32]


def sinusoids(length: int, width: int) -> Array:
    """Marian's position table [length, width]: sines in the first half, cosines in the second."""
    angle = np.arange(length)[:, None] / np.power(10000, 2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


class MarianExport:
    """Writes the graphs of one checkpoint at one precision."""

    def __init__(self, folder: Path, output: Path, precision: Precision) -> None:
        checkpoint = Checkpoint.open(folder)
        self.config: dict[str, Any] = checkpoint.config
        self.tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
        self.output = output
        self.precision = precision
        self.width = int(self.config["d_model"])
        self.heads = int(self.config["decoder_attention_heads"])
        self.vocabulary = int(self.config["vocab_size"])
        self.layers = int(self.config["decoder_layers"])

    def write(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        self.weights = WeightFile(self.output / WEIGHT_FILE)
        self._encoder()
        self._decoder("greedy")
        self._decoder("beam")
        self.weights.close()

    def _graph(self) -> Graph:
        return Graph(self.weights, self.precision)

    def _linear(self, g: Graph, x: str, *names: str, out: str = "") -> str:
        weight = np.concatenate([self.tensors[f"{name}.weight"] for name in names])
        bias = np.concatenate([self.tensors[f"{name}.bias"] for name in names])
        return g.linear(x, "+".join(names), weight, bias, out=out)

    def _norm(self, g: Graph, x: str, residual: str, name: str) -> str:
        gamma = g.constant(f"{name}.weight", self.tensors[f"{name}.weight"])
        beta = g.constant(f"{name}.bias", self.tensors[f"{name}.bias"])
        total = g.call("Add", x, residual)
        return g.call("LayerNormalization", total, gamma, beta, axis=-1, epsilon=LAYER_NORM_EPSILON)

    def _ffn(self, g: Graph, x: str, prefix: str) -> str:
        hidden = self._linear(g, x, f"{prefix}.fc1")
        match self.config["activation_function"]:
            case "relu":
                hidden = g.call("Relu", hidden)
            case "swish" | "silu":
                hidden = g.call("QuickGelu", hidden, domain=CONTRIB, alpha=1.0)
            case other:
                raise ValueError(f"activation {other!r} is not exported (known: relu, swish, silu)")
        return self._norm(g, self._linear(g, hidden, f"{prefix}.fc2"), x, f"{prefix}.final_layer_norm")

    def _embed(self, g: Graph, ids: str) -> str:
        rows = g.embed(ids, "shared", self.tensors["model.shared.weight"])
        if not self.config.get("scale_embedding"):
            return rows
        return g.call("Mul", rows, g.constant("embed_scale", np.array(self.width**0.5, np.float32)))

    def _encoder(self) -> None:
        g = self._graph()
        ids = g.input("ids", INT64, [1, "length"])
        longest = int(self.config["max_position_embeddings"])
        table = g.constant("encoder_positions", sinusoids(longest, self.width))
        positions = g.call("Slice", table, g.ints(0), g.call("Shape", ids, start=1))
        x = g.call("Add", self._embed(g, ids), positions)
        for layer in range(int(self.config["encoder_layers"])):
            prefix = f"model.encoder.layers.{layer}"
            qkv = self._linear(g, x, *(f"{prefix}.self_attn.{p}_proj" for p in "qkv"))
            q, k, v = g.call_many("Split", qkv, outs=[f"{prefix}.{p}" for p in "qkv"], axis=2, num_outputs=3)
            mixed = g.call("MultiHeadAttention", q, k, v, domain=CONTRIB, num_heads=self.heads)
            mixed = self._linear(g, mixed, f"{prefix}.self_attn.out_proj")
            x = self._ffn(g, self._norm(g, mixed, x, f"{prefix}.self_attn_layer_norm"), prefix)
        size = self.width // self.heads
        heads = g.ints(1, -1, self.heads, size)
        for layer in range(self.layers):
            attention = f"model.decoder.layers.{layer}.encoder_attn"
            for part in "kv":
                y = g.call("Reshape", self._linear(g, x, f"{attention}.{part}_proj"), heads)
                name = g.output(f"cross_{part}_{layer}", FLOAT, [1, self.heads, "length", size])
                g.call("Transpose", y, out=name, perm=[0, 2, 1, 3])
        g.save(self.output / "encoder.onnx")

    def _decoder(self, search: str) -> None:
        g = self._graph()
        ids = g.input("ids", INT64, ["beams", 1])
        position = g.input("position", INT32, [1])
        if search == "greedy":
            g.input("total", INT32, [])
        else:
            g.input("beam_width", INT32, [1])
            g.input("parents", INT32, [1, "beams", MAX_STEPS])
        table = g.constant("decoder_positions", sinusoids(MAX_STEPS, self.width))
        x = g.call("Add", self._embed(g, ids), g.call("Gather", table, position, axis=0))
        for layer in range(self.layers):
            x = self._decoder_layer(g, x, layer, search)
        bias = self.tensors["final_logits_bias"].reshape(-1).copy()
        bias[int(self.config["pad_token_id"])] = BANNED
        table = self.tensors["model.shared.weight"]
        if search == "greedy":
            g.linear(x, "shared", table, bias, out=g.output("logits", FLOAT, ["beams", 1, self.vocabulary]))
        else:
            self._candidates(g, g.linear(x, "shared", table, bias))
        g.save(self.output / f"{search}.onnx")

    def _decoder_layer(self, g: Graph, x: str, layer: int, search: str) -> str:
        prefix = f"model.decoder.layers.{layer}"
        size = self.width // self.heads
        cache = []
        for part in "kv":
            shape: list[int | str] = ["beams", self.heads, MAX_STEPS, size]
            cache.append(g.input(f"past_{part}_{layer}", FLOAT, shape))
            g.output(f"present_{part}_{layer}", FLOAT, shape)
        qkv = self._linear(g, x, *(f"{prefix}.self_attn.{p}_proj" for p in "qkv"))
        outs = [f"{prefix}.mixed", f"present_k_{layer}", f"present_v_{layer}"]
        if search == "greedy":
            mixed = g.call_many(
                "GroupQueryAttention", qkv, "", "", *cache, "position", "total",
                outs=outs, domain=CONTRIB, num_heads=self.heads, kv_num_heads=self.heads,
            )[0]  # fmt: skip
        else:
            q, k, v = g.call_many("Split", qkv, outs=[f"{prefix}.{p}" for p in "qkv"], axis=2, num_outputs=3)
            mixed = g.call_many(
                "DecoderMaskedMultiHeadAttention", q, k, v, "", "", *cache, "position", "beam_width",
                "parents", outs=outs, domain=CONTRIB, num_heads=self.heads, past_present_share_buffer=1,
            )[0]  # fmt: skip
        mixed = self._linear(g, mixed, f"{prefix}.self_attn.out_proj")
        x = self._norm(g, mixed, x, f"{prefix}.self_attn_layer_norm")
        cross = [g.input(f"cross_{part}_{layer}", FLOAT, [1, self.heads, "length", size]) for part in "kv"]
        query = self._linear(g, x, f"{prefix}.encoder_attn.q_proj")
        # All beams read one sentence, so they are the query rows of one attention, not a batch of copies.
        if search == "beam":
            query = g.call("Transpose", query, perm=[1, 0, 2])
        mixed = g.call("MultiHeadAttention", query, *cross, domain=CONTRIB, num_heads=self.heads)
        if search == "beam":
            mixed = g.call("Transpose", mixed, perm=[1, 0, 2])
        mixed = self._linear(g, mixed, f"{prefix}.encoder_attn.out_proj")
        return self._ffn(g, self._norm(g, mixed, x, f"{prefix}.encoder_attn_layer_norm"), prefix)

    def _candidates(self, g: Graph, logits: str) -> None:
        """Best 2*beams continuations: ``scores`` and ``chosen`` (beam * vocabulary + token), [1, 2*beams]."""
        sums = g.input("sums", FLOAT, ["beams", 1, 1])
        count = g.input("count", INT64, [1])
        best, token = g.call_many(
            "TopK", g.call("LogSoftmax", logits, axis=2), count, outs=["best", "token"], axis=2
        )
        flat = g.ints(1, -1)
        ranked = g.call("Reshape", g.call("Add", best, sums), flat)
        starts = np.arange(MAX_BEAMS, dtype=np.int64).reshape(-1, 1, 1) * self.vocabulary
        rows = g.call("Shape", logits, start=0, end=1)
        start = g.call("Slice", g.constant("starts", starts), g.ints(0), rows)
        tokens = g.call("Reshape", g.call("Add", token, start), flat)
        _, index = g.call_many(
            "TopK", ranked, count, outs=[g.output("scores", FLOAT, [1, "count"]), "index"], axis=1
        )
        g.call("GatherElements", tokens, index, out=g.output("chosen", INT64, [1, "count"]), axis=1)
