# SPDX-License-Identifier: Apache-2.0
"""The figures of a report. Each function draws one idea and returns matplotlib's figure, unfinished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from relay_passes.bit_plan import FLOAT_BITS, MAX_BITS

from .drawing import COLOURS, FAINT, INK, printable
from .grid import Row
from .losses import PAPER, Losses, Point
from .measured import Measured
from .subject import Matrix, Parts, Subject, cluster_shares

MB = 1e6
WIDTH = 8.4
"""Inches of every figure."""
_FLOAT_COLOUR = "#c9ccd1"
_MOST_NUMBERED = 48
"""Columns of the map up to which every cell carries its number."""
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
"""Numbers without powers of ten."""
_PARTS = {
    "planes": "planes (signs)",
    "scales": "scales and offsets",
    "orders": "word order",
    "floats": "values kept as floats",
}


def bit_colour(bits: float) -> str:
    """Darker for more bits, grey for FP32."""
    if bits > MAX_BITS:
        return _FLOAT_COLOUR
    return to_hex(colormaps["viridis_r"](0.08 + 0.8 * (min(bits, 6.0) - 1) / 5))


def bit_map(rows: Sequence[Row]) -> Figure:
    """Bits of every matrix: a line for each kind of matrix, a column for each layer."""
    layers = sorted({layer for row in rows for layer in row.cells if layer is not None})
    columns = max(len(layers), 1)
    place = {layer: i for i, layer in enumerate(layers)}
    blocks = list(dict.fromkeys(row.block for row in rows))
    height = len(rows) + 0.35 * (len(blocks) - 1)
    figure = Figure(figsize=(WIDTH, 0.29 * height + 0.7))
    axes = figure.subplots()
    y, before = 0.0, rows[0].block
    for row in rows:
        y += 0.35 if row.block != before else 0.0
        if row.block != before or y == 0.0:
            label = printable(row.block, 16)
            _beside(axes, -0.24, y, label, weight="bold", ha="left")
        before = row.block
        _beside(axes, -0.012, y, printable(row.label, 20), ha="right")
        for layer, bits in row.cells.items():
            x, width = (0, columns) if layer is None else (place[layer], 1)
            _cell(axes, x, y, width, bits, columns <= _MOST_NUMBERED)
        y += 1
    axes.set(xlim=(0, columns), ylim=(y, 0))
    axes.xaxis.tick_top()
    shown = layers if columns <= _MOST_NUMBERED else layers[:: columns // 24]
    axes.set_xticks([place[layer] + 0.5 for layer in shown], [str(layer) for layer in shown])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_title("layer", fontsize=10)
    axes.spines[:].set_visible(False)
    return figure


def _beside(axes: Axes, x: float, y: float, text: str, **how: Any) -> None:
    """Text left of the axes: ``x`` as a part of their width, ``y`` the upper edge of a line."""
    axes.text(x, y + 0.5, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, **how)


def _cell(axes: Axes, x: float, y: float, width: float, bits: float, numbered: bool) -> None:
    colour = bit_colour(bits)
    axes.add_patch(Rectangle((x + 0.02, y + 0.03), width - 0.04, 0.94, color=colour, linewidth=0))
    if numbered:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        text = "FP32" if bits == FLOAT_BITS else f"{bits:.3g}"
        ink = "black" if light else "white"
        axes.text(x + width / 2, y + 0.5, text, ha="center", va="center", fontsize=9, color=ink)


def word_bits(embeddings: Sequence[Matrix], frequencies: NDArray[np.integer] | None) -> Figure:
    """Bits of a word by its frequency rank, and how much of the text lies below each rank."""
    figure = Figure(figsize=(WIDTH, 2.9 * len(embeddings)), layout="constrained")
    for axes, matrix in zip(figure.subplots(len(embeddings), squeeze=False)[:, 0], embeddings, strict=True):
        _word_steps(axes, matrix, frequencies)
    return figure


def _word_steps(axes: Axes, matrix: Matrix, frequencies: NDArray[np.integer] | None) -> None:
    ends = np.cumsum([rows for rows, _ in matrix.clusters])
    bits = [width for _, width in matrix.clusters]
    edges = np.array([1, *(ends[:-1] + 1), ends[-1]], np.float64)
    edges[-1] = max(edges[-1], edges[-2] + 1)
    axes.stairs(bits, edges, baseline=0, fill=True, color=COLOURS[0], alpha=0.22)
    axes.stairs(bits, edges, baseline=None, color=COLOURS[0], linewidth=2.2)
    top = max(bits) * 1.32
    axes.set(xscale="log", xlim=(1, edges[-1]), ylim=(0, top), ylabel="bits")
    axes.set_xlabel("word by frequency rank (1 is the most frequent)")
    axes.set_title(printable(matrix.info.name), fontsize=10, loc="left")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    shares = cluster_shares(matrix, frequencies)
    for i, (rows, width) in enumerate(matrix.clusters):
        text = f"{rows:,} words" + (f"\n{shares[i]:.0%} of text" if shares else "")
        middle = float(np.sqrt(edges[i] * edges[i + 1]))
        narrow = np.log10(edges[i + 1] / edges[i]) < 0.09 * np.log10(edges[-1])
        if len(matrix.clusters) <= 8 and not narrow:
            axes.text(middle, width - 0.06 * top, text, ha="center", va="top", fontsize=8.5)
    if frequencies is not None and shares:
        right = axes.twinx()
        counts = np.sort(frequencies)[::-1].astype(np.float64)
        ranks = np.unique(np.geomspace(1, len(counts), 200).astype(int))
        right.plot(ranks, np.cumsum(counts)[ranks - 1] / counts.sum(), color=COLOURS[1], linewidth=1.4)
        right.set_ylim(0, 1.05)
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        right.set_ylabel("of the text up to here", color=COLOURS[1])
        right.tick_params(axis="y", labelcolor=COLOURS[1])
        right.spines["top"].set_visible(False)


def block_bytes(parts: Mapping[str, Parts]) -> Figure:
    """Megabytes of every block, by what they hold."""
    figure = Figure(figsize=(WIDTH, 0.42 * len(parts) + 1.1), layout="constrained")
    axes = figure.subplots()
    names = [printable(name, 28) for name in parts]
    left = np.zeros(len(parts))
    for colour, (key, label) in zip(COLOURS, _PARTS.items(), strict=False):
        values = np.array([getattr(part, key) for part in parts.values()]) / MB
        if values.any():
            axes.barh(range(len(names)), values, left=left, height=0.68, label=label, color=colour)
        left += values
    for y, total in enumerate(left):
        axes.text(total + 0.008 * left.max(), y, f"{total:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, left.max() * 1.1)
    axes.set_xlabel("MB")
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, borderaxespad=0.2)
    return figure


def sensitivity_curves(losses: Losses, chosen: Mapping[str, tuple[float, float]]) -> Figure:
    """Loss of every block alone at each width, and where the plan's mix of widths puts it.

    Args:
        losses: measured.
        chosen: block -> (mean bits, expected loss) of the plan.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    for i, (block, row) in enumerate(losses.measured.items()):
        points = [(bits, kl) for bits, kl in sorted(row.items()) if kl > 0]
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(
            [bits for bits, _ in points], [kl for _, kl in points], "o-", color=colour, markersize=4,
            label=printable(block, 20),
        )  # fmt: skip
        bits, loss = chosen.get(block, (FLOAT_BITS, 0.0))
        if bits <= MAX_BITS and loss > 0:
            axes.plot(
                bits, loss, "D", markersize=9, color=colour, markerfacecolor="none", markeredgewidth=1.6
            )
    axes.plot([], [], "D", color=INK, markerfacecolor="none", markersize=9, label="this plan")
    _loss_axis(axes, losses)
    axes.set_xlabel("bits")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def size_curve(losses: Losses, measured: Sequence[Measured], subject: Subject) -> Figure:
    """Loss against megabytes: the best plans as a line, the others as marks."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    _curve(axes, losses.curve, losses, lambda point: point.bytes / MB)
    found = [(row.name, row.bytes / MB, row.loss) for row in measured if row.loss]
    if found:
        axes.plot(
            [x for _, x, _ in found], [y for _, _, y in found], "x", color=INK, markersize=8,
            markeredgewidth=1.8, label="measured",
        )  # fmt: skip
        _names(axes, found)
    axes.set_xlabel("MB of the whole model")
    slope, other = max(subject.weights, 1) / 8 / MB, subject.other_bytes / MB

    def bits_of(size: Any) -> Any:
        return (size - other) / slope

    def size_of(bits: Any) -> Any:
        return bits * slope + other

    axes.secondary_xaxis("top", functions=(bits_of, size_of)).set_xlabel("bits per weight")
    figure.legend(loc="outside lower center", ncols=5, fontsize=9)
    return figure


def time_curve(losses: Losses) -> Figure:
    """Loss against milliseconds per token."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    _curve(axes, losses.time_curve, losses, lambda point: point.ms)
    axes.set_xlabel("milliseconds per token in the matrices")
    figure.legend(loc="outside lower center", ncols=5, fontsize=9)
    return figure


