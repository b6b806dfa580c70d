# SPDX-License-Identifier: Apache-2.0
"""The native runtime's tokens beside those of TVM's Relax VM, on every ISA level that runs or is emulated.

``python -m benchmarks.native_proof --artifact en-de.tvmq --artifact en-de-arm64.tvmq --json``: the example
program translates real sentences, greedy and by beam search, on one thread and on two, at every level of
every artifact; arm64 levels run under qemu on CPU models without and with their instructions. Needs a C
compiler for each architecture. The VM runs the first artifact that this machine can run. Emulation is slow
(a core takes 10 minutes for 200 sentences by greedy search): ``--minutes`` ends a run early, and its finished
sentences count; ``--skip`` goes on after them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.native_build import example_program
from targets import detect_host, get_target
from targets.spec import TargetSpec
from targets.toolchain import find_emulator
from tvmq.artifact import open_artifact
from tvmq.evaluation import read_pairs
from tvmq.loading import EXECUTOR
from tvmq.runtime import load

SAMPLE = Path(__file__).resolve().parents[1] / "models" / "nmt-en-de" / "sample" / "test.tsv"
Ids = list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One level, one kind of search.

    Attributes:
        level: the ISA level.
        cpu: the emulated CPU model, or ``this``.
        beams: 1 is greedy search.
        threads: of the kernels.
        sentences: how many were translated before the time was up.
        equal: how many of them gave the VM's tokens, one for one.
        tokens: of their translations.
        first_difference: number of the first sentence that differs, or None.
        seconds: wall time; under emulation it says nothing about speed.
    """

    level: str
    cpu: str
    beams: int
    threads: int
    sentences: int
    equal: int
    tokens: int
    first_difference: int | None
    seconds: float


def expected(artifact: Path, sources: Sequence[Ids], beams: int) -> list[Ids]:
    """The VM's translations."""
    os.environ[EXECUTOR] = "vm"
    with closing(load(artifact)) as translator:
        found = translator.translate_ids(sources, beams=beams, batch_size=1)
    return [list(best[0].tokens) for best in found]


def places() -> Iterator[tuple[TargetSpec, tuple[str, ...], str]]:
    """(level, the command before the program, name of the CPU) of all that runs here."""
    for name in reversed(detect_host()):
        yield get_target(name), (), "this"
    for name in ("arm64_v8", "arm64_dotprod", "arm64_i8mm"):
        emulator = find_emulator(get_target(name))
        if name not in detect_host() and emulator is not None:
            yield get_target(name), emulator, emulator[-1]


def compare(command: Sequence[str | Path], level: str, text: str, wanted: list[Ids], seconds: float) -> dict:
    """Runs a program over the sentences for at most so long; the fields of ``Run`` that this tells."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as output:
        source.write(text.encode())
        source.seek(0)
        environment = os.environ | {"TVMQ_ISA": level}
        with subprocess.Popen(command, stdin=source, stdout=output, env=environment) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                code = 0
        if code:
            raise SystemExit(f"{level}: the example program ended with code {code}")
        output.seek(0)
        lines = output.read().decode().split("\n")[:-1]  # what follows the last line break is unfinished
    found = [[int(word) for word in line.split()] for line in lines]
    same = [a == b for a, b in zip(found, wanted[: len(found)], strict=True)]
    return {
        "sentences": len(found),
        "equal": sum(same),
        "tokens": sum(map(len, found)),
        "first_difference": same.index(False) + 1 if False in same else None,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(
    artifact: Annotated[list[Path], typer.Option(help="translation artifacts of one model")],
    data: Annotated[Path, typer.Option(help="sentences: source TAB reference")] = SAMPLE,
    sentences: Annotated[int, typer.Option(help="how many of them")] = 200,
    skip: Annotated[int, typer.Option(help="leave out so many of them, to go on after an earlier run")] = 0,
    beams: Annotated[list[int], typer.Option(help="widths of the search")] = [1, 4],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="threads of the kernels")] = [1, 2],  # noqa: B006
    minutes: Annotated[float, typer.Option(help="longest time of one run")] = 600.0,
    level: Annotated[list[str] | None, typer.Option(help="only these ISA levels")] = None,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Compare and print every run as it ends; exit code 1 if any token differs."""
    here = {name for path in artifact for name in _levels(path)} & set(detect_host())
    own = next((path for path in artifact if here & set(_levels(path))), None)
    if own is None:
        raise SystemExit("none of the artifacts runs on this machine")
    with closing(load(own)) as translator:
        sources = [translator.tokenizer.encode(text) for text in read_pairs(data)[0][skip:sentences]]
    text = "".join(" ".join(map(str, source)) + "\n" for source in sources)
    wanted = {width: expected(own, sources, width) for width in beams}
    failed = False
    with tempfile.TemporaryDirectory() as name:
        for count in threads:
            for width in beams:
                for spec, before, cpu in places():
                    path = next((p for p in artifact if spec.name in _levels(p)), None)
                    if path is None or (level and spec.name not in level):
                        continue
                    program = example_program(Path(name), path, spec)
                    command = [*before, program, path, str(count), str(width)]
                    found = compare(command, spec.name, text, wanted[width], 60 * minutes)
                    run = Run(level=spec.name, cpu=cpu, beams=width, threads=count, **found)
                    failed = failed or run.equal < run.sentences
                    print(json.dumps(asdict(run)) if json_ else _sentence(run), flush=True)
    sys.exit(failed)


def _levels(path: Path) -> list[str]:
    return [entry.name for entry in open_artifact(path).manifest.isa_levels]


def _sentence(run: Run) -> str:
    how = f"beam {run.beams}" if run.beams > 1 else "greedy"
    where = run.level if run.cpu == "this" else f"{run.level} on {run.cpu}"
    which = "" if run.first_difference is None else f", the first that differs is {run.first_difference}"
    return (
        f"{where}, {how}, {run.threads} thread(s): {run.equal} of {run.sentences} sentences "
        f"({run.tokens} tokens) equal{which}; {run.seconds:.0f} s"
    )


if __name__ == "__main__":
    typer.run(main)
