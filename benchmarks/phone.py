# SPDX-License-Identifier: Apache-2.0
"""A translation on a phone, modelled: instructions by qemu, cycles by llvm-mca, memory by its bandwidth.

``python -m benchmarks.phone --artifact en-de-arm64.tvmq``. The example program translates a sentence under
qemu's user emulation, whose plugin ``qemu_blocks.c`` counts how often every block of instructions runs: once
without a sentence, once with few output tokens, once with more. Differences are what loading, encoding and a
decoder step take; llvm-mca gives each block's cycles on a CPU (a steady state without cache misses). Nothing
here is measured on a phone: clock rates and the bandwidth of one core are stated parameters.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.arm_cycles import cycles, disassemble
from benchmarks.native_build import example_program
from targets import get_target
from targets.toolchain import find_emulator
from tvmq.artifact import Artifact, open_artifact
from tvmq.native.program import ITEM_BYTES, decode

HERE = Path(__file__).parent
BLOCKS = 300
"""The most executed ones are modelled; the others are taken to be as fast (a few hundredths of all)."""
FEW, MORE = 3, 7
"""Output tokens of the two runs."""
PAPER_MS = 200.7
"""A sentence on a Galaxy N10+ at 2.6 bits (Chung et al. 2020); 708.9 in FP32."""
CPUS = {"cortex-a76": ("neoverse-n1", 2.4), "cortex-a55": ("cortex-a55", 1.8)}
"""CPU of a phone: LLVM's model for it (that of A76's server twin) and a usual clock in GHz."""

Counts = Counter[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part of the work takes.

    Attributes:
        part: ``load``, ``encode`` or ``token``.
        instructions: counted, in millions.
        megabytes: of weights that it reads; 0 for loading.
        megacycles: modelled, by CPU.
    """

    part: str
    instructions: float
    megabytes: float
    megacycles: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One CPU: milliseconds of arithmetic and of reading weights; of a sentence the longer counts."""

    cpu: str
    ghz: float
    gb_per_s: float
    token_arithmetic_ms: float
    token_memory_ms: float
    sentence_arithmetic_ms: float
    sentence_memory_ms: float
    sentence_ms: float


def counted(command: list[str | Path], plugin: Path, text: str, tokens: int) -> Counts:
    """How often every block ran in a translation of at most so many tokens."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "counts"
        words = [command[0], "-plugin", f"{plugin},out={output}", *command[1:], "1", "1", str(tokens)]
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=True)
        if text and len(done.stdout.split()) != tokens:
            raise SystemExit(
                f"the sentence gave {len(done.stdout.split())} tokens, expected {tokens}; choose another"
            )
        found: Counts = Counter()
        for line in output.read_text(encoding="ascii").splitlines():
            times, block = line.split()
            found[bytes.fromhex(block)] += int(times)
    return found


def instructions(counts: Counts) -> int:
    """All that were executed."""
    return sum(times * len(block) // 4 for block, times in counts.items())


def modelled(counts: Counts, cpu: str) -> float:
    """Cycles of all, on LLVM's model of a CPU."""
    top = sorted(counts, key=lambda block: -counts[block] * len(block))[:BLOCKS]
    found = cycles(disassemble(top), cpu)
    share = instructions(counts) / instructions(Counter({block: counts[block] for block in top}))
    return share * sum(counts[block] * made.modelled for block, made in zip(top, found, strict=True))


def weight_bytes(artifact: Artifact, level: str, function: str) -> int:
    """Bytes of the weights that a function's products read; of an embedding it reads single rows."""
    entry = next(entry for entry in artifact.manifest.isa_levels if entry.name == level)
    program = decode(artifact.file(entry.program).read_bytes())
    calls = next(f for f in program.functions if f.name == function)
    used = {
        calls.tensors[number].number
        for call in calls.calls
        if not program.kernels[call.kernel].startswith("gather")
        for number in call.tensors
        if calls.tensors[number].place == "weight"
    }
    total = 0
    for number in used:
        weight = program.weights[number]
        size = ITEM_BYTES[weight.dtype]
        for extent in weight.shape:
            size *= int(str(extent))
        total += size
    return total


def measure(artifact: Artifact, level: str, source: list[int]) -> list[Part]:
    """Loading, encoding the source, and one decoder step."""
    target = get_target(level)
    emulator = find_emulator(target)
    if emulator is None:
        raise SystemExit("needs qemu-user and libc6-dev-arm64-cross (Debian's names)")
    text = " ".join(map(str, source)) + "\n"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = folder / "qemu_blocks.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", HERE / "qemu_blocks.c", "-o", plugin], check=True)
        program = example_program(folder, artifact.path, target)
        command: list[str | Path] = [*emulator, "-E", f"TVMQ_ISA={level}", program, artifact.path]
        load, few, more = (counted(command, plugin, t, n) for t, n in (("", MORE), (text, FEW), (text, MORE)))
    steps = MORE - FEW
    token = Counter({block: (more[block] - few[block]) / steps for block in more if more[block] > few[block]})
    # the last token is forced to be the end without a step
    encode = Counter({b: n - load[b] - (FEW - 1) * token[b] for b, n in few.items()})
    parts = {"load": load, "encode": Counter({b: n for b, n in encode.items() if n > 0}), "token": token}
    functions = {"encode": "encode", "token": "greedy_1"}
    return [
        Part(
            part=part,
            instructions=round(instructions(counts) / 1e6, 2),
            megabytes=round(weight_bytes(artifact, level, functions[part]) / 1e6, 2)
            if part in functions
            else 0,
            megacycles={cpu: round(modelled(counts, model) / 1e6, 2) for cpu, (model, _) in CPUS.items()},
        )
        for part, counts in parts.items()
    ]


