# SPDX-License-Identifier: Apache-2.0
"""Does a compiled model say what its quantized weights say? Against PyTorch on the dequantized weights.

    python -m benchmarks.fidelity --preset default --sentences 300

Both translate the same sentences with greedy search: BLEU, the paired difference and the share of identical
lines. Then both read the compiled model's own translations word by word: cosine and relative error of the
logits of every step. Libraries that ship hold no logits, so the benchmark compiles one that does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan
from tvmq.options import CompileOptions, PlanOptions, Tables

DEFAULT_MODEL = Path("models/nmt-en-de")
BATCH = 16

Ids = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What was compared.

    Attributes:
        sentences: translated by both.
        compiled_bleu, pytorch_bleu: greedy search.
        difference: of BLEU, compiled minus PyTorch.
        interval: of the difference, 95 %.
        identical: share of identical lines.
        steps: decoder steps whose logits were compared.
        cosine_min, cosine_mean: of the logits, over steps.
        error_max, error_mean: norm of the difference of the logits over their norm.
        signature: sacrebleu's.
    """

    sentences: int
    compiled_bleu: float
    pytorch_bleu: float
    difference: float
    interval: tuple[float, float]
    identical: float
    steps: int
    cosine_min: float
    cosine_mean: float
    error_max: float
    error_mean: float
    signature: str


@contextmanager
def with_logits() -> Iterator[None]:
    """Makes ``tvmq.compile`` build ``decode``, which gives logits, besides what ships."""
    import tvm

    from tvmq import graphs

    original = graphs.translation_module

    def module(programs: Any, banned: int, beams: int) -> Any:
        shipped = original(programs, banned, beams)
        shipped.update(tvm.IRModule({"decode": graphs.logits_module(programs)["decode"]}))
        return shipped

    with patch.object(graphs, "translation_module", module):
        yield


def pytorch(model: Path, plan: BitPlan) -> Any:
    """The executor of the model in which every planned tensor is what its planes stand for."""
    from tvmq.checkpoint import Checkpoint
    from tvmq.families import get_family
    from tvmq.families.executor import TorchExecutor
    from tvmq.quantization import quantize_model

    checkpoint = Checkpoint.open(model)
    quantized = quantize_model(checkpoint, plan, checkpoint.frequencies())
    weights = {name: planes.dequantize() for name, planes in quantized.items()}
    return TorchExecutor(get_family(checkpoint.config).load(checkpoint), weights=weights)


