# SPDX-License-Identifier: Apache-2.0
"""Everything bad that can be given to the real command line: one line, its exit code, nothing half-written.

Exit codes: 2 usage, 3 bad input, 4 missing tool, 5 verification failed, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
LEVEL = "x86_64_v2"
FC1 = "model.encoder.layers.0.fc1.weight"
Run = Callable[..., Any]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where artifacts would go; must be empty after a failure."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def refuse(tvmq: Run, out: Path) -> Callable[..., None]:
    """Compile and expect one line with ``message``, exit code ``code`` and an empty output folder."""

    def check(model: Path, message: str, *words: object, code: int = 3) -> None:
        outcome = tvmq("compile", model, "-o", out / "x.tvmq", "--target", LEVEL, *words)
        assert message in outcome.err
        assert outcome.err.startswith("error: ")
        assert (outcome.code, outcome.err.count("\n"), outcome.out) == (code, 1, "")
        assert list(out.iterdir()) == []

    return check


def spoiled(value: NDArray[np.float32], bad: float) -> NDArray[np.float32]:
    copy = value.copy()
    copy.flat[7] = bad
    return copy


WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a NaN": (
        lambda w: w.update({FC1: spoiled(w[FC1], np.nan)}),
        f"{FC1}' holds 1 values that are not finite",
    ),
    "infinity": (lambda w: w.update({FC1: spoiled(w[FC1], np.inf)}), "holds 1 values that are not finite"),
    "a NaN in a bias": (
        lambda w: w.update({FC1.replace("weight", "bias"): np.full(128, np.nan, np.float32)}),
        "fc1.bias' holds 128 values that are not finite",
    ),
    "turned": (
        lambda w: w.update({FC1: w[FC1].T.copy()}),
        f"wrong shape: {FC1} is (64, 128), expected (128, 64)",
    ),
    "integers": (lambda w: w.update({FC1: w[FC1].astype(np.int32)}), f"{FC1}' has dtype I32, expected F16"),
    "missing": (lambda w: w.pop(FC1), f"missing: {FC1}"),
    "foreign": (lambda w: w.update({"bert.x": w[FC1].copy()}), "unexpected: bert.x"),
}


@pytest.mark.parametrize("defect", WEIGHTS)
def test_bad_weights(model: Path, refuse: Callable[..., None], defect: str) -> None:
    damage, message = WEIGHTS[defect]
    weights = load_file(model / "model.safetensors")
    damage(weights)
    save_file(weights, model / "model.safetensors")
    refuse(model, message)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def claim_a_gigabyte(path: Path) -> None:
    path.write_bytes((10**9).to_bytes(8, "little") + path.read_bytes()[8:])


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda m: cut_in_half(m / "model.safetensors"), "(truncated?)"),
    "lying header": (
        lambda m: claim_a_gigabyte(m / "model.safetensors"),
        "the header claims 1000000000 bytes",
    ),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "a pickle": (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "pickles can run code"),
    "no config": (lambda m: (m / "config.json").unlink(), "config.json: cannot be read"),
    "no JSON": (lambda m: (m / "config.json").write_text("{"), "config.json: not valid JSON"),
    "another architecture": (
        lambda m: edit_json(m / "config.json", model_type="t5"),
        "unknown architecture 't5'; known architectures: bert, distilbert, marian, roberta",
    ),
    "a billion layers": (
        lambda m: edit_json(m / "config.json", encoder_layers=10**9),
        "encoder_layers is 1000000000, expected at most 1024",
    ),
    "a billion positions": (
        lambda m: edit_json(m / "config.json", max_position_embeddings=10**9),
        "max_position_embeddings is 1000000000, expected at most 65536",
    ),
    "a list of beams": (
        lambda m: edit_json(m / "generation_config.json", num_beams=[4]),
        "num_beams is [4], expected a number",
    ),
    "another end token": (
        lambda m: edit_json(m / "config.json", eos_token_id=5),
        "token id 0, config.json has eos_token_id 5",
    ),
    "no tokenizer": (lambda m: (m / "source.spm").unlink(), "source.spm: cannot be read"),
    "no SentencePiece": (lambda m: (m / "source.spm").write_bytes(b"x"), "not a SentencePiece model"),
    "a larger vocabulary": (
        lambda m: edit_json(m / "vocab.json", new=5000),
        "has token id 5000, the model's vocab_size is 320",
    ),
    "no frequencies": (lambda m: (m / "token_freq.tsv").write_text("x\n"), "the first line must be"),
}


@pytest.mark.parametrize("defect", FILES)
def test_bad_files(model: Path, refuse: Callable[..., None], defect: str) -> None:
    damage, message = FILES[defect]
    damage(model)
    refuse(model, message)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--target", "z80"], 2, "unknown target 'z80'; known: host, linux-x86-64, linux-arm64, "),
        (["--isa", "x86_64_v2,x86_64_v2"], 2, "an ISA level is named twice"),
        (["--preset", "none"], 2, "unknown preset 'none'"),
        (["--bits", "0.1"], 2, "0.1 bits per weight cannot be reached"),
        (["--bits", "nan"], 2, "bits per weight cannot be reached"),
        (["--set", "Emb=9"], 2, "9 bits is impossible"),
        (["--set", "nowhere=2"], 2, "no tensor or block matches 'nowhere'"),
        (["--group-size", "48"], 2, "group size 48 does not divide 64 columns"),
        (["--quantizer", "magic"], 2, "unknown quantizer 'magic'"),
        (["--plan", "absent.json"], 3, "absent.json: cannot be read"),
        (["--frequencies", "absent.tsv"], 3, "absent.tsv: cannot be read"),
    ],
)
def test_bad_options(
    tiny_model: Path, refuse: Callable[..., None], words: list[str], code: int, message: str
) -> None:
    refuse(tiny_model, message, *words, code=code)


@pytest.mark.parametrize("path", ["absent", "config.json"])
def test_no_model_folder(tiny_model: Path, refuse: Callable[..., None], path: str) -> None:
    refuse(tiny_model / path, "expected a model folder with config.json")


PLANS: dict[str, tuple[Callable[[Any], object], str]] = {
    "an unknown tensor": (
        lambda p: p["blocks"][3].update(tensor="model.nowhere"),
        "names tensors that the model does not have: model.nowhere",
    ),
    "17 bits": (lambda p: p["blocks"][3].update(bits=17), "17 bits are impossible (expected 1 to 8, or 32"),
    "half a bit": (lambda p: p["blocks"][3].update(bits=0.5), "Expected `int`, got `float`"),
    "a tensor twice": (lambda p: p["blocks"].append(p["blocks"][0]), "names a tensor more than once"),
    "a tensor too few": (lambda p: p["blocks"].pop(), "does not name"),
    "groups that do not divide": (
        lambda p: p["blocks"][3].update(group_size=7),
        "does not divide 64 columns",
    ),
    "an unknown quantizer": (lambda p: p["blocks"][3].update(quantizer="magic"), "unknown quantizer 'magic'"),
    "a later schema": (lambda p: p.update(schema=2), "schema 2, this version reads schema 1"),
    "no plan": (lambda p: p.clear(), "missing required field"),
}


@pytest.mark.parametrize("defect", PLANS)
def test_bad_plans(tiny_model: Path, tmp_path: Path, refuse: Callable[..., None], defect: str) -> None:
    from relay_passes.bit_plan import encode_plan
    from tvmq import api

    damage, message = PLANS[defect]
    document = json.loads(encode_plan(api.plan(tiny_model)))
    damage(document)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    refuse(tiny_model, message, "--plan", path)


def test_the_output_stays_away_from_everything_else(tvmq: Run, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for output, words, code, message in (
        (model / "x.tvmq", (), 2, "lies inside the input"),
        (model, ("--force",), 2, "is the input itself"),
        (tmp_path, ("--force",), 2, "would replace the input"),
        (file, (), 2, "exists already (use --force"),
        (file, ("--force",), 2, "is not an artifact"),
        (tmp_path / "absent" / "x.tvmq", (), 3, "does not exist (create it first)"),
        (tmp_path / "y.tvmq", ("--dump-ir", file), 3, "cannot write IR to"),
        (tmp_path / "y.tvmq", ("--dump-ir", file / "sub"), 3, "cannot write IR to"),
    ):
        outcome = tvmq("compile", model, "-o", output, "--target", LEVEL, *words)
        assert message in outcome.err
        assert (outcome.code, outcome.err.count("\n")) == (code, 1)
    assert sorted(tmp_path.rglob("*")) == before
    assert file.read_text() == "kept"


def in_small_folder(options: str, place: Path, *words: object) -> tuple[int, list[str], list[str]]:
    """A command line with a private file system at ``place``: (exit code, lines on stderr, files left)."""
    script = f'mount -t tmpfs -o {options} tmpfs "$0" && "$@" >/dev/null; code=$?; ls -A "$0"; exit $code'
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    trial = subprocess.run([*unshare, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False)
    if trial.returncode:
        pytest.skip("no private file systems here (unshare, mount)")
    command = [*unshare, script, str(place), sys.executable, "-m", "tvmq", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    return done.returncode, done.stderr.splitlines(), done.stdout.split()


@pytest.mark.parametrize(
    ("options", "message"), [("size=64k", "the disk is full"), ("ro", "the file system is read-only")]
)
def test_full_and_read_only_folders(
    tiny_model: Path, compiled: Callable[..., Path], tmp_path: Path, options: str, message: str
) -> None:
    out, text = tmp_path / "small", tmp_path / "text.txt"
    out.mkdir()
    text.write_text("aaaa aaab\n" * 10_000)
    artifact = compiled("3-bit", target=LEVEL)
    for words in (
        ("compile", tiny_model, "-o", out / "x.tvmq", "--target", LEVEL),
        ("compile", tiny_model, "-o", tmp_path / "x.tvmq", "--target", LEVEL, "--dump-ir", out),
        ("translate", artifact, "-i", text, "-o", out / "text.txt", "--beam", "1", "--isa", LEVEL),
    ):
        code, errors, left = in_small_folder(options, out, *words)
        assert (code, len(errors)) == (3, 1), errors
        assert message in errors[0] or "cannot be written to" in errors[0]
        assert [name for name in left if not name.endswith("imported.py")] == []
        assert not (tmp_path / "x.tvmq").exists()


@pytest.mark.parametrize("phase", ["read", "export", "lower", f"build {LEVEL}"])
def test_interrupted_compile(tiny_model: Path, out: Path, phase: str) -> None:
    command = [sys.executable, "-m", "tvmq", "compile", str(tiny_model), "-o", str(out / "x.tvmq"), "-v"]
    command += ["--target", LEVEL]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        while process.stderr.readline().strip() != phase:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "error: interrupted"
    assert rest.count("error") == 1
    assert list(out.iterdir()) == []


def test_compile_is_quiet(tvmq: Run, tiny_model: Path, out: Path) -> None:
    """Neither torch nor TVM talks to the user; a second compile is refused, a forced one replaces."""
    words = ("compile", str(tiny_model), "-o", str(out / "x.tvmq"), "--target", LEVEL)
    command = [sys.executable, "-m", "tvmq", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    before = (out / "x.tvmq" / "plan.json").read_bytes()
    again = tvmq(*words, "--preset", "2-bit")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "exists already (use --force" in again.err
    assert (out / "x.tvmq" / "plan.json").read_bytes() == before
    forced = tvmq(*words, "--preset", "2-bit", "--force")
    assert (forced.code, forced.err) == (0, "")
    assert (out / "x.tvmq" / "plan.json").read_bytes() != before
    assert [path.name for path in out.iterdir()] == ["x.tvmq"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def is_unread(file: Path) -> bool:
    """Whether Python's runtime does not use a file: the plan, and what the native runtime alone reads."""
    return file.name in ("plan.json", "tvmq.h", "libtvmq.so") or file.suffix == ".program"


