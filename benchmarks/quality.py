# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF of a model at every bit width, with every kind of codes, against its FP32 self.

    python -m benchmarks.quality --json quality.json
    python -m benchmarks.quality --checkpoint build/retrained --checkpoint build/distilled

Each setting is compiled, the whole TSV is translated with beam 4, and the Markdown table grows row by
row; the JSON file is written after every row and rows already in it are not measured again. FP32 is
translated once: its translations are the baseline of every other row's paired bootstrap.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmq.options import CompileOptions, PlanOptions, SearchOptions
from tvmq.store import atomic_write

DEFAULT_MODEL = Path("models/nmt-en-de")
WORK = Path("build/quality")
GROUP = 128
MB = 1e6
MIXED = ("chung2020-2.5-1.8-3.7", "chung2020-1.3-1.8-3.7", "chung2020-1.1-1.8-3.7")
UNIFORM = ("4-bit", "3-bit", "2-bit")

CODES: dict[str, str] = {
    "greedy": "greedy, a scale per row",
    "alternating": "alternating, a scale per row",
    "grouped": f"alternating, a scale per {GROUP} columns",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table.

    Attributes:
        name: the bits.
        codes: how they were found.
        plan: of ``model``; empty for a checkpoint that brings its own.
        checkpoint: a folder to compile as it is, instead of the model.
        sha256: of that folder's weights, or of a plan file: rows of other ones are measured again.
    """

    name: str
    codes: str
    plan: PlanOptions = field(default_factory=PlanOptions)
    checkpoint: Path | None = None
    sha256: str = ""


FP32 = Setting(name="fp32", codes="", plan=PlanOptions(preset="fp32"))


def settings(codes: Sequence[str], presets: Sequence[str]) -> list[Setting]:
    """Every preset with every kind of codes; scales per row are FP32, as in the paper."""
    result = []
    for preset in presets:
        for kind in codes:
            grouped = kind == "grouped"
            plan = PlanOptions(
                preset=preset,
                quantizer="greedy" if kind == "greedy" else "alternating",
                group_size=GROUP if grouped else 0,
                scale_dtype="float16" if grouped else "float32",
            )
            result.append(Setting(name=preset, codes=CODES[kind], plan=plan))
    return result


def checkpoints(folders: Sequence[Path]) -> list[Setting]:
    """Coded checkpoints as they are; each is named by its folder."""
    from tvmq.checkpoint import Checkpoint

    return [
        Setting(name=folder.name, codes="as stored", checkpoint=folder, sha256=Checkpoint.open(folder).sha256)
        for folder in folders
    ]


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

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Compile, translate and score one setting; the artifact is removed afterwards."""
        import tvmq

        artifact = self.work / "candidate.tvmq"
        start = time.perf_counter()
        options = CompileOptions(plan=setting.plan, force=True)
        tvmq.compile(setting.checkpoint or self.model, artifact, options)
        compiled = time.perf_counter() - start
        facts = tvmq.inspect(artifact)
        place = {"output": self.baseline} if setting == FP32 else {"baseline": self.baseline}
        found = tvmq.evaluate(artifact, self.data, self.search, limit=self.limit, **place)
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
        self._path = path
        self._conditions = workload.conditions()
        self._rows: list[dict[str, Any]] = []
        if path.exists() and workload.baseline.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if all(stored.get(key) == value for key, value in self._conditions.items()):
                self._rows = stored["results"]

    def get(self, setting: Setting) -> dict[str, Any] | None:
        """The row of ``setting``, if it was measured."""
        return next((row for row in self._rows if _same(row, setting)), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a new row."""
        self._rows.append(row)
        document = {**self._conditions, "results": self._rows}
        atomic_write(self._path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def markdown(rows: Sequence[dict[str, Any]], beam: int) -> str:
    """The rows as a Markdown table with sacrebleu's signature below."""
    lines = [
        "| bits | codes | bits per weight | MB | BLEU | to FP32 (95 %) | p | chrF | to FP32 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(row) for row in rows]
    if rows:
        lines += ["", f"Beam {beam}, {rows[0]['n']} sentences; `{rows[0]['signature']}`"]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    cells = [
        row["setting"],
        row["codes"],
        f"{row['bits_per_weight']:.2f}",
        f"{row['size_bytes'] / MB:.1f}",
        f"{row['value']:.2f}",
        _difference(row),
        _p_value(row),
        f"{row['chrf']:.1f}",
        f"{row['chrf_difference']:+.1f}" if "chrf_difference" in row else "",
    ]
    return f"| {' | '.join(cells)} |"


def _difference(row: dict[str, Any]) -> str:
    if "difference" not in row:
        return ""
    low, high = row["interval"]
    return f"{row['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


def _p_value(row: dict[str, Any]) -> str:
    if "p_value" not in row:
        return ""
    return "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"


def _same(row: dict[str, Any], setting: Setting) -> bool:
    return (row["setting"], row["codes"], row["sha256"]) == (setting.name, setting.codes, setting.sha256)


def main(
    model: Annotated[Path, typer.Option(help="Marian folder.")] = DEFAULT_MODEL,
    data: Annotated[
        Path | None, typer.Option(help="Source TAB reference; default: the model's sample.")
    ] = None,
    preset: Annotated[list[str] | None, typer.Option(help="Preset beside fp32; may repeat.")] = None,
    codes: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(CODES)}; may repeat. Default: all."),
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
    chosen = [FP32]
    if presets:
        chosen += settings(codes or list(CODES), preset or [*UNIFORM, *MIXED])
    chosen += checkpoints(checkpoint or [])
    work.mkdir(parents=True, exist_ok=True)
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
        console.print(_line(row), markup=False, soft_wrap=True)
    typer.echo(markdown(rows, beam))


if __name__ == "__main__":
    typer.run(main)
