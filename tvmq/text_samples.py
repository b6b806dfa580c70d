# SPDX-License-Identifier: Apache-2.0
"""Token ids of plain text for encoders: what their calibration and sensitivities read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .checkpoint import Checkpoint
from .evaluation import read_columns
from .families import get_family
from .pooling import text_limit
from .samples import Sample, Samples
from .text_tokenizer import TextTokenizer

CONTENT = "text, text TAB label or text TAB text TAB label"
_PAIR = 3
"""Columns of a line that holds two texts."""


def read_text_samples(model: Path, data: Path, *, limit: int | None = None) -> Samples:
    """Token ids of the texts of a file, plain or .xz, with the tokenizer of ``model``.

    A line is a text, a text and its label, or two texts and their label or score; labels are not read. Two
    texts are read together by a model with a head, each on its own by one that embeds. A text beyond the
    model's limit is cut there.

    Args:
        model: folder of an encoder.
        data: the file.
        limit: only the first lines.

    Raises:
        InputError: the data, the model's config or the tokenizer cannot be used.
    """
    config = Checkpoint.open(model).config
    checked = get_family(config).read_config(config)
    tokenizer = TextTokenizer.open(model)
    longest = text_limit(model, tokenizer.limit, checked.max_tokens)
    rows = read_columns(data, CONTENT, (1, 2, 3), limit=limit)
    together = checked.head is not None

    def sample(text: str, pair: str | None) -> Sample:
        tokens = tokenizer.tokens(text, pair, limit=longest)
        types = tuple(tokens.types) if any(tokens.types) else ()
        return Sample(source=tuple(tokens.ids), types=types)

    return Samples([sample(*texts) for texts in _texts(rows, together)])


def _texts(rows: Sequence[Sequence[str]], together: bool) -> Iterator[tuple[str, str | None]]:
    for row in rows:
        if len(row) < _PAIR:
            yield row[0], None
        elif together:
            yield row[0], row[1]
        else:
            yield row[0], None
            yield row[1], None
