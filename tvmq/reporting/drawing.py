# SPDX-License-Identifier: Apache-2.0
"""Figures as text that never changes: no dates, no random names, no fonts but matplotlib's own.

Names that come from a model are printed as they are: never read as mathematics, never too long.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#1b1e24"
"""Colour of text and lines; on a page it becomes the colour of the page's text."""
BACKGROUND = "#fefefe"
"""Colour behind a figure; on a page there is none."""
FAINT = "#8a8f98"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
"""Okabe and Ito's, told apart with any colour vision."""
PNG_DPI = 150
_STYLE: dict[str, Any] = {
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": BACKGROUND,
    "font.size": 10,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "savefig.facecolor": "auto",
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: file name without suffix.
        title: what it shows.
        svg: a whole SVG document, with its own background.
        png: the same as pixels; empty unless it was asked for.
    """

    name: str
    title: str
    svg: str
    png: bytes

    def inline(self, label: str) -> str:
        """The drawing as an element of an HTML page, in the page's colours.

        Args:
            label: what a reader who cannot see it is told, escaped for an attribute.
        """
        bare = _METADATA.sub("", _HEAD.sub("", self.svg), count=1)
        named = _REFERENCE.sub(rf"\g<1>{self.name}-", bare)
        named = named.replace(INK, "currentColor").replace(BACKGROUND, "none")
        return named.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


@contextmanager
def style() -> Iterator[None]:
    """Our style, whatever the user's matplotlibrc says, while figures are made and written."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def finish(figure: Figure, name: str, title: str, *, png: bool) -> Drawing:
    """Write ``figure``, inside ``style()``."""
    with matplotlib.rc_context({"svg.hashsalt": name}):
        text = io.BytesIO()
        FigureCanvasSVG(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=metadata, bbox_inches="tight")
        pixels = io.BytesIO()
        if png:
            FigureCanvasAgg(figure)
            figure.savefig(
                pixels, format="png", dpi=PNG_DPI, metadata={"Software": None}, bbox_inches="tight"
            )
    return Drawing(name=name, title=title, svg=text.getvalue().decode(), png=pixels.getvalue())


def printable(text: str, limit: int = 60) -> str:
    """A name from a file as a label: control characters replaced, the middle of a long one left out."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    if len(clean) <= limit:
        return clean
    half = (limit - 1) // 2
    return f"{clean[:half]}\N{HORIZONTAL ELLIPSIS}{clean[-half:]}"
