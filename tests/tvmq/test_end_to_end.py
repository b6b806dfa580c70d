# SPDX-License-Identifier: Apache-2.0
"""The embedded model through the command line: compile once, then every verb on the artifact."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from targets import detect_host, resolve_targets
from targets.toolchain import find_linker
from tests.elf_facts import check_library
from tvmq.cli import main

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "nmt-en-de"
SAMPLE = MODEL / "sample" / "test.tsv"
Run = Callable[..., Any]

pytestmark = pytest.mark.slow


def sentences(count: int) -> list[str]:
    with SAMPLE.open(encoding="utf-8") as lines:
        return [line.partition("\t")[0] for line, _ in zip(lines, range(count), strict=False)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model at the default setting, for every ISA level."""
    path = tmp_path_factory.mktemp("compiled") / "en-de.tvmq"
    assert main(["compile", str(MODEL), "-o", str(path), "-q", "--target", "linux-x86-64"]) == 0
    return path


@pytest.fixture
def translate(artifact: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """``tvmq translate`` as a process: bytes in, bytes out."""

    def run(data: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "tvmq", "translate", str(artifact), *words]
        return subprocess.run(command, input=data, capture_output=True, timeout=300, check=False)

    return run


def test_inspect_matches_the_prediction(tvmq: Run, artifact: Path) -> None:
    facts = json.loads(tvmq("inspect", artifact, "--json").out)
    predicted = json.loads(tvmq("compile", MODEL, "--dry-run", "--json").out)
    assert facts["bits_per_weight"] == pytest.approx(predicted["bits_per_weight"], rel=0.02)
    assert facts["ratio"] > 8
    assert set(facts) >= {
        "bits_per_weight", "size_bytes", "fp32_bytes", "ratio", "blocks", "word_bits", "isa_levels"
    }  # fmt: skip
    assert {"name", "bits", "params"} <= set(facts["blocks"][0])


@pytest.mark.parametrize("target", ["linux-x86-64", "linux-arm64", "android-arm64"])
def test_all_code_of_an_architecture_is_below_one_mb(
    artifact: Path, tmp_path: Path, tvmq: Run, target: str
) -> None:
    """Runtime and the kernels of all levels; the widths are those that the default gives."""
    if find_linker(resolve_targets(target)[0]) is None:
        pytest.skip(f"nothing links for {target} here")
    made = artifact
    if target != "linux-x86-64":
        made = tmp_path / "made.tvmq"
        plan = tmp_path / "plan.json"
        text = (artifact / "plan.json").read_text()
        plan.write_text(text.replace('"alternating"', '"greedy"'))  # codes do not matter
        outcome = tvmq("compile", MODEL, "-o", made, "-q", "--target", target, "--plan", plan)
        assert outcome.code == 0, outcome.err
    sizes = {path.name: path.stat().st_size for path in (made / "lib").glob("*.so")}
    assert sum(sizes.values()) < 1_000_000, sizes
    for path in (made / "lib").glob("*.so"):
        spec = resolve_targets(target)[0]
        check_library(path, spec.architecture, spec.system)


def test_verify_finds_one_flipped_bit(tvmq: Run, artifact: Path, tmp_path: Path) -> None:
    value = json.loads(tvmq("verify", artifact, "--json").out)
    assert value["ok"] is True
    assert {file["path"] for file in value["files"]} >= {"plan.json", "weights.safetensors"}
    damaged = tmp_path / "damaged.tvmq"
    shutil.copytree(artifact, damaged)
    libraries = json.loads(tvmq("inspect", damaged, "--json").out)["libraries"]
    library = damaged / next(part["library"] for part in libraries if part["name"] == detect_host()[0])
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(bytes(data))
    outcome = tvmq("verify", damaged)
    assert (outcome.code, outcome.err.count("\n")) == (5, 1)
    assert library.name in outcome.err
    assert tvmq("eval", damaged, "--data", SAMPLE, "--limit", "1").code == 5


def test_lines_come_back_in_order(translate: Callable[..., Any]) -> None:
    texts = sentences(5)
    data = "\n".join([texts[0], "", *texts[1:4], "   ", texts[4]]).encode()
    together = translate(data, "--beam", "1")
    assert (together.returncode, together.stderr) == (0, b"")
    lines = together.stdout.decode().splitlines()
    assert len(lines) == 7
    assert (lines[1], lines[5]) == ("", "")
    alone = translate(texts[3].encode(), "--beam", "1")
    assert alone.stdout.decode().splitlines() == [lines[4]]


def test_threads_and_batches_do_not_change_the_text(translate: Callable[..., Any]) -> None:
    data = "\n".join(sentences(20)).encode()
    first = translate(data)
    assert first.returncode == 0
    for words in (("--threads", "2"), ("--batch-size", "1"), ("--batch-size", "4", "--threads", "2")):
        assert translate(data, *words).stdout == first.stdout


def test_isa_levels_say_the_same(artifact: Path, tvmq: Run, translate: Callable[..., Any]) -> None:
    data = "\n".join(sentences(40)).encode()
    levels = json.loads(tvmq("inspect", artifact, "--json").out)["isa_levels"]
    for words in ("--beam 1", "--beam 4"):
        outputs = {
            level: translate(data, "--isa", level, *words.split()).stdout
            for level in set(levels) & set(detect_host())
        }
        assert "x86_64_v2" in outputs
        assert outputs["x86_64_v2"].count(b"\n") == 40
        assert len(set(outputs.values())) == 1


def test_libraries_fuse_no_products_and_sums(artifact: Path) -> None:
    """What the tests of kernels show of single kernels, in everything that ships."""
    disassembler = shutil.which("objdump")
    if disassembler is None:
        pytest.skip("needs objdump")
    libraries = [path for path in (artifact / "lib").glob("*.so") if path.name != "libtvmq.so"]
    assert len(libraries) >= 3
    for library in libraries:
        command = [disassembler, "-d", str(library)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "mulps" in text
        assert not re.search(r"\tv?fn?m(?:add|sub)\w*", text)


def test_n_best_is_sorted_by_score(translate: Callable[..., Any]) -> None:
    done = translate(sentences(1)[0].encode(), "--n-best", "3", "--beam", "4")
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "1"]
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len({row[2] for row in rows}) == 3
    best = translate(sentences(1)[0].encode(), "--beam", "4")
    assert best.stdout.decode() == rows[0][2] + "\n"


def test_json_holds_every_line(translate: Callable[..., Any]) -> None:
    lines = json.loads(translate(b"Hello.\n\n", "--json").stdout)["lines"]
    assert [line["line"] for line in lines] == [1, 2]
    assert lines[0]["hypotheses"][0]["text"]
    assert lines[1]["hypotheses"] == []


def test_bad_lines_are_named(translate: Callable[..., Any]) -> None:
    bad = translate(b"Hello.\n\xff\xfe\n", "--beam", "1")
    assert (bad.returncode, bad.stderr.count(b"\n")) == (3, 1)
    assert bad.stderr.startswith(b"error: line 2: byte 1 is not UTF-8")
    assert bad.stdout.count(b"\n") == 1
    assert translate(b"Hello \xff.\n", "--errors", "replace").returncode == 0
    long = translate(b"Hello.\n" + b"word " * 10_000, "--beam", "1")
    assert (long.returncode, long.stderr.count(b"\n")) == (3, 1)
    assert long.stderr.startswith(b"error: line 2: ")


def test_output_file_is_written_whole(artifact: Path, tvmq: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes(b"Hello.\nGood bye.\n")
    words = ("translate", artifact, "--input", source, "--output", target, "--beam", "1")
    assert tvmq(*words).code == 0
    assert len(target.read_text(encoding="utf-8").splitlines()) == 2
    assert tvmq(*words).code == 2
    assert tvmq(*words, "--force").code == 0
    source.write_bytes(b"Hello.\n\xff\n")
    other = tmp_path / "other.txt"
    assert tvmq("translate", artifact, "--input", source, "--output", other).code == 3
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_a_filter_streams_and_ends_quietly(artifact: Path) -> None:
    """An answer to every line while the writer waits; then the reader leaves."""
    command = [sys.executable, "-m", "tvmq", "translate", str(artifact), "--beam", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Hello.\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()
        process.stdout.close()
        process.stdin.write(b"Hello again.\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) in (-signal.SIGPIPE, 128 + signal.SIGPIPE)


def test_interrupt_is_exit_130(artifact: Path) -> None:
    command = [sys.executable, "-m", "tvmq", "translate", str(artifact), "--beam", "1"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Hello.\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b"error: interrupted\n"


def test_eval_and_bench(artifact: Path, tvmq: Run) -> None:
    words = ("--data", SAMPLE, "--limit", "20", "--beam", "1", "--json")
    scored = json.loads(tvmq("eval", artifact, *words).out)
    assert scored["n"] == 20
    assert scored["value"] > 15
    sizes = ("--sentences", "2", "--forced-length", "8", "--rounds", "1")
    random = json.loads(tvmq("bench", artifact, *sizes, "--json").out)
    assert random["tokens_per_s"] > 0
    assert random["peak_rss_mb"] > random["baseline_rss_mb"] > 0
    assert tvmq("bench", artifact, *sizes, "--input", SAMPLE, "--beam", "4").code == 0


def test_the_runtime_needs_no_compiler(artifact: Path) -> None:
    code = (
        "import sys, tvmq\n"
        f"tvmq.load({str(artifact)!r}).translate(['Hello.'], beams=1)\n"
        "print(sorted({'torch', 'transformers', 'tvm'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
