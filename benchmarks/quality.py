# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF of a model at every bit width, with greedy and with alternating codes, no retraining.

    python -m benchmarks.quality --json quality.json

Each setting is compiled, the whole TSV is translated with beam 4, and the Markdown table grows row by
row; the JSON file is written after every row and rows already in it are not measured again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmq.options import CompileOptions, PlanOptions, SearchOptions

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
    """One row of the table."""

    name: str
    codes: str
    plan: PlanOptions


def settings(codes: Sequence[str], presets: Sequence[str]) -> list[Setting]:
    """FP32, then every preset with every kind of codes; scales per row are FP32, as in the paper."""
    result = [Setting(name="fp32", codes="", plan=PlanOptions(preset="fp32"))]
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


def measure(
    setting: Setting, *, model: Path, data: Path, work: Path, threads: int, beam: int, limit: int | None
) -> dict[str, Any]:
    """Compile, translate and score one setting; the artifact is removed afterwards."""
    import tvmq

    artifact = work / "candidate.tvmq"
    start = time.perf_counter()
    tvmq.compile(model, artifact, CompileOptions(plan=setting.plan, force=True))
    compiled = time.perf_counter() - start
    facts = tvmq.inspect(artifact)
    found = tvmq.evaluate(artifact, data, SearchOptions(beam=beam, threads=threads), limit=limit)
    shutil.rmtree(artifact)
    return {
        "setting": setting.name,
        "codes": setting.codes,
        "bleu": round(found.value, 2),
        "chrf": round(found.chrf, 2),
        "signature": found.signature,
        "sentences": found.n,
        "beam": beam,
        "size_bytes": facts["size_bytes"],
        "bits_per_weight": round(facts["bits_per_weight"], 2),
        "compile_s": round(compiled, 1),
        "translate_s": round(found.seconds, 1),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table with sacrebleu's signature below."""
    lines = [
        "| bits | codes | bits per weight | MB | BLEU | chrF |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [_line(row) for row in rows]
    if rows:
        lines += ["", f"Beam {rows[0]['beam']}, {rows[0]['sentences']} sentences; `{rows[0]['signature']}`"]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['setting']} | {row['codes']} | {row['bits_per_weight']:.2f} | "
        f"{row['size_bytes'] / MB:.1f} | {row['bleu']:.1f} | {row['chrf']:.1f} |"
    )


def _same(row: dict[str, Any], setting: Setting) -> bool:
    return row["setting"] == setting.name and row["codes"] == setting.codes


def main(
    model: Annotated[Path, typer.Option(help="Marian folder.")] = DEFAULT_MODEL,
    data: Annotated[
        Path | None, typer.Option(help="Source TAB reference; default: the model's sample.")
    ] = None,
    preset: Annotated[list[str] | None, typer.Option(help="Preset beside fp32; may repeat.")] = None,
    codes: Annotated[
        list[str] | None,
        typer.Option(help="greedy, alternating or grouped; may repeat. Default: all three."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads while translating.")] = 2,
    beam: Annotated[int, typer.Option(min=1, help="Beam size.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first sentences.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the artifact under test.")] = WORK,
    json_path: Annotated[Path, typer.Option("--json", help="Rows so far; finished ones are kept.")] = (
        WORK / "quality.json"
    ),
) -> None:
    """Print quality and size of a model at several bit widths as a Markdown table."""
    if unknown := [kind for kind in codes or [] if kind not in CODES]:
        raise typer.BadParameter(f"unknown codes {unknown[0]!r}; known: {', '.join(CODES)}")
    from rich.console import Console

    console = Console(stderr=True)
    data = data or model / "sample" / "test.tsv"
    chosen = settings(codes or list(CODES), preset or [*UNIFORM, *MIXED])
    conditions = {"model": str(model), "data": str(data), "beam": beam, "limit": limit}
    known = _known_rows(json_path, conditions)
    work.mkdir(parents=True, exist_ok=True)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for setting in chosen:
        row = next((row for row in known if _same(row, setting)), None)
        if row is None:
            with console.status(f"{setting.name} {setting.codes}"):
                row = measure(
                    setting, model=model, data=data, work=work, threads=threads, beam=beam, limit=limit
                )
        rows.append(row)
        console.print(_line(row))
        kept = [row for row in known if not any(_same(row, other) for other in chosen)]
        text = json.dumps({**conditions, "results": [*rows, *kept]}, indent=2)
        json_path.write_text(text + "\n", encoding="utf-8")
    typer.echo(markdown(rows))


def _known_rows(path: Path, conditions: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    same = all(stored.get(key) == value for key, value in conditions.items())
    return stored["results"] if same else []


if __name__ == "__main__":
    typer.run(main)
