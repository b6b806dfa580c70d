# SPDX-License-Identifier: Apache-2.0
"""Translation: encode, decode steps that end in the search's choice, the search's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvmq import selftest
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError, UsageError
from tvmq.generation import GenerationDefaults, read_defaults
from tvmq.manifest import Generated, Manifest, Sinusoidal
from tvmq.options import PoolingOptions
from tvmq.samples import read_samples
from tvmq.sensitivity_table import KL_PER_TOKEN
from tvmq.tokenizer import MarianTokenizer

from .task import Facts, TaskEntry

if TYPE_CHECKING:
    import tvm

    from tvmq.families.marian_config import MarianConfig

POSITIONS = "positions"


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslateJob:
    """A translation model on its way to an artifact."""

    config: MarianConfig
    defaults: GenerationDefaults
    tokenizer: MarianTokenizer

    @property
    def planned(self) -> tuple[str, ...]:
        from tvmq.graphs import fixed_name

        return fixed_name("greedy", 1), fixed_name("beam", self.defaults.beams)

    @property
    def longest(self) -> int | None:
        return None

    @property
    def extra(self) -> Mapping[str, NDArray[Any]]:
        from tvmq.graphs import BANNED

        return {BANNED: np.array([self.config.pad_id], np.int32)}

    def graphs(self, programs: Mapping[str, Any]) -> tvm.IRModule:
        from tvmq import graphs

        return graphs.translation_module(programs, len(self.extra[graphs.BANNED]), self.defaults.beams)

    def generated(self, model: Any) -> Mapping[str, Generated]:
        rows, columns = model.positions.shape
        return {POSITIONS: Sinusoidal(rows=rows, columns=columns)}

    def facts(self) -> Facts:
        config, limit = self.config, self.config.max_positions
        return Facts(
            architecture={
                "vocab": config.decoder_vocab_size,
                "source_vocab": config.vocab_size,
                "d_model": config.d_model,
                "encoder_layers": config.encoder_layers,
                "decoder_layers": config.decoder_layers,
                "heads": config.decoder_heads,
                "max_source": limit,
                "max_target": limit,
            },
            generation={
                "eos_token_id": config.eos_id,
                "pad_token_id": config.pad_id,
                "decoder_start_token_id": config.start_id,
                "forced_eos_token_id": config.forced_eos_id,
                "num_beams": self.defaults.beams,
                "length_penalty": self.defaults.length_penalty,
                "max_new_tokens": max(1, min(self.defaults.max_length or limit, limit) - 1),
            },
        )

    def tokenizer_files(self) -> Mapping[str, bytes]:
        return self.tokenizer.packed()

    def record(self, staging: Path, manifest: Manifest, level: str | None) -> None:
        selftest.record(staging, manifest, level)


def _prepare(checkpoint: Checkpoint, config: MarianConfig, pooling: PoolingOptions) -> TranslateJob:
    if pooling != PoolingOptions():
        raise UsageError(
            f"{checkpoint.path} translates; --pooling and --normalize are for encoders, leave them out"
        )
    defaults = read_defaults(checkpoint.generation)
    tokenizer = MarianTokenizer.open(checkpoint.path)
    _check_tokenizer(tokenizer, config)
    return TranslateJob(config=config, defaults=defaults, tokenizer=tokenizer)


def _check_tokenizer(tokenizer: MarianTokenizer, config: MarianConfig) -> None:
    """The tokenizer's ids are words of the model; InputError where they come from another model."""
    largest = tokenizer.vocabulary.highest
    if largest >= config.vocab_size:
        raise InputError(
            f"{tokenizer.folder}: the tokenizer has token id {largest}, the model's vocab_size is "
            f"{config.vocab_size}; use the files of one model"
        )
    if tokenizer.eos_id != config.eos_id:
        raise InputError(
            f"{tokenizer.folder}: the tokenizer ends sentences with token id {tokenizer.eos_id}, config.json "
            f"has eos_token_id {config.eos_id}; use the files of one model"
        )


def task() -> TaskEntry:
    """The registry entry."""
    return TaskEntry(
        name="translate",
        open_tokenizer=MarianTokenizer.open,
        read_samples=read_samples,
        measure=lambda config: KL_PER_TOKEN,
        prepare=_prepare,
    )
