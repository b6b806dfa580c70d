# SPDX-License-Identifier: Apache-2.0
"""Measures ``block_scores``: every block alone at every width, the rest in FP32, BLEU of greedy search.

The translations run in PyTorch on dequantized weights, through ``joblib.Parallel`` like the sweep of
``sensitivity``, so that ``joblib.parallel_config`` points them at any backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from .block_scores import SCHEMA, BlockScore, BlockScores
from .calibration import Calibration
from .checkpoint import Checkpoint
from .errors import UsageError
from .evaluation import EvalResult, read_pairs, score
from .families import TensorInfo, translation_family
from .installation import require
from .options import Progress, no_progress
from .parallel import run_jobs
from .quantization import moments_for, quantize_matrix
from .quantizers import NEED_MOMENTS
from .sensitivity_table import Coding
from .store import sha256_file

if TYPE_CHECKING:
    from .block_translation import BlockTranslator


def measure_block_bleu(
    model: Path,
    data: Path,
    *,
    coding: Coding = Coding(),
    calibration: Path | None = None,
    widths: Sequence[int],
    limit: int | None = None,
    jobs: int | None = 1,
    progress: Progress = no_progress,
) -> BlockScores:
    """Translate with every block of a model folder at every width.

    Args:
        model: the folder.
        data: ``source TAB reference`` lines.
        coding: how to quantize.
        calibration: a file of ``Calibration.write``, for quantizers that go by the inputs' second moments.
        widths: bits to measure.
        limit: only the first lines.
        jobs: see ``parallel.run_jobs``; each runs on one thread.
        progress: called with translated sets done of all.

    Raises:
        InputError: the model or the data cannot be used.
        UsageError: the codes need a calibration.
        MissingToolError: joblib, torch or sacrebleu is not installed.
    """
    for package, extra in (("joblib", "plan"), ("torch", "compile"), ("sacrebleu", "eval")):
        require(package, extra)
    from joblib import delayed

    if calibration is None and coding.quantizer in NEED_MOMENTS:
        raise UsageError(f"the quantizer {coding.quantizer} needs a calibration: give --calibration FILE")
    checkpoint = Checkpoint.open(model)
    family = translation_family(checkpoint.config, "BLEU by block")
    tensors = family.tensors(family.read_config(checkpoint.config))
    sources, references = read_pairs(data, limit=limit)
    sweep = Sweep(model=model, sources=tuple(sources), coding=coding, calibration=calibration)
    groups = block_groups(tensors)
    wanted = sorted(set(widths))
    cases = [(), *((name, bits) for name in groups for bits in wanted)]
    calls = (
        delayed(_translate)(sweep, groups[case[0]] if case else (), case[1] if case else 0) for case in cases
    )
    lines: list[list[str]] = []
    progress("BLEU by block", 0, len(cases))
    for found in run_jobs(calls, jobs):
        lines.append(cast("list[str]", found))
        progress("BLEU by block", len(lines), len(cases))
    plain, *others = lines
    scores = dict(zip(cases[1:], (score(found, references, baseline=plain) for found in others), strict=True))
    whole = score(plain, references)
    return BlockScores(
        schema=SCHEMA,
        model_sha256=checkpoint.sha256,
        data_sha256=sha256_file(data),
        sentences=len(sources),
        signature=whole.signature,
        coding=coding,
        bleu=whole.value,
        rows=tuple(_row(name, wanted, [scores[name, bits] for bits in wanted]) for name in groups),
    )


def block_groups(tensors: Iterable[TensorInfo]) -> dict[str, tuple[TensorInfo, ...]]:
    """Blocks in the order of the model; before the first of several that share a beginning, all of those.

    For an encoder-decoder: Emb, Enc, Enc_ee, Enc_ffn, Dec, Dec_dd, Dec_ed, Dec_ffn, as in the paper.
    """
    blocks: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        blocks.setdefault(info.block, []).append(info)
    found: dict[str, tuple[TensorInfo, ...]] = {}
    for block, infos in blocks.items():
        stem = block.partition("_")[0]
        family = [other for other in blocks if other.partition("_")[0] == stem]
        if len(family) > 1:
            found.setdefault(stem, tuple(info for other in family for info in blocks[other]))
        found[block] = tuple(infos)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What every job of one measurement shares; travels to the processes."""

    model: Path
    sources: tuple[str, ...]
    coding: Coding
    calibration: Path | None


def _row(name: str, widths: Sequence[int], found: Sequence[EvalResult]) -> BlockScore:
    intervals = [result.comparison.interval for result in found if result.comparison is not None]
    return BlockScore(
        block=name,
        bits=tuple(widths),
        bleu=tuple(result.value for result in found),
        low=tuple(low for low, _ in intervals),
        high=tuple(high for _, high in intervals),
    )


def _translate(sweep: Sweep, block: Sequence[TensorInfo], bits: int) -> list[str]:
    translator = _translator(sweep)
    held = None if sweep.calibration is None else Calibration.read(sweep.calibration)
    weights: dict[str, NDArray[np.float32]] = {}
    for info in block:
        entry = sweep.coding.entry(info, bits)
        moments = moments_for(entry, held)
        weights[info.name] = quantize_matrix(translator.weight(info.name), entry, moments).dequantize()
    return translator.translate(sweep.sources, weights)


_open: dict[Path, BlockTranslator] = {}
"""The one model that this process has open."""


def _translator(sweep: Sweep) -> BlockTranslator:
    if sweep.model not in _open:
        from .block_translation import BlockTranslator

        _open.clear()
        _open[sweep.model] = BlockTranslator.open(sweep.model)
    return _open[sweep.model]
