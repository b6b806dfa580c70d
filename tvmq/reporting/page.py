# SPDX-License-Identifier: Apache-2.0
"""The HTML page: self-contained, without scripts; everything that comes from a file is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from relay_passes.bit_plan import FLOAT_BITS
from tvmq import __version__
from tvmq.block_scores import BlockScores
from tvmq.sensitivity_table import Coding

from .block_table import block_table
from .drawing import Drawing, printable
from .elements import figure, section, table
from .losses import Losses, Point
from .measured import Measured
from .subject import Matrix, Parts, Subject

MB = 1e6
BLOCKS = {
    "Emb": "the table of words: one row of numbers per word, read for every word that goes in, and compared "
    "with every word that could come out",
    "Enc_ee": "attention in the encoder: each word of the source sentence looks at the others",
    "Enc_ffn": "the two large matrices of each encoder layer, applied to each word on its own",
    "Dec_dd": "attention in the decoder: each translated word looks at those before it",
    "Dec_ed": "attention from decoder to encoder: each translated word looks at the source sentence",
    "Dec_ffn": "the two large matrices of each decoder layer",
    "Head": "the output layer, which scores every word that could come next",
}
"""What the usual blocks of a translator do, for a reader who never saw them."""
ENCODER_BLOCKS = {
    "Emb": "the tables of words and of places in the text: one row is read for every word",
    "Attn": "attention: each word of the text looks at the others",
    "FFN": "the two large matrices of each layer, applied to each word on its own",
    "Head": "the last layers, which score the labels",
}
"""The same for encoders."""
MOVED = {
    "KL per token": "its probabilities for the next token (a word or a piece of one) then moved: the mean KL "
    "divergence in nats",
    "KL per labelled token": "its probabilities for the label of each token (a word or a piece of one) then "
    "moved: the mean KL divergence in nats",
    "KL per text": "its probabilities for the label of each text then moved: the mean KL divergence in nats",
    "1 - cosine per text": "the embedding of each text then turned: the mean of 1 - cosine",
}
"""How each measure is read; others are named only."""
_STYLE = """
:root { color-scheme: light dark; --text: #1b1e24; --back: #fff; --line: #d5d8dd; --soft: #5d636e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --back: #16181c; --line: #3a3e46; --soft: #a0a6b0; }
}
body { max-width: 58rem; margin: 2rem auto; padding: 0 1rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
p.note, figcaption, footer { color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; }
dt { font-weight: 600; } dd { margin: 0; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(
    subject: Subject,
    drawings: Mapping[str, Drawing],
    *,
    parts: Mapping[str, Parts],
    shares: Mapping[str, Sequence[float]],
    losses: Losses | None,
    measured: Sequence[Measured],
    scores: BlockScores | None,
) -> str:
    """The whole document.

    Args:
        subject: the model with its bits.
        drawings: the figures by name, those that there are.
        parts: bytes by block.
        shares: part of the text of each cluster of words, by tensor.
        losses: expected losses, where sensitivities were given.
        measured: measured rows.
        scores: BLEU by block, where it was given.
    """
    body = [
        _headline(subject, losses),
        _map(subject, drawings),
        _words(subject, drawings, shares),
        _bytes(subject, drawings, parts, losses),
    ]
    if losses is not None:
        body += [_sensitivity(drawings, losses), _pareto(drawings, losses)]
    if scores is not None:
        body.append(block_table(drawings, scores))
    if measured:
        body.append(_measured(drawings, measured))
    body.append(_appendix(subject, losses))
    title = f"{printable(subject.name)} in {subject.bits_per_weight:.2f} bits per weight"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            f"<footer><p>Written by tvmq {escape(__version__)}.</p></footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _headline(subject: Subject, losses: Losses | None) -> str:
    facts = {
        "size": f"{subject.bytes / MB:.2f} MB ({subject.bytes:,} bytes)",
        "in FP32": f"{subject.fp32_bytes / MB:.2f} MB ({subject.fp32_bytes:,} bytes)",
        "ratio": f"{subject.ratio:.2f} times smaller",
        "bits per weight": f"{subject.bits_per_weight:.2f}, every scale, offset and word order included",
        "weights": f"{subject.weights:,} in {len(subject.matrices)} matrices",
    }
    if losses is not None:
        facts["expected loss"] = f"{losses.plan.loss:.4f} {losses.measure} (0 is the FP32 model)"
    facts |= {"made by": subject.plan.source, **subject.facts}
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(printable(text, 400))}</dd>" for name, text in facts.items()
    )
    counted = (
        "Sizes are those of the files that ship."
        if subject.kind == "artifact"
        else "Sizes are computed from the bits, before rows are padded to whole blocks of the kernels."
    )
    return section(
        "size",
        "In short",
        "A model is made of matrices of numbers, its weights. Usually each takes 32 bits (FP32). Here a "
        "matrix is stored as a few <em>planes</em>: in each, every weight is one bit, plus or minus, and a "
        "scale per row (or group of columns) says how much the plane counts. A weight is the sum over its "
        "planes, so the number of planes is its <em>bit width</em>: 1 is smallest and coarsest, and each "
        "plane more about halves the error.",
        f"<dl>{rows}</dl>",
        note=counted,
    )


