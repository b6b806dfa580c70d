# SPDX-License-Identifier: Apache-2.0
"""How often each straight piece of a kernel's code runs, from what qemu notes.

qemu's log shows every piece of code that it translates, up to a branch or the end of a page, and has a line
for every time that one runs.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

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
