# SPDX-License-Identifier: Apache-2.0
"""The tensors that functions take, as manifest.json lists them: every name once, functions by number.

``{"tensors": {"model.shared.": "weight:keys weight:scales"}, "functions": {"encode": "0-1"}}``: a key and
each word after it make a name, numbers count these names from 0. In memory it is a list for each function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

MAX_PARAMETERS = 1 << 20
"""Names in all functions together; a manifest that lists more is not believed."""
Numbers = Annotated[str, Meta(pattern=r"^([0-9]{1,7}(-[0-9]{1,7})?( [0-9]{1,7}(-[0-9]{1,7})?)*)?\Z")]


class Listing(Struct, frozen=True, forbid_unknown_fields=True):
    """The written form."""

    tensors: dict[str, str]
    functions: Annotated[dict[str, Numbers], Meta(max_length=256)]


def encode_names(parameters: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """The written form of function -> names; the same lists give the same text."""
    groups: dict[str, list[str]] = {}
    for name in sorted({name for names in parameters.values() for name in names}):
        split = name.rfind(".", 0, -1) + 1  # a dot at the very end stays with the last part
        groups.setdefault(name[:split], []).append(name[split:])
    names = [head + last for head, words in groups.items() for last in words]
    number = {name: index for index, name in enumerate(names)}
    tensors = {head: " ".join(map(_quote, words)) for head, words in groups.items()}
    functions = {name: _ranges([number[tensor] for tensor in taken]) for name, taken in parameters.items()}
    return {"tensors": tensors, "functions": functions}


def decode_names(document: object) -> dict[str, list[str]]:
    """Function -> names from the written form.

    Raises:
        ValueError: another form, a number without a name, or more than ``MAX_PARAMETERS``.
    """
    listing = msgspec.convert(document, Listing)
    names = [
        head + _unquote(word) for head, words in listing.tensors.items() for word in words.split(" ") if word
    ]
    left = MAX_PARAMETERS
    result: dict[str, list[str]] = {}
    for function, text in listing.functions.items():
        taken = result[function] = []
        for part in text.split(" ") if text else ():
            first, _, last = part.partition("-")
            begin, end = int(first), int(last or first) + 1
            left -= max(end - begin, 0)
            if end > len(names) or left < 0:
                raise ValueError(f"number {part} of function {function!r} is beyond the {len(names)} tensors")
            taken += names[begin:end]
    return result


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3 7 9-10`` for [0, 1, 2, 3, 7, 9, 10]; order and repetitions are kept."""
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    runs = [numbers[begin:end] for begin, end in pairwise(breaks) if end > begin]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _quote(word: str) -> str:
    return word.replace("%", "%25").replace(" ", "%20")


def _unquote(word: str) -> str:
    return word.replace("%20", " ").replace("%25", "%")
