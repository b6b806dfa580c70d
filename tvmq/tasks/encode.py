# SPDX-License-Identifier: Apache-2.0
"""Encoding: embeddings of texts, and labels of texts or tokens where the model has a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tvmq import encoder_selftest
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError
from tvmq.manifest import Generated, Manifest
from tvmq.options import PoolingOptions
from tvmq.pooling import Pooling, read_pooling, text_limit
from tvmq.text_samples import read_text_samples
from tvmq.text_tokenizer import TextTokenizer

from .task import Facts, TaskEntry

if TYPE_CHECKING:
    import tvm

    from tvmq.families.encoder_layout import EncoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeJob:
    """An encoder on its way to an artifact.

    Attributes:
        pooling: how ``embed`` makes one row of a text's tokens.
        text_limit: tokens that a text is cut to where the user asks for cutting.
    """

    config: EncoderConfig
    tokenizer: TextTokenizer
    pooling: Pooling
    text_limit: int

    @property
    def planned(self) -> tuple[str, ...]:
        return ()

    @property
    def longest(self) -> int | None:
        return self.config.max_tokens

    @property
    def extra(self) -> Mapping[str, NDArray[Any]]:
        return {}

    def graphs(self, programs: Mapping[str, Any]) -> tvm.IRModule:
        from tvmq import encoder_graphs

        return encoder_graphs.encoder_module(programs, self.pooling)

    def generated(self, model: Any) -> Mapping[str, Generated]:
        return {}

    def facts(self) -> Facts:
        config, head = self.config, self.config.head
        return Facts(
            architecture={
                "vocab": config.vocab_size,
                "width": config.width,
                "layers": config.layers,
                "heads": config.heads,
                "ffn": config.ffn,
                "types": config.types,
                "first_position": config.first_position,
                "max_tokens": config.max_tokens,
                "text_limit": self.text_limit,
                "pooling": self.pooling.kind,
                "normalize": self.pooling.normalize,
                "head": head.kind if head else "",
                "scores": head.scores if head else "",
            },
            labels=head.labels if head else (),
        )

    def tokenizer_files(self) -> Mapping[str, bytes]:
        return self.tokenizer.packed()

    def record(self, staging: Path, manifest: Manifest, level: str | None) -> None:
        encoder_selftest.record(staging, manifest, level)


def _prepare(checkpoint: Checkpoint, config: EncoderConfig, options: PoolingOptions) -> EncodeJob:
    folder = checkpoint.path
    pooling = read_pooling(folder, kind=options.kind, normalize=options.normalize)
    tokenizer = TextTokenizer.open(folder)
    if tokenizer.highest >= config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has token id {tokenizer.highest}, the model's vocab_size is "
            f"{config.vocab_size}; use the files of one model"
        )
    return EncodeJob(
        config=config,
        tokenizer=tokenizer,
        pooling=pooling,
        text_limit=text_limit(folder, tokenizer.limit, config.max_tokens),
    )


def _measure(config: EncoderConfig) -> str:
    head = config.head
    if head is None:
        return "1 - cosine per text"
    output = "labelled token" if head.kind == "tag" else "text"
    return f"{'half the squared distance' if head.scores == 'none' else 'KL'} per {output}"


def task() -> TaskEntry:
    """The registry entry."""
    return TaskEntry(
        name="encode",
        open_tokenizer=TextTokenizer.open,
        read_samples=read_text_samples,
        measure=_measure,
        prepare=_prepare,
    )
