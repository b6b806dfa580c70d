# SPDX-License-Identifier: Apache-2.0
"""How often each straight piece of a kernel's code runs, from what qemu notes, and its cycles by llvm-mca.

qemu's log shows every piece of code that it translates, up to a branch or the end of a page, and has a line
for every time that one runs.
The cycles of a piece are those of many repetitions divided by their number: loops are judged as they run, and
what runs once between loops as if it hid behind them.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmq.errors import MissingToolError

REPEATS = 40
MOST_INSTRUCTIONS = 4000
"""Of a piece that is given to llvm-mca; longer ones are cut, and their cycles scaled."""
_TRACE = re.compile(rb"^Trace \d+: 0x[0-9a-f]+ \[[0-9a-f]+/([0-9a-f]+)/", re.MULTILINE)
_INSTRUCTION = re.compile(rb"^0x([0-9a-f]+):", re.MULTILINE)
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*?)\s*$")
_BRANCH = re.compile(r"^(b|b\.\w+|bl|blr|br|ret|cbn?z|tbn?z|svc|brk)\b")


@dataclass(frozen=True, slots=True)
class Code:
    """Disassembled instructions: address -> text; all are 4 bytes long."""

    lines: dict[int, str]

    @staticmethod
    def parse(text: str) -> Code:
        """The output of ``llvm-objdump -d --no-show-raw-insn``."""
        found = {}
        for line in text.splitlines():
            match = _LINE.match(line)
            if match:
                text_of = re.sub(r"\s*(<[^>]*>|//.*)", "", match[2])
                # Where a branch goes is of no matter, and too far for an assembler that starts at 0.
                here = _BRANCH.match(text_of) or text_of.startswith("adr")
                found[int(match[1], 16)] = re.sub(r"0x[0-9a-f]+$", "#0", text_of) if here else text_of
        return Code(found)


@dataclass(frozen=True, slots=True)
class Trace:
    """Start of a piece -> how often it ran, and the addresses of its instructions."""

    counts: Counter[int]
    pieces: dict[int, list[int]]

    @staticmethod
    def parse(log: bytes, code: Code) -> Trace:
        """The pieces of ``code`` in a log of ``qemu -d in_asm,exec,nochain``."""
        starts = [int(match[1], 16) for match in _TRACE.finditer(log)]
        pieces = {}
        for block in log.split(b"\nIN:")[1:]:
            addresses = [int(match[1], 16) for match in _INSTRUCTION.finditer(block.partition(b"\n\n")[0])]
            if addresses and addresses[0] in code.lines:
                pieces[addresses[0]] = addresses
        return Trace(Counter(start for start in starts if start in pieces), pieces)


def merged(trace: Trace, code: Code) -> list[tuple[list[int], int]]:
    """Pieces with their counts; those that end without a branch go on with what follows."""
    left = Counter(trace.counts)
    found = []
    for start in sorted(trace.counts):
        count, addresses = left[start], list(trace.pieces[start])
        while count and not _BRANCH.match(code.lines[addresses[-1]]) and left[addresses[-1] + 4] >= count:
            following = addresses[-1] + 4
            left[following] -= count
            addresses += trace.pieces[following]
        if count:
            found.append((addresses, count))
    return found


def mca_cycles(pieces: Sequence[Sequence[str]], mca: str, cpu: str, folder: Path) -> list[float]:
    """Cycles of one repetition of each piece.

    Raises:
        MissingToolError: llvm-mca cannot judge them for ``cpu``; its first complaint is told.
    """
    source = folder / "pieces.s"
    with source.open("w") as file:
        for number, piece in enumerate(pieces):
            file.write(f"# LLVM-MCA-BEGIN {number}\n")
            file.writelines(f"{line}\n" for line in piece[:MOST_INSTRUCTIONS])
            file.write("# LLVM-MCA-END\n")
    command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={REPEATS}", "-instruction-info=0"]
    command += ["-resource-pressure=0", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    cycles = [int(match[1]) for match in re.finditer(r"^Total Cycles:\s+(\d+)$", done.stdout, re.MULTILINE)]
    if done.returncode or len(cycles) != len(pieces):
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no cycles for a piece")
        raise MissingToolError(f"llvm-mca cannot judge code for {cpu}: {first}")
    scales = [max(1.0, len(piece) / MOST_INSTRUCTIONS) for piece in pieces]
    return [count / REPEATS * scale for count, scale in zip(cycles, scales, strict=True)]