@pytest.mark.parametrize("damage", [flip, cut_in_half, Path.unlink], ids=["flip", "cut", "remove"])
def test_every_file_of_an_artifact_is_watched(
    tvmq: Run, compiled: Callable[..., Path], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    artifact = compiled("3-bit", target=LEVEL)
    data = tmp_path / "data.tsv"
    data.write_text("aaaa\taaaa\n")
    for file in sorted(path.relative_to(artifact) for path in artifact.rglob("*") if path.is_file()):
        damaged = Path(shutil.copytree(artifact, tmp_path / "damaged"))
        damage(damaged / file)
        expected = 3 if file.name == "manifest.json" and damage is Path.unlink else 5
        for words in (("verify", damaged), ("eval", damaged, "--data", data, "--limit", "1")):
            if damage is flip and words[0] == "eval" and is_unread(file):
                continue
            outcome = tvmq(*words)
            assert (outcome.code, outcome.err.count("\n")) == (expected, 1), file
            assert file.name in outcome.err
        shutil.rmtree(damaged)


@pytest.fixture
def translate(compiled: Callable[..., Path]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """``tvmq translate`` as a process: bytes in, bytes out."""
    artifact = compiled("3-bit", target=LEVEL)

    def run(data: bytes, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "tvmq", "translate", str(artifact), *words]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.run(command, input=data, timeout=120, check=False, cwd=ROOT, **streams)

    return run


@pytest.mark.parametrize(
    ("data", "words", "code", "message"),
    [
        (b"aaaa\n\xff\xfe\n", (), 3, b"line 2: byte 1 is not UTF-8"),
        (
            b"aaaa\n" + b"word " * 10_000,
            (),
            3,
            b"line 2: sentence 1 has 50001 tokens, the model takes at most 512",
        ),
        (b"a" * (3 << 20), (), 3, b"line 1: longer than 1 MiB"),
        (b"aaaa\n", ("--isa", "mips"), 2, b"the artifact has no ISA level 'mips'"),
        (b"aaaa\n", ("--max-length", "100000"), 2, b"max_new_tokens is 100000"),
        (b"aaaa\n", ("--beam", "1000"), 2, b"1000 beams need 2000 words"),
        (b"aaaa\n", ("--threads", "100000"), 2, b"threads is 100000, expected 1 to 256"),
        (b"aaaa\n", ("--length-penalty", "nan"), 2, b"length penalty is nan"),
        (b"aaaa\n", ("-i", "/absent"), 3, b"/absent: no such file"),
        (b"aaaa\n", ("-o", "/absent/out.txt"), 3, b"/absent/out.txt"),
    ],
)
def test_bad_text_and_options(
    translate: Callable[..., Any], data: bytes, words: tuple[str, ...], code: int, message: bytes
) -> None:
    done = translate(data, *words)
    assert message in done.stderr
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1)
    assert done.stdout.count(b"\n") == data.startswith(b"aaaa\n") * (code == 3) * (data != b"aaaa\n")


def test_odd_but_good_text(translate: Callable[..., Any]) -> None:
    done = translate(b"aaaa\n\n   \na\x00b\naaab aaac\n")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.split(b"\n")
    assert len(lines) == 6
    assert lines[1:3] == [b"", b""]
    assert translate(b"").stdout == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_stdout_on_a_full_disk(translate: Callable[..., Any]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = translate(b"aaaa\n", stdout=full)
    finally:
        os.close(full)
    assert (done.returncode, done.stderr) == (3, b"error: No space left on device\n")
