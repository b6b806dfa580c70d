# SPDX-License-Identifier: Apache-2.0
"""Coded checkpoints: what is written is read, and compiles to what the float model compiles to.

Damaged ones are in tests/attacks/test_bad_coded_checkpoints.py.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from relay_passes.bit_plan import BitPlan, BlockBits, WordBits, decode_plan
from schedules.outliers import Outliers, outlier_count
from schedules.packing import BitPlanes, WordPlanes
from schedules.pow2 import pow2_scales, scale_storage
from tvmq import api
from tvmq.checkpoint import Checkpoint
from tvmq.coded_checkpoint import narrowed, write_coded
from tvmq.errors import InputError, UsageError
from tvmq.generated import sinusoidal
from tvmq.options import CompileOptions, PlanOptions, QuantizeOptions
from tvmq.quantization import quantize_model

ROOT = Path(__file__).resolve().parents[2]
LEVEL = "x86_64_v2"
MIXED = PlanOptions(preset="chung2020-2.5-1.8-3.7", offset=True, group_size=32, overrides=(("Dec_dd", 32),))
Run = Callable[..., Any]


def matrix(
    bits: int,
    n: int,
    k: int,
    group: int,
    *,
    offset: bool = False,
    dtype: str = "float16",
    outliers: float = 0.0,
) -> BitPlanes:
    rng = np.random.default_rng(n * k + bits)
    codes = rng.integers(0, 2, (bits, n, k), np.uint8)
    groups, exponents = k // group, None
    scales, offsets = rng.random((bits, n, groups)), rng.standard_normal((1, n, groups))
    if dtype == "pow2":
        together, exponents = pow2_scales(np.concatenate([scales, offsets]) if offset else scales)
        scales, offsets = together[:bits], together[bits:]
    stored = scale_storage(dtype)
    return BitPlanes(
        planes=np.packbits(codes, axis=2, bitorder="little"),
        scales=scales.astype(stored),
        offsets=offsets[0].astype(stored) if offset else None,
        shape=(n, k),
        group_size=group,
        exponents=exponents,
        outliers=sparse(n, k, outliers),
    )


def sparse(n: int, k: int, percent: float) -> Outliers | None:
    count = outlier_count(percent, n, k)
    if not count:
        return None
    places = np.sort(np.random.default_rng(n).choice(n * k, count, replace=False))
    return Outliers(places=places.astype(np.int64), values=np.arange(1, count + 1).astype(np.float16))


PLANES: dict[str, BitPlanes | WordPlanes] = {
    "a": matrix(3, 5, 32, 16, offset=True),
    "odd": matrix(1, 4, 13, 13, dtype="float32"),
    "shared": matrix(2, 3, 16, 8, offset=True, dtype="pow2", outliers=5.0),
    "words": WordPlanes(
        order=np.array([2, 4, 0, 5, 1, 3], np.int32),
        segments=(matrix(4, 2, 10, 10), matrix(2, 3, 10, 10), matrix(1, 1, 10, 10)),
    ),
}
INFINITE = replace(matrix(3, 5, 32, 16, offset=True), offsets=np.full((5, 2), np.inf, np.float16))
SPARE = replace(matrix(1, 4, 13, 13, dtype="float32"), planes=np.full((1, 4, 2), 255, np.uint8))
PLAN = BitPlan(
    schema=1,
    source="test",
    blocks=(
        BlockBits(tensor="a", block="x", bits=3, group_size=16, offset=True),
        BlockBits(tensor="odd", block="x", bits=1, scale_dtype="float32", quantizer="greedy"),
        BlockBits(
            tensor="shared", block="x", bits=2, group_size=8, offset=True, scale_dtype="pow2", outliers=5.0
        ),
        BlockBits(tensor="kept", block="x", bits=32),
    ),
    words=(WordBits(tensor="words", block="Emb", clusters=((2, 4), (3, 2), (1, 1))),),
)
FLOATS = {
    "kept": np.full((2, 2), 0.1, np.float32),
    "bias": np.array([1, -0.5], np.float32),
    "norm": np.array([1e-7, 70000], np.float32),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What a coded checkpoint takes from a model folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in {
        "config.json": '{"model_type": "marian"}',
        "generation_config.json": "{}",
        "vocab.json": "{}",
        "source.spm": "pieces",
        "token_freq.tsv": "counts",
        "LICENSE-NOTE.md": "terms",
        "model.safetensors": "the float weights",
        "pytorch_model.bin": "a pickle",
        "README.md": "about the float model",
    }.items():
        (folder / name).write_text(text)
    return folder


def write(model: Path, output: Path, **changed: Any) -> Path:
    arguments: dict[str, Any] = {"plan": PLAN, "planes": PLANES, "floats": FLOATS, "force": False} | changed
    write_coded(output, model=model, **arguments)
    return output


def assert_same(found: BitPlanes, expected: BitPlanes) -> None:
    assert (found.shape, found.group_size) == (expected.shape, expected.group_size)
    np.testing.assert_array_equal(found.planes, expected.planes)
    np.testing.assert_array_equal(found.scales, expected.scales)
    assert found.scales.dtype == expected.scales.dtype
    for one, other in ((found.offsets, expected.offsets), (found.exponents, expected.exponents)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_array_equal(one, other)
    assert (found.outliers is None) == (expected.outliers is None)
    if found.outliers is not None and expected.outliers is not None:
        np.testing.assert_array_equal(found.outliers.places, expected.outliers.places)
        np.testing.assert_array_equal(found.outliers.values, expected.outliers.values)


def test_what_is_written_is_read(model: Path, tmp_path: Path) -> None:
    opened = Checkpoint.open(write(model, tmp_path / "coded"))
    assert opened.plan == PLAN
    assert opened.names() == ["a", "bias", "kept", "norm", "odd", "shared", "words"]
    for name, expected in PLANES.items():
        found = opened.planes(name)
        assert found is not None
        assert opened.shape(name) == expected.shape
        np.testing.assert_array_equal(opened.tensor(name), expected.dequantize())
        if isinstance(expected, WordPlanes):
            assert isinstance(found, WordPlanes)
            np.testing.assert_array_equal(found.order, expected.order)
            for one, other in zip(found.segments, expected.segments, strict=True):
                assert_same(one, other)
        else:
            assert isinstance(found, BitPlanes)
            assert_same(found, expected)
    for name, value in FLOATS.items():
        assert opened.planes(name) is None
        np.testing.assert_array_equal(opened.tensor(name), value)
    with pytest.raises(InputError, match=r"no tensor named 'wordz' \(did you mean 'words'"):
        opened.tensor("wordz")


def test_the_files(model: Path, tmp_path: Path) -> None:
    coded = write(model, tmp_path / "coded")
    taken = {"config.json", "generation_config.json", "vocab.json", "source.spm", "token_freq.tsv"}
    taken |= {"LICENSE-NOTE.md"}
    assert {path.name for path in coded.iterdir()} == taken | {"plan.json", "model.safetensors"}
    assert all((coded / name).read_bytes() == (model / name).read_bytes() for name in taken)
    assert decode_plan((coded / "plan.json").read_bytes()) == PLAN
    stored = {name: value.dtype.name for name, value in load_file(coded / "model.safetensors").items()}
    assert {name: dtype for name, dtype in stored.items() if not name.startswith("__pad__")} == {
        "a:planes": "uint8", "a:scales": "float16", "a:offsets": "float16",
        "odd:planes": "uint8", "odd:scales": "float32",
        "shared:planes": "uint8", "shared:scales": "int8", "shared:exponents": "int8",
        "shared:offsets": "int8", "shared:starts": "int32", "shared:places": "uint16",
        "shared:values": "float16",
        "words:order": "int32",
        "words:0:planes": "uint8", "words:0:scales": "float16",
        "words:1:planes": "uint8", "words:1:scales": "float16",
        "words:2:planes": "uint8", "words:2:scales": "float16",
        "kept": "float32", "bias": "float16", "norm": "float32",
    }  # fmt: skip


def test_half_precision_only_where_it_is_exact() -> None:
    assert narrowed("x", np.array([0.5, 65504, 2**-24])).dtype == np.float16
    for value in (65505.0, 1e6, 2**-25, 0.1):
        assert narrowed("x", np.array([value], np.float32)).dtype == np.float32
    with pytest.raises(ValueError, match="'x' holds values that are not finite"):
        narrowed("x", np.array([np.inf]))


def test_hash_covers_the_plan(model: Path, tmp_path: Path) -> None:
    coded = write(model, tmp_path / "coded")
    before = Checkpoint.open(coded).sha256
    assert before == Checkpoint.open(write(model, tmp_path / "again")).sha256
    (coded / "plan.json").write_text((coded / "plan.json").read_text().replace('"test"', '"other"'))
    assert Checkpoint.open(coded).sha256 != before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"planes": {"a": PLANES["a"]}}, "planes and plan differ in 'odd', 'shared', 'words'"),
        ({"planes": PLANES | {"b": PLANES["a"]}}, "planes and plan differ in 'b'"),
        ({"planes": PLANES | {"a": matrix(2, 5, 32, 16, offset=True)}}, r"'a:planes' is uint8\[2, 5, 4\]"),
        ({"planes": PLANES | {"a": matrix(3, 5, 32, 16)}}, "'a:offsets' of the plan is not stored"),
        ({"planes": PLANES | {"a": matrix(3, 5, 32, 8, offset=True)}}, r"'a:scales' is float16\[3, 5, 4\]"),
        ({"planes": PLANES | {"odd": matrix(1, 4, 13, 13)}}, r"'odd:scales' is float16\[1, 4, 1\].*float32"),
        ({"planes": PLANES | {"words": matrix(4, 6, 10, 10)}}, "'words:0:planes'.* is not stored"),
        ({"floats": {}}, "'kept' of the plan is not stored"),
        ({"floats": FLOATS | {"a": np.ones((5, 32))}}, "'a' is stored as floats and planned as planes"),
        ({"floats": FLOATS | {"b:scales": np.ones(2)}}, "'b:scales' is not in the plan"),
        ({"floats": FLOATS | {"norm": np.array([np.nan])}}, "'norm' holds values that are not finite"),
        ({"planes": PLANES | {"a": INFINITE}}, "'a': scales or offsets are not finite in FP32"),
        ({"planes": PLANES | {"odd": SPARE}}, "'odd': bits beyond column 13 are set"),
    ],
)
def test_only_what_the_plan_says_is_written(
    model: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(model, tmp_path / "coded", **changed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_force_replaces_coded_checkpoints_and_nothing_else(model: Path, tmp_path: Path) -> None:
    coded = write(model, tmp_path / "coded")
    with pytest.raises(UsageError, match="exists already"):
        write(model, coded)
    write(model, coded, floats=FLOATS | {"more": np.ones(3)}, force=True)
    assert "more" in Checkpoint.open(coded).names()
    (coded / "plan.json").unlink()
    with pytest.raises(UsageError, match=r"is not a coded checkpoint \(no plan.json\), so it is not"):
        write(model, coded, force=True)
    with pytest.raises(UsageError, match="is the input itself"):
        write(model, model, force=True)


def test_an_ordinary_checkpoint_may_lie_beside_a_plan(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "plan.json").write_text("not for you")
    checkpoint = Checkpoint.open(model)
    assert checkpoint.plan is None
    assert checkpoint.planes(checkpoint.names()[0]) is None
    assert checkpoint.sha256 == Checkpoint.open(tiny_model).sha256


def test_stored_planes_are_not_solved_again(model: Path, tmp_path: Path) -> None:
    """Random codes are nobody's optimum, and there are no frequencies: only taking them gives them back."""
    opened = Checkpoint.open(write(model, tmp_path / "coded"))
    seen = []
    made = quantize_model(opened, PLAN, progress=lambda *step: seen.append(step))
    assert list(made) == list(PLANES)
    for name, expected in PLANES.items():
        np.testing.assert_array_equal(made[name].dequantize(), expected.dequantize())
    assert seen[-1] == ("quantize", 160 + 52 + 48 + 60, 160 + 52 + 48 + 60)
    other = replace(PLAN, blocks=(replace(PLAN.blocks[0], bits=2), *PLAN.blocks[1:]))
    with pytest.raises(InputError, match="planes of another plan"):
        quantize_model(opened, other)


