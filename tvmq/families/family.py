# SPDX-License-Identifier: Apache-2.0
"""What a model family gives to the rest of tvmq: its tensors, its PyTorch modules, its exported graphs.

Free of torch, so that planning and inspecting stay cheap; ``load`` and ``export`` import it on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Task = Literal["translate", "encode"]
"""What a model is for; ``tvmq.tasks`` has one entry for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One quantizable matrix.

    Attributes:
        name: its name in the checkpoint (and of the parameter in the exported graphs).
        block: Emb, Enc_ee, Enc_ffn, Dec_dd, Dec_ed or Dec_ffn; in encoders Emb, Attn, FFN or Head.
        shape: (rows n, columns k).
        is_embedding: rows are the words of a vocabulary, so they may carry bits by word.
    """

    name: str
    block: str
    shape: tuple[int, int]
    is_embedding: bool


TABLES = "Emb"
"""The block of tables. Without a decoder their rows are only looked up: nothing is multiplied by them."""


def decodes(tensors: Iterable[TensorInfo]) -> bool:
    """Whether a model of these matrices has a decoder, so that its word table also scores words."""
    return any(info.block.startswith("Dec") for info in tensors)


class TensorSource(Protocol):
    """A checkpoint as a family reads it; ``tvmq.checkpoint.Checkpoint`` is one."""

    @property
    def config(self) -> dict[str, Any]: ...
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def tensor(self, name: str) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The entry points of one architecture.

    Attributes:
        name: the ``model_type`` of its config.json.
        task: what its models are for.
        read_config: config.json as a dict -> the family's checked config; raises InputError.
        tensors: checked config -> every quantizable matrix, in graph order.
        shapes: checked config -> name and shape of every tensor that the model computes with.
        sources: checkpoint -> stored tensors that the model computes with, and the names that they are stored
            under; raises InputError where the checkpoint does not fit its config.
        load: checkpoint -> the torch model (imports torch); raises InputError as ``sources`` does.
        export: model -> exported programs by name (imports torch), as its task wants them.
        whole: model -> module over whole padded batches (imports torch); calibration and retraining run it.
            Translation: ``forward(source, source_lengths, target)`` -> logits of every target position.
            Encoders: ``forward(ids, lengths, types=None)`` -> logits of the head, or the tokens' last hidden
            states.
    """

    name: str
    task: Task
    read_config: Callable[[dict[str, Any]], Any]
    tensors: Callable[[Any], list[TensorInfo]]
    shapes: Callable[[Any], dict[str, tuple[int, ...]]]
    sources: Callable[[TensorSource], dict[str, str]]
    load: Callable[[TensorSource], Any]
    export: Callable[[Any], dict[str, Any]]
    whole: Callable[[Any], Any]
