# SPDX-License-Identifier: Apache-2.0
"""Cycles of Arm code by llvm-mca's static models: no cache misses, no mispredicted branches, steady state.

Instructions that a model does not know (system registers) count nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from tvmq.errors import MissingToolError
from tvmq.kernels.llvm import OLDEST, Cycles, find_llvm, mca_cycles

ITERATIONS = 100


def tool(name: str) -> str:
    """The path of an LLVM tool; SystemExit that says what to install."""
    found = find_llvm(name)
    if found is None:
        raise SystemExit(f"{name} of version {OLDEST} or newer was not found; install llvm-{OLDEST}")
    return found


def disassemble(blocks: Sequence[bytes]) -> list[str]:
    """The instructions of each block as text."""
    words = [block[i : i + 4] for block in blocks for i in range(0, len(block), 4)]
    lines = [" ".join(f"0x{byte:02x}" for byte in word) for word in words]
    command = [tool("llvm-mc"), "--disassemble", "-triple=aarch64", "-mattr=+v8.6a,+crypto,+fp16fml"]
    texts = []
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    found = [
        line for line in done.stdout.splitlines() if line.startswith("\t") and not line.startswith("\t.")
    ]
    if len(found) != len(lines):
        raise SystemExit(f"llvm-mc read {len(found)} of {len(lines)} instructions")
    at = 0
    for block in blocks:
        texts.append("\n".join(found[at : at + len(block) // 4]))
        at += len(block) // 4
    return texts


def cycles(blocks: Sequence[str], cpu: str) -> list[Cycles]:
    """Of every block of instructions, repeated as a loop, on ``cpu`` (LLVM's name)."""
    pieces = [text.splitlines() for text in blocks]
    options = ("-skip-unsupported-instructions=lack-sched",)
    try:
        return mca_cycles(pieces, tool("llvm-mca"), cpu, repeats=ITERATIONS, options=options)
    except MissingToolError as error:
        raise SystemExit(str(error)) from error
