# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of one encoder engine in a process of its own (as ``memory_process`` for translation).

``python -m benchmarks.encoder_memory`` is the measured process; ``measure_memory`` starts it. The baseline
is the interpreter with the engine's libraries loaded, before its model is touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .encoder_engines import EncoderSetup, build, import_engine
from .encoder_workload import EncoderWorkload
from .memory_process import Memory, run_measured, watch


def measure_memory(name: str, setup: EncoderSetup, workload: EncoderWorkload) -> Memory:
    """Run the engine ``name`` on the workload in a fresh interpreter and report its memory.

    Raises:
        RuntimeError: the process failed; the text is its last line.
    """
    job = {
        "engine": name,
        "model": str(setup.model),
        "work": str(setup.work),
        "threads": setup.threads,
        "artifact": str(setup.artifact) if setup.artifact else None,
        "calibration": setup.calibration,
        "shapes": workload.shapes,
        "calls": workload.calls,
    }
    return run_measured("benchmarks.encoder_memory", job, name)


def _measured_process(text: str) -> Memory:
    job = json.loads(text)
    import_engine(job["engine"])
    setup = EncoderSetup(
        model=Path(job["model"]),
        work=Path(job["work"]),
        threads=job["threads"],
        artifact=Path(job["artifact"]) if job["artifact"] else None,
        calibration=tuple(tuple(ids) for ids in job["calibration"]),
        shapes=tuple((texts, tokens) for texts, tokens in job["shapes"]),
    )

    def load() -> Callable[[], object]:
        engine = build(job["engine"], setup)

        def encode() -> None:
            for batch in job["calls"]:
                engine.run(batch)

        return encode

    return watch(load)


if __name__ == "__main__":
    print(json.dumps(asdict(_measured_process(sys.stdin.read()))))