def _curve(axes: Axes, curve: Sequence[Point], losses: Losses, cost: Callable[[Point], float]) -> None:
    best = sorted((cost(point), point.loss) for point in curve if point.loss > 0)
    axes.plot(
        [x for x, _ in best], [y for _, y in best], ".-", color=COLOURS[0], label="best plan at each cost"
    )
    paper = [point for point in losses.references if point.name in PAPER]
    uniform = [point for point in losses.references if point.name not in PAPER]
    groups = (
        (uniform, "s", COLOURS[1], "one width for all", 6),
        (paper, "^", COLOURS[2], "the paper's mixes", 7),
        ([losses.plan], "*", COLOURS[3], "this plan", 15),
    )
    for points, mark, colour, label, size in groups:
        shown = [(point.name, cost(point), point.loss) for point in points if point.loss > 0]
        if shown:
            axes.plot(
                [x for _, x, _ in shown], [y for _, _, y in shown], mark, color=colour, markersize=size,
                label=label,
            )  # fmt: skip
        if points is not groups[2][0]:
            _names(axes, shown, below=points is uniform)
    _loss_axis(axes, losses)
    axes.grid(True)


def _loss_axis(axes: Axes, losses: Losses) -> None:
    axes.set(yscale="log", ylabel=f"loss ({printable(losses.measure, 60)})")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(NullFormatter())


