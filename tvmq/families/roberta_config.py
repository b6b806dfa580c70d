# SPDX-License-Identifier: Apache-2.0
"""RoBERTa and XLM-R: BERT's layers under other names, positions counted from the padding's number on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvmq.errors import InputError

from . import bert_config
from .bert_config import read_bert
from .encoder_head import HeadKind, HeadLayers
from .encoder_layout import EncoderConfig, encoder_family
from .family import Family

NAMES = replace(
    bert_config.NAMES,
    prefix="roberta.",
    classify=HeadLayers(dense="classifier.dense", activation="tanh", out="classifier.out_proj"),
)
ARCHITECTURES: dict[str, HeadKind | None] = {}
for _stem in ("Roberta", "XLMRoberta"):
    ARCHITECTURES |= {
        f"{_stem}Model": None,
        f"{_stem}ForSequenceClassification": "classify",
        f"{_stem}ForTokenClassification": "tag",
    }
PAD_ID = 1
"""Where config.json names none."""


def read_config(config: dict[str, Any]) -> EncoderConfig:
    """Check config.json; InputError names every missing key or the first impossible value."""
    if config.get("pad_token_id") is None:
        config = config | {"pad_token_id": PAD_ID}
    checked = read_bert(config, NAMES, ARCHITECTURES)
    first = checked.pad_id + 1
    if first >= checked.positions:
        raise InputError(
            f"config.json: max_position_embeddings is {checked.positions}, expected more than {first}, the "
            "first position after pad_token_id"
        )
    return replace(checked, first_position=first)


def family() -> Family:
    """The registry entry."""
    return encoder_family("roberta", read_config)
