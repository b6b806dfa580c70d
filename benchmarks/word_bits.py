# SPDX-License-Identifier: Apache-2.0
"""Figure 3 of Chung et al. 2020 for a model at hand: the embedding alone quantized, bits by word.

    python -m benchmarks.word_bits

Uniform widths, the clusters of Algorithm 1 (b = 4, r = 8, 4, 2, 1) and, at the same mean widths, the optimum
of sum_v p_v err_v(q_v); every other matrix stays FP32, nothing is retrained. BLEU with its paired interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from relay_passes.bit_plan import FLOAT_BITS, SCHEMA, BitPlan, BlockBits, WordBits, encode_plan, plan_hash
from tvmq.bit_mix import DAMAGE_POWER, RELATIVE_ERROR
from tvmq.checkpoint import Checkpoint
from tvmq.families import TensorInfo, get_family
from tvmq.options import PlanOptions, SearchOptions
from tvmq.store import atomic_write
from tvmq.word_bits import Clusters, algorithm1_clusters, optimal_clusters, word_curve

from .quality import DEFAULT_MODEL, Table, Workload
from .quality_settings import FP32, Setting
from .quality_table import markdown

WORK = Path("build/word_bits")
WIDTHS = (1, 2, 3, 4)
RATIOS = (8, 4, 2, 1)
UNIFORM = (1, 2, 3)
PRICES = np.geomspace(1e-12, 1e-2, 4000)
"""Damage per byte, from almost free to dear: fine enough to meet every mean width."""


def mean_bits(clusters: Clusters) -> float:
    """Mean width over all words."""
    return sum(rows * bits for rows, bits in clusters) / sum(rows for rows, _ in clusters)


def algorithm1(words: int) -> dict[float, Clusters]:
    """Clusters by r: b = 4 down to 1 bit, each r times as large as the one before."""
    _, *cuts = algorithm1_clusters(words, [4], RATIOS)
    return dict(zip(RATIOS, cuts, strict=True))


def optimum(counts: NDArray[np.integer], columns: int, target: float, quantizer: str) -> Clusters:
    """The cut of least expected damage whose mean width comes closest to ``target`` from below.

    Damage of a width: its relative error on Gauss-like rows to the power that whole models show
    (``tvmq.bit_mix``), the same for all words but for how much a word matters.
    """
    error = np.array(RELATIVE_ERROR[quantizer][: len(WIDTHS)]) ** DAMAGE_POWER
    curve = word_curve([len(counts)], WIDTHS, error[:, None], counts)
    cuts = optimal_clusters(curve, [columns * bits // 8 for bits in WIDTHS], PRICES)
    return max((cut for cut in cuts if mean_bits(cut) <= target + 1e-9), key=mean_bits)


def plan_for(infos: Sequence[TensorInfo], clusters: Clusters, quantizer: str, source: str) -> BitPlan:
    """Words by ``clusters`` (one FP32 scale per row and plane, as in the paper), everything else FP32."""
    words = tuple(
        WordBits(
            tensor=info.name,
            block=info.block,
            clusters=clusters,
            quantizer=quantizer,
            scale_dtype="float32",
        )
        for info in infos
        if info.is_embedding
    )
    blocks = tuple(
        BlockBits(tensor=info.name, block=info.block, bits=FLOAT_BITS)
        for info in infos
        if not info.is_embedding
    )
    return BitPlan(schema=SCHEMA, blocks=blocks, words=words, source=source)


def settings(model: Path, quantizer: str, work: Path) -> list[Setting]:
    """Every row of the table; their plans are written below ``work``."""
    checkpoint = Checkpoint.open(model)
    family = get_family(checkpoint.config)
    infos = family.tensors(family.read_config(checkpoint.config))
    counts = checkpoint.frequencies()
    if quantizer not in RELATIVE_ERROR:
        raise typer.BadParameter(f"unknown codes {quantizer!r}; known: {', '.join(RELATIVE_ERROR)}")
    if counts is None:
        raise typer.BadParameter(f"{model} has no token_freq.tsv")
    words, columns = next(info.shape for info in infos if info.is_embedding)
    rows: dict[str, Clusters] = {f"uniform {bits}": ((words, bits),) for bits in UNIFORM}
    for ratio, clusters in algorithm1(words).items():
        rows[f"Algorithm 1, r = {ratio}, {mean_bits(clusters):.2f}"] = clusters
    for target in (*(mean_bits(clusters) for clusters in algorithm1(words).values()), 2.0):
        best = optimum(counts, columns, target, quantizer)
        rows[f"optimum, {mean_bits(best):.2f}"] = best
    found = []
    for number, (name, clusters) in enumerate(rows.items()):
        path, plan = work / f"{quantizer}-{number}.json", plan_for(infos, clusters, quantizer, name)
        atomic_write(path, encode_plan(plan))
        options = PlanOptions(plan=path)
        found.append(Setting(name=name, codes=quantizer, plan=options, sha256=plan_hash(plan)))
    return found


def main(
    model: Annotated[Path, typer.Option(help="Marian folder with token_freq.tsv.")] = DEFAULT_MODEL,
    data: Annotated[Path | None, typer.Option(help="Source TAB reference [default: the sample].")] = None,
    codes: Annotated[str, typer.Option(help="alternating or greedy (the paper's).")] = "alternating",
    threads: Annotated[int, typer.Option(min=1, help="Threads while translating.")] = 2,
    beam: Annotated[int, typer.Option(min=1, help="Beam size.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first sentences.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for what is under test.")] = WORK,
) -> None:
    """Print BLEU by mean bits per word as a Markdown table; finished rows are kept in --work."""
    from rich.console import Console

    console = Console(stderr=True)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "word_bits.json"
    workload = Workload(
        model=model,
        data=data or model / "sample" / "test.tsv",
        work=work,
        baseline=path.with_suffix(".fp32.txt"),
        search=SearchOptions(beam=beam, threads=threads),
        limit=limit,
    )
    table = Table(path, workload)
    rows: list[dict[str, Any]] = []
    for setting in [FP32, *settings(model, codes, work)]:
        row = table.get(setting)
        if row is None:
            with console.status(setting.name):
                row = workload.measure(setting)
            table.add(row)
        rows.append(row)
    typer.echo(markdown(rows, beam))


if __name__ == "__main__":
    typer.run(main)