def scores(measured: Sequence[Measured], subject: Subject) -> Figure:
    """Measured scores against megabytes, with their intervals; a mark where this subject's size is."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    metrics = dict.fromkeys(row.metric for row in measured if row.score is not None)
    for i, metric in enumerate(metrics):
        rows = [row for row in measured if row.metric == metric]
        shown = [(row.name, row.bytes / MB, row.score) for row in rows if row.score is not None]
        colour = COLOURS[i % len(COLOURS)]
        for row in rows:
            if row.interval is not None:
                axes.plot([row.bytes / MB] * 2, row.interval, color=colour, linewidth=1, alpha=0.5)
        axes.plot(
            [x for _, x, _ in shown], [y for _, _, y in shown], "o", color=colour, label=printable(metric, 20)
        )
        _names(axes, shown)
    axes.axvline(subject.bytes / MB, color=FAINT, linestyle=":", label="size of this plan")
    axes.set(xscale="log", xlabel="MB of the whole model", ylabel="score (more is better)")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter(PLAIN)
    axes.grid(True)
    figure.legend(loc="outside lower center", ncols=5, fontsize=9)
    return figure


def _names(axes: Axes, points: Sequence[tuple[str, float, float]], *, below: bool = False) -> None:
    """A name beside every mark, or below it."""
    offset, side = ((0, -13), "center") if below else ((6, 4), "left")
    for name, x, y in points:
        axes.annotate(
            printable(name, 32), (x, y), xytext=offset, textcoords="offset points", fontsize=8, ha=side
        )