def forced_agreement(
    sessions: tuple[Any, Any], fed: NDArray[np.int32], real: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``agreement`` of two sessions' logits for tokens [m, T] fed step by step, at the ``real`` places."""
    rows = np.arange(len(fed), dtype=np.int32)
    parts = []
    for step in range(fed.shape[1]):
        tokens = np.ascontiguousarray(fed[:, step])
        found, expected = (_array(session.logits(tokens, rows, rows)) for session in sessions)
        parts.append(agreement(found, expected)[:, real[:, step]])
    return np.concatenate(parts, 1)


def _array(logits: Any) -> NDArray[np.float64]:
    """A copy: the compiled model's own array is overwritten by its next step."""
    return (logits if isinstance(logits, np.ndarray) else logits.numpy()).astype(np.float64)


def agreement(found: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine and relative error of every row: float64[2, m]."""
    norms = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    cosine = (found * expected).sum(1) / (norms[0] * norms[1])
    return np.stack([cosine, np.linalg.norm(found - expected, axis=1) / norms[1]])


def compare(
    model: Path, plan: BitPlan, artifact: Path, pairs: tuple[list[str], list[str]], threads: int
) -> Fidelity:
    """Translate and compare; ``artifact`` was compiled ``with_logits`` from ``plan``."""
    from tvmq.api import load_translator
    from tvmq.evaluation import score
    from tvmq.families.executor import greedy_translations
    from tvmq.loading import open_checked
    from tvmq.translation import TranslationModel

    texts, references = pairs
    with load_translator(artifact, threads=threads) as translator:
        sources = [translator.tokenizer.encode(text) for text in texts]
        ours = [best[0].tokens for best in translator.translate_ids(sources, beams=1)]
        decode, generation = translator.tokenizer.decode, dict(translator.manifest.generation)
    executor = pytorch(model, plan)
    longest = int(generation["max_new_tokens"])
    theirs = greedy_translations(executor, sources, lambda _: longest)
    opened = open_checked(artifact, threads=threads, isa=None)
    compiled = TranslationModel(opened.artifact, opened.library)
    parts = []
    for start in range(0, len(sources), BATCH):
        batch, said = sources[start : start + BATCH], ours[start : start + BATCH]
        fed, real = _fed(said, compiled.start_id)
        steps = fed.shape[1]
        mine = compiled.begin(batch, rows=len(batch), steps=steps)
        parts.append(forced_agreement((mine, executor.begin(batch, max_new_tokens=steps)), fed, real))
    cosine, error = np.concatenate(parts, 1)
    lines = [[decode(ids) for ids in side] for side in (ours, theirs)]
    result = score(lines[0], references, baseline=lines[1])
    assert result.comparison is not None
    return Fidelity(
        sentences=len(texts),
        compiled_bleu=result.value,
        pytorch_bleu=result.comparison.baseline_value,
        difference=result.comparison.difference,
        interval=result.comparison.interval,
        identical=float(np.mean([a == b for a, b in zip(*lines, strict=True)])),
        steps=cosine.size,
        cosine_min=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        error_max=float(error.max()),
        error_mean=float(error.mean()),
        signature=result.signature,
    )


def _fed(outputs: Sequence[Ids], start_id: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Decoder inputs [m, T] for known outputs, and which of them are not padding."""
    longest = max(map(len, outputs))
    fed = np.full((len(outputs), longest), start_id, np.int32)
    real = np.zeros(fed.shape, np.bool_)
    for row, output in enumerate(outputs):
        fed[row, 1 : len(output)] = output[:-1]
        real[row, : len(output)] = True
    return fed, real


def main(
    model: Annotated[Path, typer.Option(help="Marian folder.")] = DEFAULT_MODEL,
    data: Annotated[
        Path | None, typer.Option(help="Source TAB reference; default: the model's sample.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Preset, or default.")] = "default",
    quantizer: Annotated[str | None, typer.Option(help="Instead of the preset's.")] = None,
    tables: Annotated[str, typer.Option(help="int8 or exact.")] = "int8",
    sentences: Annotated[int, typer.Option(min=1, help="How many, from the start of the data.")] = 300,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both sides.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print how far a compiled model is from PyTorch on its dequantized weights."""
    import torch

    import tvmq
    from tvmq.evaluation import read_pairs

    if tables not in ("int8", "exact"):
        raise typer.BadParameter(f"--tables is {tables!r}, expected int8 or exact")
    kind: Tables = tables
    torch.set_num_threads(threads)
    options = PlanOptions(preset=None if preset == "default" else preset, quantizer=quantizer)
    pairs = read_pairs(data or model / "sample" / "test.tsv", limit=sentences)
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "model.tvmq"
        with with_logits():
            tvmq.compile(model, artifact, CompileOptions(plan=options, tables=kind))
        found = compare(model, tvmq.plan(model, options), artifact, pairs, threads)
    typer.echo(json.dumps(asdict(found)) if json_output else text(found))


def text(found: Fidelity) -> str:
    """The result for people."""
    low, high = found.interval
    return "\n".join(
        (
            f"compiled           {found.compiled_bleu:.2f} BLEU, greedy, {found.sentences} sentences",
            f"PyTorch            {found.pytorch_bleu:.2f} BLEU, on the dequantized weights",
            f"difference         {found.difference:+.2f} (95 %: {low:+.2f} to {high:+.2f})",
            f"identical lines    {100 * found.identical:.1f} %",
            f"cosine of logits   {found.cosine_min:.6f} at least, mean {found.cosine_mean:.6f}, "
            f"{found.steps} steps",
            f"relative error     {found.error_max:.2e} at most, mean {found.error_mean:.2e}",
            f"signature          {found.signature}",
        )
    )


if __name__ == "__main__":
    typer.run(main)
