# SPDX-License-Identifier: Apache-2.0
"""The native runtime beside TVM's Relax VM: speed, start, memory, sessions in threads, cost of a kernel call.

``python -m benchmarks.native_runtime --artifact en-de.tvmq``. Needs a C compiler; sentences are random token
ids of a fixed length, and so are the outputs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.native_build import c_program, example_program, linked_with
from targets import detect_host, get_target
from tvmq.artifact import open_artifact
from tvmq.loading import EXECUTOR
from tvmq.machine import usable_cores
from tvmq.native import library
from tvmq.runtime import load

ROOT = Path(__file__).resolve().parents[1]
EXECUTORS = ("vm", "native")
SESSIONS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured, on one thread where nothing else is said.

    Attributes:
        call_ns: cost of a kernel call beside the kernel.
        tokens_per_s: by search and executor, in CPU time.
        peak_mb: of the whole example process, by search.
        first_token_ms: wall time from starting the example process, over verification and self-test, to
            the first byte of its output; the files are in the page cache. The median and the least.
        first_token_cpu_ms: CPU time of the same, another token and the end of the process included.
        sessions: tokens per second of so many threads with a session each over one model, greedy.
        cores: that this process may use.
    """

    call_ns: float
    tokens_per_s: dict[str, dict[str, float]]
    peak_mb: dict[str, float]
    first_token_ms: tuple[float, float]
    first_token_cpu_ms: float
    sessions: dict[int, float]
    cores: int


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


def first_token(example: Path, artifact: Path, text: str) -> tuple[float, float]:
    """Milliseconds from starting the process to the first byte of its output, and of CPU to its end."""
    command = [str(example), str(artifact), "1", "1", "2"]  # greedy search gives tokens as it finds them
    with tempfile.TemporaryFile() as source:
        source.write(text.encode())
        source.seek(0)
        start = time.perf_counter()
        with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            found = (time.perf_counter() - start) * 1e3
            process.stdout.read()
            _, _, used = os.wait4(process.pid, 0)
            process.returncode = 0
    return found, (used.ru_utime + used.ru_stime) * 1e3


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


def throughput(program: Path, artifact: Path, text: str, sessions: int) -> float:
    """Tokens per second of so many sessions at once, each in a thread of its own."""
    command = [program, artifact, str(sessions), "1", "2"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    tokens, seconds = map(float, done.split())
    return tokens / seconds


def measure(artifact: Path, sentences: int, length: int, outputs: int, rounds: int) -> Result:
    """Everything, with programs that are compiled for it."""
    sources = _sources(artifact, sentences, length)
    text = "".join(" ".join(map(str, source)) + "\n" for source in sources)
    host, kinds = get_target(detect_host()[0]), {"greedy": 1, "beam 4": 4}
    with tempfile.TemporaryDirectory() as name:
        folder, libs = Path(name), ("-lm", "-lpthread", "-ldl")
        inside = (f"-I{library.FOLDER}/include", f"-I{library.FOLDER}/src")
        example = example_program(folder, artifact, host)
        many = ROOT / "tests" / "tvmq" / "native" / "sessions.c"
        threads = c_program(folder / "sessions", host, many, *linked_with(artifact))
        calls = ROOT / "benchmarks" / "native_overhead.c"
        overhead = c_program(folder / "overhead", host, *inside, *library.sources(), calls, *libs)
        spent = subprocess.run([overhead], capture_output=True, text=True, check=True).stdout
        first = text.splitlines()[0] + "\n"
        starts = [first_token(example, artifact, first) for _ in range(4 * rounds)]
        walls = [wall for wall, _ in starts]
        return Result(
            call_ns=float(spent),
            tokens_per_s={
                k: {
                    n: round(v, 1)
                    for n, v in tokens_per_second(artifact, sources, outputs, b, rounds).items()
                }
                for k, b in kinds.items()
            },
            peak_mb={k: round(peak_mb(example, artifact, text, outputs, b), 1) for k, b in kinds.items()},
            first_token_ms=(round(statistics.median(walls), 1), round(min(walls), 1)),
            first_token_cpu_ms=round(statistics.median(cpu for _, cpu in starts), 1),
            sessions={n: round(throughput(threads, artifact, text, n), 1) for n in SESSIONS},
            cores=usable_cores(),
        )


def main(
    artifact: Annotated[Path, typer.Option(help="a translation artifact")],
    sentences: Annotated[int, typer.Option(help="sentences a round")] = 8,
    length: Annotated[int, typer.Option(help="tokens of a source")] = 20,
    outputs: Annotated[int, typer.Option(help="tokens of an output")] = 24,
    rounds: Annotated[int, typer.Option(help="rounds that count")] = 5,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Print everything that is measured."""
    found = measure(artifact, sentences, length, outputs, rounds)
    if json_:
        print(json.dumps(asdict(found)))
        return
    print(f"a kernel call costs {found.call_ns} ns beside the kernel")
    for kind, speeds in found.tokens_per_s.items():
        print(f"{kind}: " + ", ".join(f"{n} {v:.0f} tokens/s" for n, v in speeds.items()))
        print(f"{kind}: peak memory {found.peak_mb[kind]} MB")
    median, least = found.first_token_ms
    print(f"first token after {median} ms, at least {least}; {found.first_token_cpu_ms} ms of CPU in all")
    for count, speed in found.sessions.items():
        ratio = speed / found.sessions[1]
        where = f"{count} sessions in {count} threads on {found.cores} cores"
        print(f"{where}: {speed:.0f} tokens/s, {ratio:.2f} times one")


if __name__ == "__main__":
    typer.run(main)
