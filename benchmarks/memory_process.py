# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of one engine in a process of its own.

``python -m benchmarks.memory_process`` is the measured process: it imports the engine's libraries, notes the
resident memory as the baseline, loads the converted model, translates, and prints one JSON object.
``measure_memory`` starts it; conversion happens before, in the caller.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tvmq.machine import peak_bytes, reset_peak, resident_bytes

from .engines import Setup, build, import_engine
from .workload import Workload

MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory in MB (10^6 bytes).

    Attributes:
        baseline_mb: after importing the libraries, native ones included, before the model is touched.
        load_peak_mb: largest while loading and translating.
        run_peak_mb: largest while translating, after everything was loaded and warmed up; below
            ``load_peak_mb`` where loading needs more than running.
    """

    baseline_mb: float
    load_peak_mb: float
    run_peak_mb: float

    @property
    def above_baseline_mb(self) -> float:
        """What loading and translating adds to the bare interpreter."""
        return self.load_peak_mb - self.baseline_mb

    @property
    def run_above_baseline_mb(self) -> float:
        """What translating alone adds to the bare interpreter."""
        return self.run_peak_mb - self.baseline_mb


def measure_memory(name: str, setup: Setup, workload: Workload, *, beams: int) -> Memory:
    """Run the engine ``name`` in a fresh interpreter and report its memory.

    Raises:
        RuntimeError: the process failed; the text is its last line.
    """
    job = {
        "engine": name,
        "model": str(setup.model),
        "work": str(setup.work),
        "threads": setup.threads,
        "artifact": str(setup.artifact) if setup.artifact else None,
        "sources": workload.sources,
        "forced": workload.forced,
        "beams": beams,
    }
    return run_measured("benchmarks.memory_process", job, name)


def run_measured(module: str, job: Mapping[str, Any], name: str) -> Memory:
    """Memory that ``python -m module`` prints for ``job``; RuntimeError with its last line if it fails."""
    command = [sys.executable, "-m", module]
    child = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"memory of {name}: {(child.stderr.strip() or 'no message').splitlines()[-1]}")
    return Memory(**json.loads(child.stdout.splitlines()[-1]))


def watch(load: Callable[[], Callable[[], object]]) -> Memory:
    """Memory of this process while ``load`` runs, and while the work that it returns runs twice."""
    baseline = _mb(resident_bytes())
    reset_peak()
    work = load()
    work()
    load_peak = _mb(peak_bytes())
    reset_peak()
    work()
    return Memory(baseline_mb=baseline, load_peak_mb=load_peak, run_peak_mb=_mb(peak_bytes()))


def _measured_process(text: str) -> Memory:
    job = json.loads(text)
    import_engine(job["engine"])
    setup = Setup(
        model=Path(job["model"]),
        work=Path(job["work"]),
        threads=job["threads"],
        artifact=Path(job["artifact"]) if job["artifact"] else None,
    )

    def load() -> Callable[[], object]:
        engine = build(job["engine"], setup)

        def translate() -> None:
            for source in job["sources"]:
                engine.translate(source, beams=job["beams"], forced=job["forced"])

        return translate

    return watch(load)


def _mb(size: int | None) -> float:
    if size is None:
        raise RuntimeError("this system does not report resident memory (/proc/self/status)")
    return size / MB


if __name__ == "__main__":
    print(json.dumps(asdict(_measured_process(sys.stdin.read()))))