def _map(subject: Subject, drawings: Mapping[str, Drawing]) -> str:
    used = dict.fromkeys(matrix.info.block for matrix in subject.matrices)
    texts = ENCODER_BLOCKS if "Attn" in used else BLOCKS
    known = "".join(f"<dt>{block}</dt><dd>{texts[block]}</dd>" for block in used if block in texts)
    return section(
        "map",
        "Where the bits went",
        "Each cell is one matrix and its bit width: darker is more bits. A line is one kind of matrix, a "
        "column one layer; matrices outside of the layers have a whole line. A fraction is the mean over "
        "words of different widths.",
        figure(drawings, "bit-map"),
        f"<dl>{known}</dl>" if known else "",
    )


def _words(subject: Subject, drawings: Mapping[str, Drawing], shares: Mapping[str, Sequence[float]]) -> str:
    rows = []
    for matrix in subject.matrices:
        if not matrix.info.is_embedding:
            continue
        first = 1
        for i, (count, bits) in enumerate(matrix.clusters):
            share = shares.get(matrix.info.name)
            rows.append(
                [
                    printable(matrix.info.name),
                    f"{first:,} to {first + count - 1:,}",
                    _width(bits),
                    f"{share[i]:.1%}" if share else "not known",
                ]
            )
            first += count
    if not rows:
        return section(
            "words", "Bits by word", "This model has no table of words that could have bits by word."
        )
    return section(
        "words",
        "Bits by word",
        "A few words make up most of any text, and most words are rare. So the frequent words can get more "
        "bits at the price of few bytes, and the rare ones fewer at the price of little loss. The steps are "
        "the bits by rank, the most frequent word on the left, on a logarithmic scale; the rising line, "
        "where the words were counted, is how much of the text the words up to there make up.",
        figure(drawings, "word-bits"),
        table(["table", "ranks", "bits", "of the text"], rows, numbers=(1, 2, 3)),
    )


def _bytes(
    subject: Subject, drawings: Mapping[str, Drawing], parts: Mapping[str, Parts], losses: Losses | None
) -> str:
    expected = losses.by_block(subject) if losses is not None else {}
    rows = []
    for block, part in parts.items():
        bits, weights = subject.blocks.get(block, (0.0, 0))
        rows.append(
            [
                printable(block),
                f"{bits:.2f}" if weights else "",
                f"{weights:,}" if weights else "",
                *(f"{value:,}" for value in (part.planes, part.scales, part.orders, part.floats, part.total)),
                *([f"{expected[block]:.5f}" if block in expected else ""] if losses is not None else []),
            ]
        )
    heads = [
        "block", "bits per weight", "weights", "planes", "scales", "word order", "floats", "bytes",
        *(["expected loss"] if losses is not None else []),
    ]  # fmt: skip
    return section(
        "bytes",
        "Bytes by block",
        "Planes hold the signs; scales (with offsets and outliers, where there are any) say how much they "
        "count; the word order says which row belongs to which word where words have different widths. "
        "Biases and norms are not matrices and stay floats.",
        figure(drawings, "block-bytes"),
        table(heads, rows, numbers=range(1, len(heads))),
    )


def _sensitivity(drawings: Mapping[str, Drawing], losses: Losses) -> str:
    widths = sorted({bits for row in losses.measured.values() for bits in row})
    rows = [
        [printable(block), *(f"{row[bits]:.5f}" if bits in row else "" for bits in widths)]
        for block, row in losses.measured.items()
    ]
    heads = ["1 bit" if bits == 1 else f"{bits} bits" for bits in widths]
    others = "a plan's bits" if losses.around else "FP32"
    moved = MOVED.get(losses.measure, f"its outputs then moved: {escape(printable(losses.measure))}")
    return section(
        "sensitivity",
        "What each block can bear",
        f"Every matrix was stored in each bit width while all others stayed in {others}, and the model read "
        f"{losses.sentences:,} sentences. The loss is how far {moved}, 0 for not at all, summed over the "
        "block. A steep or high line is a block that needs its bits; the diamonds are what this plan gives "
        "each block.",
        figure(drawings, "sensitivity"),
        table(["block", *heads], rows, numbers=range(1, len(widths) + 1)),
        note=_caveats(losses),
    )


