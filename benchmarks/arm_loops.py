# SPDX-License-Identifier: Apache-2.0
"""The kernels' inner loops on arm64, in cycles by llvm-mca: ``python -m benchmarks.arm_loops``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from benchmarks.arm_cycles import cycles
from schedules.dequant_gemm import DequantSpec, dequant_gemm
from schedules.lut_gemm import LutSpec, lut_gemm
from schedules.segment import Segment
from targets import get_target

CPUS = {"neoverse-n1": "Neoverse N1", "neoverse-v1": "Neoverse V1", "cortex-a55": "Cortex-A55"}
"""LLVM's models: N1 is the server twin of Cortex-A76, V1 that of Cortex-X1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An inner loop and its unit.

    Attributes:
        title: what a unit is.
        level: the ISA level whose code is read.
        kernel: ``tables`` or ``levels``.
        counted: the instruction that does the work.
        units: how many of it are one unit.
        tokens: that share a look-up's index; 0 where the loop with most counted instructions is meant.
    """

    title: str
    level: str
    kernel: str
    counted: str
    units: int
    tokens: int = 0


WORK = (
    Work(title="int8 tables, one token, 128 weight bits", level="arm64_dotprod", kernel="tables",
         counted="tbl", units=2, tokens=1),
    Work(title="int8 tables, four tokens, 128 weight bits and one token", level="arm64_dotprod",
         kernel="tables", counted="tbl", units=2, tokens=4),
    Work(title="levels times 4 tokens, `sdot`, 256 products", level="arm64_dotprod", kernel="levels",
         counted="sdot", units=16),
    Work(title="levels times 4 tokens, `smmla`, 256 products", level="arm64_i8mm", kernel="levels",
         counted="smmla", units=8),
    Work(title="levels times 2 tokens, `smull`, `smlal`, `sadalp`, 256 products", level="arm64_v8",
         kernel="levels", counted="sm(?:ull|lal)2?", units=32),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One loop on one CPU: cycles of a unit as compiled, and the least that its instructions' ports allow."""

    loop: str
    cpu: str
    cycles: float
    bound: float


def assembly(level: str, kernel: str) -> str:
    """Of one product of 96 rows."""
    import tvm

    target = get_target(level)
    if kernel == "tables":
        segment = Segment(
            rows=96, bits=2, group_size=128, offset=False, scale_dtype="float16", output=0, start=0
        )
        spec = LutSpec(
            k=128, outputs=(96,), segments=(segment,), bias=(False,), activation=("",), tables="int8"
        )
        function: Any = lut_gemm(spec, target.kernel_isa)
    else:
        function = dequant_gemm(DequantSpec(n=96, k=1024, bits=8), target.kernel_isa)
    module = tvm.IRModule({kernel: function.with_attr("global_symbol", kernel)})
    return tvm.compile(module, target=target.to_tvm()).mod.inspect_source("asm")


def inner_loops(text: str) -> list[list[str]]:
    """The instructions of every loop that holds no other loop."""
    lines: list[str] = []
    places: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            places[label[1]] = len(lines)
        elif re.match(r"\t[a-z]", line):
            lines.append(line.strip())
            start = places.get(line.split()[-1])
            if start is not None:
                loops.append((start, len(lines)))
    inner = [(a, b) for a, b in loops if not any(a < c and d <= b for c, d in loops)]
    return [lines[a:b] for a, b in inner]


def count(loop: Sequence[str], pattern: str) -> int:
    """How many of a loop's instructions match."""
    return sum(bool(re.match(rf"(?:{pattern})\b", line)) for line in loop)


def tokens_of(loop: Sequence[str]) -> float:
    """Look-ups for an index: of three instructions for two indices, each used once by every token."""
    logic = count(loop, "ushr|sli|orr")
    return count(loop, "tbl") * 1.5 / logic if logic else 0


def pick(loops: Sequence[list[str]], work: Work) -> list[str] | None:
    """The loop that does this work."""
    fit = [loop for loop in loops if count(loop, work.counted) >= 8]
    if work.tokens:
        fit = [loop for loop in fit if 0.75 < tokens_of(loop) / work.tokens < 1.35]
    return max(fit, key=lambda loop: count(loop, work.counted), default=None)


def rows() -> list[Row]:
    """Every loop on every CPU that has its instructions."""
    found = []
    texts = {(work.level, work.kernel): assembly(work.level, work.kernel) for work in WORK}
    for work in WORK:
        loop = pick(inner_loops(texts[work.level, work.kernel]), work)
        if loop is None:
            raise SystemExit(f"no loop for: {work.title}")
        share = work.units / count(loop, work.counted)
        for cpu, name in CPUS.items():
            if work.counted == "smmla" and cpu != "neoverse-v1":
                continue
            (made,) = cycles(["\n".join(loop)], cpu)
            found.append(
                Row(
                    loop=work.title,
                    cpu=name,
                    cycles=round(made.modelled * share, 2),
                    bound=round(made.bound * share, 2),
                )
            )
    return found


def main(json_: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """Print cycles and bounds."""
    found = rows()
    if json_:
        print(json.dumps({"results": [asdict(row) for row in found]}))
        return
    print("| inner loop, unit of work |" + "".join(f" {name} | bound |" for name in CPUS.values()))
    print("|---|" + "---:|---:|" * len(CPUS))
    for title in dict.fromkeys(row.loop for row in found):
        own = {row.cpu: row for row in found if row.loop == title}
        cells = [f" {own[n].cycles} | {own[n].bound} |" if n in own else " | |" for n in CPUS.values()]
        print(f"| {title} |" + "".join(cells))


if __name__ == "__main__":
    typer.run(main)
