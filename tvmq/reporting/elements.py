# SPDX-License-Identifier: Apache-2.0
"""Pieces of the page: sections, figures and tables; everything that comes from a file is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .drawing import Drawing


def section(name: str, title: str, text: str, *parts: str, note: str = "") -> str:
    """A section; ``text`` and ``parts`` are HTML, ``note`` is text."""
    notes = [f'<p class="note">{escape(note)}</p>'] if note else []
    inside = [f"<h2>{title}</h2>", f"<p>{text}</p>", *(part for part in parts if part), *notes]
    return "\n".join([f'<section id="{name}">', *inside, "</section>"])


def figure(drawings: Mapping[str, Drawing], name: str) -> str:
    """The figure of this name, or nothing where there is none."""
    if name not in drawings:
        return ""
    title = escape(drawings[name].title)
    return f"<figure>{drawings[name].inline(title)}<figcaption>{title}</figcaption></figure>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """A table; columns ``numbers`` are right-aligned."""

    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = [' class="n"' if i in numbers else "" for i in range(len(values))]
        return "".join(
            f"<{tag}{kind}>{escape(value)}</{tag}>" for kind, value in zip(kinds, values, strict=True)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", heads)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
