# SPDX-License-Identifier: Apache-2.0
"""BLEU by block: the section of the page and its figure, Table 1 of Chung et al. 2020 for this model."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tvmq.block_scores import BlockScores

from .drawing import COLOURS, INK, Drawing, printable
from .elements import figure, section, table

INCHES = (8.4, 3.9)


def block_figure(scores: BlockScores) -> Figure:
    """BLEU of every block alone at each width, FP32 as a line."""
    made = Figure(figsize=INCHES, layout="constrained")
    axes = made.subplots()
    axes.axhline(scores.bleu, color=INK, linewidth=1, linestyle="--", label="FP32")
    for i, row in enumerate(scores.rows):
        colour = COLOURS[i % len(COLOURS)]
        # more blocks than colours: the second round is dotted
        line = "o:" if i >= len(COLOURS) else "o-"
        axes.plot(row.bits, row.bleu, line, color=colour, markersize=4, label=printable(row.block, 20))
    axes.set(xlabel="bits", ylabel="BLEU")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return made


def block_table(drawings: Mapping[str, Drawing], scores: BlockScores) -> str:
    """The section."""
    widths = scores.widths
    rows = []
    for row in scores.rows:
        found = {
            bits: f"{bleu:.1f} ({low:+.1f} to {high:+.1f})"
            for bits, bleu, low, high in zip(row.bits, row.bleu, row.low, row.high, strict=True)
        }
        rows.append([printable(row.block), *(found.get(bits, "") for bits in widths)])
    heads = ["1 bit" if bits == 1 else f"{bits} bits" for bits in widths]
    return section(
        "bleu",
        "What each block can bear, in BLEU",
        f"Every block was stored in each bit width while everything else stayed in FP32, and the model "
        f"translated {scores.sentences:,} sentences by greedy search. BLEU compares the translations with "
        f"those of people, from 0 to 100; in FP32 it is {scores.bleu:.1f} here. In parentheses is what the "
        "difference to FP32 may be: 95 % of the samples that could be drawn from these sentences lie in "
        "there. A name without a part after the underscore is all of that side of the model.",
        figure(drawings, "bleu"),
        table(["block", *heads], rows, numbers=range(1, len(widths) + 1)),
        note=f"{scores.signature}; {printable(scores.coding.quantizer)} codes.",
    )