@pytest.fixture(scope="module")
def coded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model under word bits, offsets, groups and one FP32 block."""
    folder = tmp_path_factory.mktemp("coded") / "coded"
    api.quantize(tiny_model, folder, QuantizeOptions(plan=MIXED))
    return folder


def test_compiles_to_the_artifact_of_the_float_model(tiny_model: Path, coded: Path, tmp_path: Path) -> None:
    api.compile(tiny_model, tmp_path / "float.tvmq", CompileOptions(plan=MIXED, target=LEVEL))
    api.compile(coded, tmp_path / "coded.tvmq", CompileOptions(target=LEVEL))
    for name in ("weights.safetensors", "plan.json"):
        assert (tmp_path / "float.tvmq" / name).read_bytes() == (tmp_path / "coded.tvmq" / name).read_bytes()
    assert api.verify(tmp_path / "coded.tvmq").ok


def test_copies_and_position_tables_stay_behind(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    positions = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    table = np.array(sinusoidal(positions, 64))
    copies = {"lm_head.weight": weights["model.shared.weight"].copy()}
    copies |= {f"model.{side}.embed_positions.weight": table.copy() for side in ("encoder", "decoder")}
    save_file(weights | copies, model / "model.safetensors")
    api.quantize(model, tmp_path / "coded")
    found = set(Checkpoint.open(tmp_path / "coded").names())
    assert found == set(weights) - copies.keys()


def test_quantize_verb(tvmq: Run, tiny_model: Path, coded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = tvmq("quantize", tiny_model, "-o", out, "--bits", "2.6", "--set", "Emb=4", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    value = json.loads(outcome.out)
    assert set(value) == {"output", "seconds", "bits_per_weight", "size_bytes", "fp32_bytes", "ratio"}
    tensors = load_file(out / "model.safetensors")
    assert value["size_bytes"] == sum(v.nbytes for n, v in tensors.items() if not n.startswith("__pad__"))
    planned = api.describe_plan(tiny_model, PlanOptions(bits=2.6, overrides=(("Emb", 4),)))
    assert Checkpoint.open(out).plan == planned.plan == api.plan(out)
    assert value["bits_per_weight"] == round(planned.size.bits_per_weight, 4)
    assert value["fp32_bytes"] == planned.fp32_bytes
    again = tvmq("quantize", tiny_model, "-o", out)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "times smaller than FP32" in tvmq("quantize", tiny_model, "-o", out, "--force").out


def test_words_are_ordered_by_the_frequencies_that_were_given(tiny_model: Path, tmp_path: Path) -> None:
    """A file of the user's comes before the folder's own, and a folder without one will do."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    header, *lines = (model / "token_freq.tsv").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    rising = [f"{line.split(chr(9))[0]}\t{line.split(chr(9))[1]}\t{i}\t0" for i, line in enumerate(lines)]
    given = tmp_path / "given.tsv"
    given.write_text("\n".join([header, *rising]) + "\n", encoding="utf-8")
    options = PlanOptions(preset="chung2020-2.5-1.8-3.7", frequencies=given)
    for name in ("with", "without"):
        api.quantize(model, tmp_path / name, QuantizeOptions(plan=options))
        words = Checkpoint.open(tmp_path / name).planes("model.shared.weight")
        assert isinstance(words, WordPlanes)
        ids = [int(line.split("\t")[0]) for line in lines]
        assert words.order.tolist() == ids[::-1]
        (model / "token_freq.tsv").unlink(missing_ok=True)


