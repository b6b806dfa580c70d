# SPDX-License-Identifier: Apache-2.0
"""What an encoder ends in: nothing, a label for a text or a label for every token; and the labels' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tvmq.errors import InputError
from tvmq.store import show

HeadKind = Literal["classify", "tag"]
Scores = Literal["softmax", "sigmoid", "none"]
"""How logits become scores: shares of one, each on its own, or as they are."""
MAX_LABELS = 4096
_MAX_LABEL = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayers:
    """Where an architecture keeps its head: module names; ``dense`` "" where there is no layer before."""

    dense: str
    activation: Literal["tanh", "relu", ""]
    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of one checkpoint.

    ``classify`` reads the first token of a text, ``tag`` every token.
    """

    kind: HeadKind
    layers: HeadLayers
    labels: tuple[str, ...]
    scores: Scores


def read_architecture(config: Mapping[str, Any], known: Mapping[str, HeadKind | None]) -> HeadKind | None:
    """The kind of head that config.json's ``architectures`` names; None for the encoder alone.

    InputError for several architectures or one whose head is not supported.
    """
    named = config.get("architectures")
    if named is None:
        return None
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise InputError(f"config.json: architectures is {show(str(named))}, expected a list of one name")
    if named[0] not in known:
        raise InputError(
            f"config.json: {show(named[0])} has a head that is not supported; supported: {', '.join(known)} "
            "(keep the encoder alone with transformers: AutoModel.from_pretrained(folder)"
            ".save_pretrained(new_folder))"
        )
    return known[named[0]]


def read_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels' names by their numbers, from ``id2label``.

    Where neither it nor ``num_labels`` is there, transformers means two labels, LABEL_0 and LABEL_1.
    InputError for a map that does not name each number from 0 on once, or that ``label2id`` contradicts.
    """
    given = config.get("id2label")
    if given is None:
        return tuple(f"LABEL_{i}" for i in range(_label_count(config, 2)))
    if not isinstance(given, dict) or not given or len(given) > MAX_LABELS:
        raise InputError(
            f"config.json: id2label is {show(str(given))}, expected an object of 1 to {MAX_LABELS} numbers "
            "and names"
        )
    if set(given) != {str(i) for i in range(len(given))}:
        raise InputError(
            f"config.json: id2label names {show(', '.join(sorted(given)))}, expected the numbers 0 to "
            f"{len(given) - 1}"
        )
    labels = tuple(_label(given[str(i)]) for i in range(len(given)))
    if len(set(labels)) != len(labels):
        raise InputError("config.json: id2label gives two numbers one name; name each label once")
    _check_inverse(config.get("label2id"), labels)
    _label_count(config, len(labels), fixed=True)
    return labels


def read_scores(config: Mapping[str, Any], labels: int) -> Scores:
    """How transformers' text-classification pipeline makes scores of this model's logits."""
    match config.get("problem_type"):
        case "regression":
            return "none"
        case "multi_label_classification":
            return "sigmoid"
        case None | "single_label_classification":
            return "sigmoid" if labels == 1 else "softmax"
        case other:
            raise InputError(
                f"config.json: problem_type {show(str(other))} is unknown; known: regression, "
                "single_label_classification, multi_label_classification"
            )


def _label(name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_LABEL or not name.isprintable():
        raise InputError(
            f"config.json: id2label holds {show(str(name))}, expected printable text of 1 to {_MAX_LABEL} "
            "characters"
        )
    return name


def _check_inverse(given: object, labels: tuple[str, ...]) -> None:
    if given is None:
        return
    if given != {label: i for i, label in enumerate(labels)}:
        raise InputError("config.json: id2label and label2id contradict each other; correct one of them")


def _label_count(config: Mapping[str, Any], default: int, *, fixed: bool = False) -> int:
    count = config.get("num_labels")
    if count is None:
        return default
    whole = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MAX_LABELS
    if not whole or (fixed and count != default):
        expected = str(default) if fixed else f"1 to {MAX_LABELS}"
        raise InputError(f"config.json: num_labels is {count!r}, expected {expected}")
    return int(count)
