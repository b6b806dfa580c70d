# SPDX-License-Identifier: Apache-2.0
"""LLVM's tools: where they are, and what llvm-mca's static models of Arm cores say of code.

The models know no cache misses and no mispredicted branches.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmq.errors import MissingToolError

OLDEST = 19
"""Version of LLVM's tools. In older ones Neoverse N1 has the model of an older core."""
MOST_INSTRUCTIONS = 4000
"""Of a piece that is given to llvm-mca; longer ones are cut, and their cycles scaled."""
_REGION = re.compile(
    r"Code Region - (\d+)\n.*?Total Cycles:\s+(\d+)\n.*?Block RThroughput:\s+([\d.]+)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """Of one pass through a piece of code: modelled, and the least that its instructions' ports allow."""

    modelled: float
    bound: float


def find_llvm(tool: str) -> str | None:
    """The newest of an LLVM tool's versions that are new enough (Debian's have a number in their names)."""
    found: list[tuple[int, str]] = []
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        for path in Path(folder or ".").glob(f"{tool}*"):
            if re.fullmatch(rf"{tool}(-\d+)?", path.name) and os.access(path, os.X_OK):
                found.append((_version(path), str(path)))
    version, newest = max(found, default=(0, ""))
    return newest if version >= OLDEST else None


def _version(path: Path) -> int:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"LLVM version (\d+)", done.stdout)
    return int(match[1]) if match else 0


def mca_cycles(
    pieces: Sequence[Sequence[str]], mca: str, cpu: str, *, repeats: int, options: Sequence[str] = ()
) -> list[Cycles]:
    """Cycles of one repetition of each piece.

    Args:
        pieces: instructions in assembly.
        mca: the tool.
        cpu: LLVM's name of a core.
        repeats: repetitions that are modelled; a piece's cycles are theirs, divided by their number.
        options: further ones of the tool.

    Raises:
        MissingToolError: llvm-mca cannot judge them for ``cpu``; its first complaint is told.
    """
    regions = [
        "\n".join([f"# LLVM-MCA-BEGIN {number}", *piece[:MOST_INSTRUCTIONS], "# LLVM-MCA-END\n"])
        for number, piece in enumerate(pieces)
    ]
    command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={repeats}", "-instruction-info=0"]
    command += ["-resource-pressure=0", *options]
    done = subprocess.run(command, input="".join(regions), capture_output=True, text=True, check=False)
    found = {int(number): (int(total), float(bound)) for number, total, bound in _REGION.findall(done.stdout)}
    if done.returncode or len(found) != len(pieces):
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no cycles for a piece")
        raise MissingToolError(f"llvm-mca cannot judge code for {cpu}: {first}")
    scales = [max(1.0, len(piece) / MOST_INSTRUCTIONS) for piece in pieces]
    return [
        Cycles(modelled=found[i][0] / repeats * scale, bound=found[i][1] * scale)
        for i, scale in enumerate(scales)
    ]
