# SPDX-License-Identifier: Apache-2.0
"""Cycles of Arm code by llvm-mca's static models: no cache misses, no mispredicted branches, steady state.

Instructions that a model does not know (system registers) count nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

ITERATIONS = 100
VERSIONS = ("19", "20", "21")
"""Of LLVM's tools. In older ones Neoverse N1 has the model of an older core."""
_REGION = re.compile(
    r"Code Region - (\d+)\n.*?Total Cycles:\s+(\d+)\n.*?Block RThroughput:\s+([\d.]+)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """Of one pass through a block: modelled, and the least that its instructions' ports allow."""

    modelled: float
    bound: float


def tool(name: str) -> str:
    """The path of an LLVM tool; SystemExit that says what to install."""
    names = [f"{name}-{version}" for version in VERSIONS]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise SystemExit(f"{name} was not found (looked for {', '.join(names)}); install llvm-19")
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
    regions = [f"# LLVM-MCA-BEGIN {i}\n{text}\n# LLVM-MCA-END" for i, text in enumerate(blocks)]
    command = [
        tool("llvm-mca"), "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={ITERATIONS}",
        "-instruction-info=0", "-resource-pressure=0", "-skip-unsupported-instructions=lack-sched",
    ]  # fmt: skip
    done = subprocess.run(command, input="\n".join(regions), capture_output=True, text=True, check=False)
    found = {
        int(number): Cycles(modelled=int(total) / ITERATIONS, bound=float(bound))
        for number, total, bound in _REGION.findall(done.stdout)
    }
    if done.returncode or len(found) != len(blocks):
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-300:])
        raise SystemExit(f"llvm-mca modelled {len(found)} of {len(blocks)} blocks on {cpu}: {first}")
    return [found[i] for i in range(len(blocks))]