def _pareto(drawings: Mapping[str, Drawing], losses: Losses) -> str:
    def rows(points: Sequence[Point], name: str = "") -> list[list[str]]:
        return [
            [name or point.name, f"{point.bytes / MB:.2f}", f"{point.ms:.3f}", f"{point.loss:.5f}"]
            for point in points
        ]

    note = "Matrices that are coarse together can lose more than the sum of what each loses alone."
    if not losses.time_curve:
        note += " Milliseconds go by the bytes that are read, at 10 GB per second."
    return section(
        "pareto",
        "Size against loss",
        "The line is the best that this measurement promises: for each size the bits of least expected "
        "loss, which is the sum of the losses of all matrices. A plan far above it spends its bytes in the "
        "wrong place. The squares give every matrix the same width; the triangles are mixes that Chung et "
        "al. (2020) picked by hand (their names give the mean bits of words, decoder and encoder), with the "
        "codes that were measured here. The scale of the loss is logarithmic: one line down is a tenth.",
        figure(drawings, "size-curve"),
        figure(drawings, "time-curve"),
        table(
            ["plan", "MB", "ms per token", "expected loss"],
            [
                *rows([losses.plan, *losses.references]),
                *rows(losses.curve, "best for its size"),
                *rows(losses.time_curve, "best for its time"),
            ],
            numbers=(1, 2, 3),
        ),
        note=note,
    )


def _measured(drawings: Mapping[str, Drawing], measured: Sequence[Measured]) -> str:
    rows = []
    for found in measured:
        value = found.loss if found.score is None else found.score
        low_high = "" if found.interval is None else f"{found.interval[0]:.2f} to {found.interval[1]:.2f}"
        shown = f"{value:.5f}" if found.score is None else f"{value:.2f}"
        rows.append(
            [printable(found.name), f"{found.bytes / MB:.2f}", printable(found.metric, 20), shown, low_high]
        )
    return section(
        "measured",
        "Measured",
        "What whole models lost when they were run, beside what was expected above. BLEU and chrF count how "
        "much of a human translation the model's has in common with it, more is better; lines through the "
        "marks are 95 % confidence intervals.",
        figure(drawings, "scores"),
        table(["model", "MB", "metric", "value", "95 %"], rows, numbers=(1, 3, 4)),
    )


def _appendix(subject: Subject, losses: Losses | None) -> str:
    heads = ["matrix", "block", "shape", "bits", "codes", "bytes"]
    rows = []
    for matrix in subject.matrices:
        info = matrix.info
        row = [
            printable(info.name, 200),
            printable(info.block),
            f"{info.shape[0]:,} \N{MULTIPLICATION SIGN} {info.shape[1]:,}",
            ", ".join(
                _width(bits) if len(matrix.clusters) == 1 else f"{rows_:,} \N{MULTIPLICATION SIGN} {bits}"
                for rows_, bits in matrix.clusters
            ),
            _codes(matrix),
            f"{matrix.parts.total:,}",
        ]
        rows.append(row if losses is None else [*row, f"{losses.by_tensor[info.name]:.5f}"])
    if losses is not None:
        heads.append("expected loss")
    padded = "; shapes are as stored, with rows padded to whole blocks" if subject.kind == "artifact" else ""
    return section(
        "matrices",
        "Every matrix",
        f"In the order of the model. Bits by word are written words \N{MULTIPLICATION SIGN} bits{padded}.",
        table(heads, rows, numbers=(2, 5, 6)),
    )


def _codes(matrix: Matrix) -> str:
    coding = matrix.coding
    if coding is None:
        return "FP32"
    return _named(coding)


def _named(coding: Coding) -> str:
    group = f"a scale per {coding.group_size} columns" if coding.group_size else "a scale per row"
    offset = ", an offset" if coding.offset else ""
    outliers = f", {coding.outliers:g} % outliers" if coding.outliers else ""
    return f"{printable(coding.quantizer)} codes, {group}{offset}, {coding.scale_dtype}{outliers}"


def _caveats(losses: Losses) -> str:
    notes = []
    if losses.estimated:
        notes.append(
            "Here the losses were not measured but estimated from gradients, as if every change were small."
        )
    if not losses.same_coding:
        notes.append(
            f"The measurement is of {_named(losses.coding)}; this plan stores some matrices in another way, "
            "so that its expected loss is that of its bits with the measured codes."
        )
    if not losses.same_model:
        notes.append(
            "Only names and shapes show that the measurement belongs to this model; of a retrained model it "
            "says what the bits cost before retraining."
        )
    return " ".join(notes)


def _width(bits: int) -> str:
    return "FP32" if bits == FLOAT_BITS else str(bits)