def test_dry_run_writes_nothing(tvmq: Run, tiny_model: Path, coded: Path, tmp_path: Path) -> None:
    outcome = tvmq("quantize", tiny_model, "-o", tmp_path / "out", "--dry-run", "--json", "--bits", "2")
    assert json.loads(outcome.out) == api.describe_plan(tiny_model, PlanOptions(bits=2)).to_json()
    stored = json.loads(tvmq("compile", coded, "--dry-run", "--json").out)
    assert stored.pop("schedules")
    assert stored == api.describe_plan(tiny_model, MIXED).to_json()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["compile", "quantize"])
@pytest.mark.parametrize(
    "words",
    [
        ("--preset", "3-bit"),
        ("--bits", "2"),
        ("--set", "Emb=2"),
        ("--plan", "plan.json"),
        ("--quantizer", "greedy"),
        ("--no-offset",),
        ("--scale-dtype", "float32"),
        ("--group-size", "0"),
        ("--frequencies", "token_freq.tsv"),
        ("--text", "text.txt"),
    ],
    ids=lambda words: words[0],
)
def test_bits_of_a_coded_checkpoint_are_fixed(
    tvmq: Run, coded: Path, tmp_path: Path, verb: str, words: tuple[str, ...]
) -> None:
    outcome = tvmq(verb, coded, "-o", tmp_path / "out", *words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "is a coded checkpoint, its bits are fixed; leave out the options for bits" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_coded_checkpoint_is_not_quantized_again(tvmq: Run, coded: Path, tmp_path: Path) -> None:
    outcome = tvmq("quantize", coded, "-o", tmp_path / "out")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "is a coded checkpoint already; compile it" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("phase", ["read", "quantize"])
def test_an_interrupt_leaves_nothing(tiny_model: Path, tmp_path: Path, phase: str) -> None:
    command = [sys.executable, "-m", "tvmq", "quantize", str(tiny_model), "-o", str(tmp_path / "out"), "-v"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        while process.stderr.readline().strip() != phase:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "error: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_neither_torch_nor_tvm(coded: Path) -> None:
    code = (
        f"import sys; from tvmq.checkpoint import Checkpoint; c = Checkpoint.open({str(coded)!r}); "
        "[c.tensor(n) for n in c.names()]; print([m for m in ('torch', 'tvm') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_quantizing_needs_no_torch(tiny_model: Path, tmp_path: Path) -> None:
    """Importing it alone takes as much memory as a small model."""
    code = (
        f"import sys; from tvmq.cli import main; "
        f"code = main(['quantize', {str(tiny_model)!r}, '-o', {str(tmp_path / 'coded')!r}, '-q']); "
        "print(code, [m for m in ('torch', 'tvm') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines()[-1] == "0 []"


def test_hessian_codes_by_the_flag(tvmq: Run, tiny_model: Path, coded: Path, tmp_path: Path) -> None:
    pairs, file = tmp_path / "pairs.tsv", tmp_path / "c.safetensors"
    pairs.write_text("open the file\tden Ordner\n" * 20, encoding="utf-8")
    made = tvmq("plan", tiny_model, "--calibration", pairs, "--save-calibration", file, "-j", "1", "-q")
    assert made.code == 0, made.err
    codes = ("--preset", "2-bit", "--quantizer", "hessian")
    refused = tvmq("quantize", tiny_model, "-o", tmp_path / "no", *codes)
    assert refused.code == 2
    assert "give --calibration FILE" in refused.err
    done = tvmq("quantize", tiny_model, "-o", tmp_path / "yes", *codes, "--calibration", file, "-q")
    assert done.code == 0, done.err
    plain = tvmq("quantize", tiny_model, "-o", tmp_path / "plain", "--preset", "2-bit", "-q")
    assert plain.code == 0
    name = "model.encoder.layers.0.fc1.weight"
    one, other = (Checkpoint.open(tmp_path / folder).tensor(name) for folder in ("yes", "plain"))
    assert not np.array_equal(one, other)
    idle = tvmq("quantize", tiny_model, "-o", tmp_path / "x", "--calibration", file)
    assert idle.code == 2
    assert "no codes of this plan go by a calibration (alternating)" in idle.err
    fixed = tvmq("compile", coded, "-o", tmp_path / "x", "--calibration", file)
    assert fixed.code == 2
    assert "its codes are fixed" in fixed.err
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"no calibration")
    damaged = tvmq("quantize", tiny_model, "-o", tmp_path / "z", *codes, "--calibration", foreign)
    assert damaged.code == 3
    assert damaged.err.count("\n") == 1
