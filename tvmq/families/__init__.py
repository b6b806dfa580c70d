# SPDX-License-Identifier: Apache-2.0
"""Model families: one file and one case each. Importing this package imports neither torch nor tvm."""

from __future__ import annotations

from typing import Any

from tvmq.errors import InputError

from .family import Family, TensorInfo, decodes

__all__ = ["FAMILIES", "Family", "TensorInfo", "decodes", "get_family", "translation_family"]

FAMILIES = ("bert", "distilbert", "marian", "roberta")
"""Names of the families, which are values of ``model_type``."""


def get_family(config: dict[str, Any]) -> Family:
    """The family that config.json's ``model_type`` names; InputError lists the known ones."""
    match config.get("model_type"):
        case "bert":
            from .bert_config import family

            return family()
        case "distilbert":
            from .distilbert_config import family

            return family()
        case "marian":
            from .marian_config import family

            return family()
        case "roberta" | "xlm-roberta":
            from .roberta_config import family

            return family()
        case None:
            raise InputError(f"config.json names no model_type; known architectures: {', '.join(FAMILIES)}")
        case other:
            raise InputError(f"unknown architecture {other!r}; known architectures: {', '.join(FAMILIES)}")


def translation_family(config: dict[str, Any], what: str) -> Family:
    """As ``get_family``; InputError, which says what is not possible, for models that do not translate."""
    family = get_family(config)
    if family.task != "translate":
        raise InputError(f"{what} works with translation models only so far, and {family.name} is an encoder")
    return family
