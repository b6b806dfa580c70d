# SPDX-License-Identifier: Apache-2.0
"""Size on disk, everything counted: an artifact's folder by part, against its checkpoint in FP32.

``python -m benchmarks.size --model build/nmt-base --artifact base.tvmq``. The checkpoint counts four bytes
for each number in its tensors and nothing else; the artifact counts files and folders as ``du -sb`` does.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmq.artifact import open_artifact
from tvmq.checkpoint import Checkpoint
from tvmq.tensor_file import TensorFile

MB = 1e6
PARTS = ("planes", "scales", "FP32 matrices", "vectors", "word order", "libraries", "tokenizer", "rest")
_KINDS = {
    "keys": "planes",
    "scales": "scales",
    "offsets": "scales",
    "packed": "FP32 matrices",
    "order": "word order",
    "rank": "word order",
}


def fp32_bytes(model: Path) -> int:
    """Bytes of all numbers of a checkpoint folder as FP32, whatever it stores them in."""
    checkpoint = Checkpoint.open(model)
    return sum(4 * math.prod(checkpoint.shape(name)) for name in checkpoint.names())


def artifact_bytes(path: Path) -> dict[str, int]:
    """Bytes of each of ``PARTS``; ``rest`` is headers, padding, manifest, plan, self-test and folders."""
    artifact = open_artifact(path)
    parts = dict.fromkeys(PARTS, 0)
    for name, entry in TensorFile.open(artifact.file(artifact.manifest.weights.file)).entries.items():
        if not name.startswith("__"):
            _, colon, kind = name.rpartition(":")
            parts[_KINDS[kind] if colon else "vectors"] += entry.end - entry.begin
    for name, info in artifact.manifest.files.items():
        folder = name.partition("/")[0]
        if folder in ("lib", "tokenizer"):
            parts["libraries" if folder == "lib" else folder] += info.size
    total = sum(place.lstat().st_size for place in (path, *path.rglob("*")))
    parts["rest"] = total - sum(parts.values())
    return parts


def report(model: Path, artifact: Path) -> dict[str, Any]:
    """``fp32_bytes artifact_bytes parts ratio``, the object that ``--json`` prints."""
    parts = artifact_bytes(artifact)
    whole, small = fp32_bytes(model), sum(parts.values())
    return {"fp32_bytes": whole, "artifact_bytes": small, "parts": parts, "ratio": round(whole / small, 3)}


def main(
    model: Annotated[Path, typer.Option(help="The checkpoint folder that was compiled.")],
    artifact: Annotated[Path, typer.Option(help="The compiled folder.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the size of ARTIFACT by part and how many times smaller it is than MODEL in FP32."""
    result = report(model, artifact)
    if json_output:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(artifact), title_justify="left")
    table.add_column("part")
    table.add_column("MB", justify="right")
    table.add_column("share", justify="right")
    table.add_row("FP32 checkpoint", f"{result['fp32_bytes'] / MB:.3f}", "", end_section=True)
    for name, size in ((name, size) for name, size in result["parts"].items() if size):
        table.add_row(name, f"{size / MB:.3f}", f"{size / result['artifact_bytes']:.1%}")
    table.add_section()
    table.add_row("artifact", f"{result['artifact_bytes'] / MB:.3f}", "100.0%", style="bold")
    table.add_row("times smaller", f"{result['ratio']:.2f}", "", style="bold")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
