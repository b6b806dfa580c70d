# SPDX-License-Identifier: Apache-2.0
"""The native runtime beside TVM's Relax VM: speed, start, memory, sessions in threads, cost of a kernel call.

``python -m benchmarks.native_runtime --artifact en-de.tvmq``. Needs a C compiler; sentences are random token
ids of a fixed length, and so are the outputs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from targets import detect_host, get_target
from tvmq.artifact import open_artifact
from tvmq.build import require_linker
from tvmq.loading import EXECUTOR
from tvmq.native import library
from tvmq.runtime import load

ROOT = Path(__file__).resolve().parents[1]
EXECUTORS = ("vm", "native")


def _build(output: Path, *words: object) -> Path:
    compiler = require_linker(get_target(detect_host()[0])).command
    subprocess.run([*compiler, "-std=c11", "-O2", *map(str, words), "-o", str(output)], check=True)
    return output


def _sources(artifact: Path, count: int, length: int) -> list[list[int]]:
    figures = open_artifact(artifact).manifest
    words, eos = int(figures.architecture["source_vocab"]), int(str(figures.generation["eos_token_id"]))
    rng = np.random.default_rng(7)
    return [[*rng.integers(eos + 1, words - 1, length - 1).tolist(), eos] for _ in range(count)]


def tokens_per_second(
    artifact: Path, sources: Sequence[Sequence[int]], outputs: int, beams: int, rounds: int
) -> dict[str, float]:
    """Of each executor, batch 1, one thread: medians of rounds in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in EXECUTORS}
    with ExitStack() as stack:
        translators: dict[str, Any] = {}
        for name in EXECUTORS:
            os.environ[EXECUTOR] = name
            translators[name] = stack.enter_context(closing(load(artifact)))
        for number in range(rounds + 1):
            for name, translator in translators.items():
                start = time.process_time()
                translator.translate_ids(sources, beams=beams, batch_size=1, forced_length=outputs)
                if number:
                    seconds[name].append(time.process_time() - start)
    return {name: len(sources) * outputs / statistics.median(found) for name, found in seconds.items()}


def first_token(example: Path, artifact: Path, text: str) -> float:
    """Milliseconds from starting the process to the first byte of its output."""
    start = time.perf_counter()
    command = [str(example), str(artifact), "1", "1"]  # greedy search gives tokens as it finds them
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        process.stdout.read(1)
        found = (time.perf_counter() - start) * 1e3
        process.stdout.read()
    return found


def peak_mb(example: Path, artifact: Path, text: str, outputs: int, beams: int) -> float:
    """Largest resident memory of the whole example process, in 10^6 bytes."""
    command = [str(example), str(artifact), "1", str(beams), str(outputs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text)
        process.stdin.flush()
        for _ in text.splitlines():
            process.stdout.readline()
        # the process waits for more; its figure would include ours if the system counted it from the fork on
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.stdin.close()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def main(
    artifact: Annotated[Path, typer.Option(help="a translation artifact")],
    sentences: Annotated[int, typer.Option(help="sentences a round")] = 8,
    length: Annotated[int, typer.Option(help="tokens of a source")] = 20,
    outputs: Annotated[int, typer.Option(help="tokens of an output")] = 24,
    rounds: Annotated[int, typer.Option(help="rounds that count")] = 5,
) -> None:
    """Print everything that is measured."""
    sources = _sources(artifact, sentences, length)
    text = "".join(" ".join(map(str, source)) + "\n" for source in sources)
    with tempfile.TemporaryDirectory() as name:
        folder, libs = Path(name), ("-lm", "-lpthread", "-ldl")
        place = (f"-I{artifact.resolve()}/include", f"-L{artifact.resolve()}/lib", "-ltvmq")
        found = f"-Wl,-rpath,{artifact.resolve()}/lib"
        example = _build(folder / "example", library.FOLDER / "example.c", *place, found)
        threads = _build(
            folder / "sessions", ROOT / "tests/tvmq/native/sessions.c", *place, found, "-lpthread"
        )
        inside = (f"-I{library.FOLDER}/include", f"-I{library.FOLDER}/src")
        overhead = _build(
            folder / "overhead", *inside, *library.sources(), ROOT / "benchmarks/native_overhead.c", *libs
        )
        spent = subprocess.run([overhead], capture_output=True, text=True, check=True).stdout
        print(f"a kernel call costs {spent.strip()} ns beside the kernel")
        for beams in (1, 4):
            speeds = tokens_per_second(artifact, sources, outputs, beams, rounds)
            print(f"beam {beams}: " + ", ".join(f"{n} {v:.0f} tokens/s" for n, v in speeds.items()))
            print(f"beam {beams}: peak memory {peak_mb(example, artifact, text, outputs, beams):.1f} MB")
        starts = [first_token(example, artifact, text.splitlines()[0] + "\n") for _ in range(2 * rounds)]
        print(f"first token after {statistics.median(starts):.1f} ms, at least {min(starts):.1f}")
        for count in (1, 2, 8):
            command = [threads, artifact, str(count), "1", "1"]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
            tokens, seconds = map(float, done.split())
            print(f"{count} sessions in {count} threads: {tokens / seconds:.0f} tokens/s")


if __name__ == "__main__":
    typer.run(main)
