# SPDX-License-Identifier: Apache-2.0
"""Texts of mixed lengths, packed without padding, against the same artifact on padded batches.

Both runs compute with the same kernels; the padded one treats every text as if it were as long as the
longest of its batch. Only real tokens are counted. ``python -m benchmarks.ragged --artifact BERT.tvmq``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tvmq.encoder import Encoder, load
from tvmq.text_tokenizer import Tokens

SHORTEST, LONGEST = 8, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedResult:
    """Tokens per second of both ways, medians over the rounds, and their ratio (median of the rounds').

    Attributes:
        tokens: real tokens of a round.
        padded_tokens: tokens that the padded way computes.
    """

    packed_tokens_per_s: float
    padded_tokens_per_s: float
    ratio: float
    tokens: int
    padded_tokens: int
    batch: int
    threads: int
    rounds: int
    isa: str


def mixed_texts(count: int, vocabulary: int, *, longest: int = LONGEST, seed: int = 0) -> list[Tokens]:
    """``count`` texts of random ids, lengths uniform from ``SHORTEST`` to ``longest``."""
    random = np.random.default_rng(seed)
    lengths = random.integers(min(SHORTEST, longest), longest + 1, count)
    drawn = [random.integers(0, vocabulary, length).tolist() for length in lengths]
    return [Tokens(ids=ids, types=[0] * len(ids)) for ids in drawn]


def padded(texts: Sequence[Tokens], batch: int) -> list[Tokens]:
    """The texts with ids 0 added up to the longest text of each batch."""
    found = []
    for start in range(0, len(texts), batch):
        group = texts[start : start + batch]
        width = max(map(len, group))
        found += [Tokens(ids=text.ids + [0] * (width - len(text)), types=[0] * width) for text in group]
    return found


def measure(
    encoder: Encoder, texts: Sequence[Tokens], *, batch: int, rounds: int, threads: int
) -> RaggedResult:
    """Both ways in turn, after a warm-up of each."""
    ways = (list(texts), padded(texts, batch))
    tokens, computed = (sum(map(len, way)) for way in ways)
    for way in ways:
        _seconds(encoder, way, batch)
    times = [[_seconds(encoder, way, batch) for way in ways] for _ in range(rounds)]
    packed, filled = (statistics.median(column) for column in zip(*times, strict=True))
    return RaggedResult(
        packed_tokens_per_s=round(tokens / packed, 1),
        padded_tokens_per_s=round(tokens / filled, 1),
        ratio=round(statistics.median(b / a for a, b in times), 3),
        tokens=tokens,
        padded_tokens=computed,
        batch=batch,
        threads=threads,
        rounds=rounds,
        isa=encoder.isa,
    )


def _seconds(encoder: Encoder, texts: Sequence[Tokens], batch: int) -> float:
    start = time.perf_counter()
    for _ in encoder.run("embed", texts, batch_size=batch):
        pass
    return time.perf_counter() - start


def main(
    artifact: Annotated[Path, typer.Option(help="An encoder's folder, as tvmq compile wrote it.")],
    texts: Annotated[int, typer.Option(min=1, help="Texts of a round.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Texts of a batch.")] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Print tokens per second of packed and of padded batches."""
    with closing(load(artifact, threads=threads)) as encoder:
        figures = encoder.manifest.architecture
        longest = min(LONGEST, int(figures["max_tokens"]))
        drawn = mixed_texts(texts, int(figures["vocab"]), longest=longest)
        result = measure(encoder, drawn, batch=batch, rounds=rounds, threads=threads)
    typer.echo(
        f"{result.tokens} tokens of {texts} texts, {result.padded_tokens} with padding; batches of {batch}, "
        f"{threads} threads, {result.isa}, medians of {rounds} rounds"
    )
    typer.echo(f"packed {result.packed_tokens_per_s:10,.0f} tokens per second")
    typer.echo(f"padded {result.padded_tokens_per_s:10,.0f} tokens per second")
    typer.echo(f"ratio  {result.ratio:10.2f}")
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