def predict(parts: list[Part], cpu: str, ghz: float, gb_per_s: float, outputs: int) -> Prediction:
    """A sentence of ``outputs`` tokens on one core, the model loaded before."""
    _, encode, token = parts
    arithmetic = [part.megacycles[cpu] / ghz for part in (encode, token)]
    memory = [part.megabytes / gb_per_s for part in (encode, token)]
    longer = [max(pair) for pair in zip(arithmetic, memory, strict=True)]
    return Prediction(
        cpu=cpu,
        ghz=ghz,
        gb_per_s=gb_per_s,
        token_arithmetic_ms=round(arithmetic[1], 2),
        token_memory_ms=round(memory[1], 2),
        sentence_arithmetic_ms=round(arithmetic[0] + outputs * arithmetic[1], 1),
        sentence_memory_ms=round(memory[0] + outputs * memory[1], 1),
        sentence_ms=round(longer[0] + outputs * longer[1], 1),
    )


def main(
    artifact: Annotated[Path, typer.Option(help="a translation artifact with arm64 levels")],
    level: Annotated[str, typer.Option(help="ISA level to run")] = "arm64_dotprod",
    source: Annotated[int, typer.Option(help="tokens of the sentence; their ids are arbitrary")] = 20,
    outputs: Annotated[int, typer.Option(help="tokens of its translation")] = 24,
    bandwidth: Annotated[float, typer.Option(help="GB/s that one core of the phone reads")] = 10.0,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Print instruction counts, modelled cycles and what they come to on a phone."""
    opened = open_artifact(artifact)
    words = int(opened.manifest.architecture["source_vocab"])
    eos = int(str(opened.manifest.generation["eos_token_id"]))
    ids = [*(2 + (7919 * i) % (words - 3) for i in range(1, source)), eos]
    parts = measure(opened, level, ids)
    found = [predict(parts, cpu, ghz, bandwidth, outputs) for cpu, (_, ghz) in CPUS.items()]
    if json_:
        record = {"level": level, "source": source, "outputs": outputs, "paper_ms": PAPER_MS}
        print(
            json.dumps(record | {"parts": [asdict(p) for p in parts], "results": [asdict(p) for p in found]})
        )
        return
    print("| part | instructions (M) | weights (MB) |" + "".join(f" cycles, {cpu} (M) |" for cpu in CPUS))
    print("|---|---:|---:|" + "---:|" * len(CPUS))
    for part in parts:
        cells = "".join(f" {part.megacycles[cpu]} |" for cpu in CPUS)
        print(f"| {part.part} | {part.instructions} | {part.megabytes} |{cells}")
    print(f"\n| one core, {bandwidth:g} GB/s, {source} tokens in, {outputs} out ", end="")
    print("| ms a token: arithmetic | memory | ms a sentence | the paper's |\n|---|---:|---:|---:|---:|")
    for p in found:
        cells = f" {p.token_arithmetic_ms} | {p.token_memory_ms} | {p.sentence_ms} | {PAPER_MS} |"
        print(f"| {p.cpu} at {p.ghz:g} GHz |{cells}")


if __name__ == "__main__":
    typer.run(main)
