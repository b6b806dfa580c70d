# SPDX-License-Identifier: Apache-2.0
"""FP32 artifact against transformers' ``generate``, sentence by sentence, greedy and with beams.

    python -m benchmarks.equality --sentences 500

Lines that differ are shown with the score that transformers' own model gives to both: equal ones are ties.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODEL = Path("models/nmt-en-de")
BATCH = 16
TIE = 1e-4
"""Two hypotheses whose normalised scores are closer than this are a tie."""


class Reference:
    """transformers' own model and tokenizer, in FP32."""

    def __init__(self, model: Path) -> None:
        import torch
        from transformers import MarianMTModel, MarianTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._torch = torch
        self._tokenizer: Any = MarianTokenizer.from_pretrained(model)
        self._model: Any = MarianMTModel.from_pretrained(model, dtype=torch.float32).eval()

    def generate(self, sources: Sequence[str], beams: int) -> list[str]:
        """What ``generate`` answers with the model's own generation settings."""
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        outputs = [""] * len(sources)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            inputs = self._tokenizer([sources[i] for i in chosen], return_tensors="pt", padding=True)
            with self._torch.inference_mode():
                found = self._model.generate(**inputs, num_beams=beams)
            texts = self._tokenizer.batch_decode(found, skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                outputs[i] = text
        return outputs

    def score(self, source: str, target: str) -> float:
        """Mean log-probability of a target text, end token included."""
        inputs = self._tokenizer([source], return_tensors="pt")
        labels = self._tokenizer(text_target=[target], return_tensors="pt").input_ids
        with self._torch.inference_mode():
            return -float(self._model(**inputs, labels=labels).loss)


def translate(model: Path, sources: Sequence[str], beams: Sequence[int]) -> list[list[str]]:
    """The FP32 artifact's answers, a list for each width of the beam."""
    import tvmq
    from tvmq.options import CompileOptions, PlanOptions

    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "fp32.tvmq"
        tvmq.compile(model, artifact, CompileOptions(plan=PlanOptions(preset="fp32")))
        with tvmq.load(artifact) as translator:
            found = [translator.translate(sources, beams=width) for width in beams]
    return [[best[0].text for best in lines] for lines in found]


def main(
    model: Annotated[Path, typer.Option(help="Marian folder.")] = DEFAULT_MODEL,
    sentences: Annotated[int, typer.Option(min=1, help="How many, from the test and dev samples.")] = 500,
    beam: Annotated[list[int] | None, typer.Option(help="Width of the beam; may repeat.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of transformers.")] = 2,
) -> None:
    """Print how many lines are identical and explain the others."""
    import torch

    from tvmq.evaluation import read_pairs

    torch.set_num_threads(threads)
    sample = model / "sample"
    sources = [text for name in ("test.tsv", "dev.tsv") for text in read_pairs(sample / name)[0]][:sentences]
    widths = beam or [1, 4]
    reference = Reference(model)
    for width, ours in zip(widths, translate(model, sources, widths), strict=True):
        theirs = reference.generate(sources, width)
        differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        same = len(sources) - len(differing)
        typer.echo(
            f"beam {width}: {same} of {len(sources)} lines identical ({100 * same / len(sources):.1f} %)"
        )
        for i in differing:
            mine, other = (reference.score(sources[i], text) for text in (ours[i], theirs[i]))
            verdict = "a tie" if abs(mine - other) < TIE else "not a tie"
            typer.echo(
                f"  line {i + 1}, {verdict} ({mine:.5f} and {other:.5f}):\n    {ours[i]}\n    {theirs[i]}"
            )


if __name__ == "__main__":
    typer.run(main)
