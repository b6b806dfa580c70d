# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF of a model at every bit width, with every kind of codes, against its FP32 self.

    python -m benchmarks.quality --json quality.json
    python -m benchmarks.quality --checkpoint build/retrained --checkpoint build/distilled
    python -m benchmarks.quality --plan 3.0.json --quantizer hessian --calibration c.safetensors

Each setting is compiled, the whole TSV is translated with beam 4, and the Markdown table grows row by
row; the JSON file is written after every row and rows already in it are not measured again. FP32 is
translated once: its translations are the baseline of every other row's paired bootstrap. A second table
tests every preset against the largest plan that is not larger, pair by pair.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from targets import detect_host
from tvmq.errors import TvmqError
from tvmq.options import CompileOptions, SearchOptions
from tvmq.store import atomic_write

from .quality_settings import CODES, FP32, FREE, Setting, checkpoints, plans, settings
from .quality_table import head_to_head, line, markdown

DEFAULT_MODEL = Path("models/nmt-en-de")
WORK = Path("build/quality")
MIXED = ("chung2020-2.5-1.8-3.7", "chung2020-1.3-1.8-3.7", "chung2020-1.1-1.8-3.7")
UNIFORM = ("4-bit", "3-bit", "2-bit")

@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is the same for every row.

    Attributes:
        model: Marian folder.
        data: source TAB reference.
        work: folder for the artifact under test.
        baseline: file of the FP32 model's translations, one a line.
        search: generation options.
        limit: only the first sentences.
    """

    model: Path
    data: Path
    work: Path
    baseline: Path
    search: SearchOptions
    limit: int | None

    def conditions(self) -> dict[str, Any]:
        """What a stored row must share to be used again."""
        return {
            "model": str(self.model),
            "data": str(self.data),
            "beam": self.search.beam,
            "limit": self.limit,
        }

    def lines(self, setting: Setting) -> Path:
        """Where the translations of a row are kept, one a line."""
        if setting == FP32:
            return self.baseline
        name = f"{setting.name} {setting.codes} {setting.sha256}"
        return self.baseline.with_suffix("") / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.txt"

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Compile, translate and score one setting; the artifact is removed afterwards."""
        import tvmq

        artifact = self.work / "candidate.tvmq"
        start = time.perf_counter()
        level = detect_host()[0]  # quality does not depend on it
        options = CompileOptions(
            plan=setting.plan, calibration=setting.calibration, isa_levels=(level,), force=True
        )
        tvmq.compile(setting.checkpoint or self.model, artifact, options)
        compiled = time.perf_counter() - start
        facts = tvmq.inspect(artifact)
        baseline = None if setting == FP32 else self.baseline
        output = self.lines(setting)
        output.parent.mkdir(parents=True, exist_ok=True)
        found = tvmq.evaluate(
            artifact, self.data, self.search, limit=self.limit, baseline=baseline, output=output
        )
        shutil.rmtree(artifact)
        return {
            "setting": setting.name,
            "codes": setting.codes,
            "sha256": setting.sha256,
            "size_bytes": facts["size_bytes"],
            "bits_per_weight": round(facts["bits_per_weight"], 2),
            "compile_s": round(compiled, 1),
            "translate_s": round(found.seconds, 1),
            **found.to_json(),
        }


class Table:
    """The rows so far, in a JSON file that survives an interrupt."""

    def __init__(self, path: Path, workload: Workload) -> None:
        self._path, self._workload = path, workload
        self._conditions = workload.conditions()
        self._rows: list[dict[str, Any]] = []
        if path.exists() and workload.baseline.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if all(stored.get(key) == value for key, value in self._conditions.items()):
                self._rows = stored["results"]

    def get(self, setting: Setting) -> dict[str, Any] | None:
        """The row of ``setting``, if it was measured and its translations are still there."""
        if not self._workload.lines(setting).exists():
            return None
        return next((row for row in self._rows if _same(row, setting)), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a new row."""
        self._rows = [*(old for old in self._rows if _key(old) != _key(row)), row]
        document = {**self._conditions, "results": self._rows}
        atomic_write(self._path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _same(row: dict[str, Any], setting: Setting) -> bool:
    return _key(row) == (setting.name, setting.codes, setting.sha256)


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["setting"], row["codes"], row["sha256"]


def main(
    model: Annotated[Path, typer.Option(help="Marian folder.")] = DEFAULT_MODEL,
    data: Annotated[
        Path | None, typer.Option(help="Source TAB reference; default: the model's sample.")
    ] = None,
    preset: Annotated[list[str] | None, typer.Option(help="Preset beside fp32; may repeat.")] = None,
    codes: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Of presets: {', '.join(CODES)}; may repeat [default: all that --calibration allows]."
        ),
    ] = None,
    plan: Annotated[list[Path] | None, typer.Option(help="plan.json; may repeat.")] = None,
    quantizer: Annotated[
        list[str] | None,
        typer.Option(help="Codes of every plan; may repeat [default: what the plan says]."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="File of tvmq plan, for hessian and weighted codes.")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Coded checkpoint to compile as it is; may repeat.")
    ] = None,
    presets: Annotated[bool, typer.Option(help="Rows of presets; --no-presets: checkpoints only.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads while translating.")] = 2,
    beam: Annotated[int, typer.Option(min=1, help="Beam size.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first sentences.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for what is under test.")] = WORK,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Rows so far; finished ones are kept [default: in --work].")
    ] = None,
) -> None:
    """Print quality and size of a model at several bit widths as a Markdown table."""
    if unknown := [kind for kind in codes or [] if kind not in CODES]:
        raise typer.BadParameter(f"unknown codes {unknown[0]!r}; known: {', '.join(CODES)}")
    if calibration is None and (needy := [kind for kind in codes or [] if kind not in FREE]):
        raise typer.BadParameter(f"{needy[0]} codes need --calibration FILE")
    from rich.console import Console

    console = Console(stderr=True)
    json_path = json_path or work / "quality.json"
    workload = Workload(
        model=model,
        data=data or model / "sample" / "test.tsv",
        work=work,
        baseline=json_path.with_suffix(".fp32.txt"),
        search=SearchOptions(beam=beam, threads=threads),
        limit=limit,
    )
    work.mkdir(parents=True, exist_ok=True)
    chosen = [FP32]
    if presets:
        usual = list(CODES if calibration else FREE)
        chosen += settings(codes or usual, preset or [*UNIFORM, *MIXED], calibration)
    try:
        chosen += plans(plan or [], quantizer or [], calibration, work)
    except (ValueError, TvmqError) as error:
        raise typer.BadParameter(str(error)) from None
    chosen += checkpoints(checkpoint or [])
    json_path.parent.mkdir(parents=True, exist_ok=True)
    table = Table(json_path, workload)
    rows: list[dict[str, Any]] = []
    for setting in chosen:
        row = table.get(setting)
        if row is None:
            with console.status(f"{setting.name} {setting.codes}"):
                row = workload.measure(setting)
            table.add(row)
        rows.append(row)
        console.print(line(row), markup=False, soft_wrap=True)
    typer.echo(markdown(rows, beam))
    lines = [workload.lines(setting) for setting in chosen]
    pairs = head_to_head(rows, [setting.kind for setting in chosen], lines, workload.data, limit)
    if pairs:
        typer.echo(f"\n{pairs}")


if __name__ == "__main__":
    typer.run(main)
