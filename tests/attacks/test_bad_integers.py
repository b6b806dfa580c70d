# SPDX-License-Identifier: Apache-2.0
"""Mode block-int with models, options, plans and files that it cannot use: one line, nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tvmq as library
from relay_passes.bit_plan import encode_plan
from targets import detect_host
from tvmq import api, encoder
from tvmq.errors import UsageError, VerificationError
from tvmq.options import CompileOptions, PlanOptions

Run = Callable[..., Any]
Make = Callable[..., Path]
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
MODE = ("--mode", "block-int")
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def model(encoder_model: Make, tmp_path: Path) -> Path:
    """An encoder's folder to damage."""
    return Path(shutil.copytree(encoder_model("BertModel", **SIZES), tmp_path / "model"))


@pytest.fixture
def refuse(tvmq: Run, tmp_path: Path) -> Callable[..., None]:
    """``refuse(model, message, *words)``: one line with ``message``, exit code ``code``, nothing written."""

    def check(model: Path, message: str, *words: object, code: int = 3, verb: str = "compile") -> None:
        before = sorted(tmp_path.rglob("*"))
        outcome = tvmq(verb, model, "-o", tmp_path / "out", *words)
        assert message in outcome.err
        assert outcome.err.startswith("error: ")
        assert (outcome.code, outcome.err.count("\n"), outcome.out) == (code, 1, "")
        assert sorted(tmp_path.rglob("*")) == before, "left something behind"

    return check


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_translation_model(refuse: Any, tiny_model: Path, words: tuple[str, ...]) -> None:
    message = "mode block-int is for encoders; compile a marian model with mode float"
    refuse(tiny_model, message, *MODE, *words, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (*MODE, "--activation-block", "48"),
            "--activation-block 48: blocks of integers are multiples of 64",
        ),
        ((*MODE, "--activation-block", "-1"), "--activation-block"),
        ((*MODE, "--preset", "3-bit", "--group-size", "32"), "--group-size 32: blocks of integers are"),
        (("--activation-block", "64"), "--activation-block belongs to --mode block-int"),
        ((*MODE, "--set", f"{QUERY}=32"), f"{QUERY} stays FP32, which integers cannot be; give it 1 to 8"),
        ((*MODE, "--preset", "fp32"), "stays FP32, which integers cannot be"),
        ((*MODE, "--outliers", "0.5"), "mode block-int has no outliers beside the planes"),
        ((*MODE, "--preset", "3-bit", "--quantizer", "hessian"), "hessian codes need calibration data"),
        (("--mode", "int8"), "--mode"),
    ],
)
def test_options(refuse: Any, model: Path, words: tuple[str, ...], message: str) -> None:
    refuse(model, message, *words, code=2)
    if "hessian" not in words:
        refuse(model, message, *words, "--dry-run", code=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 8}, "8 heads of 64 columns: integer attention needs head widths that are"),
        ({"hidden_size": 40}, "rows of 40 columns, mode block-int needs multiples of 16; compile with"),
        ({"intermediate_size": 136}, "rows of 136 columns, mode block-int needs multiples of 16"),
    ],
)
def test_models_that_have_no_integer_form(
    refuse: Any, encoder_model: Make, changes: dict[str, Any], message: str
) -> None:
    model = encoder_model("BertModel", **SIZES | changes)
    refuse(model, message, *MODE, "--target", "x86_64_v2")
    refuse(model, message, *MODE, "--dry-run")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(refuse: Any, model: Path, value: float) -> None:
    tensors = dict(load_file(model / "model.safetensors"))
    tensors[QUERY][3, 5] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    refuse(model, f"tensor '{QUERY}' holds 1 values that are not finite", *MODE)


def test_weights_beyond_the_exponents(refuse: Any, model: Path) -> None:
    tensors = dict(load_file(model / "model.safetensors"))
    tensors[QUERY][:] = 3e38
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    refuse(model, f"{QUERY}: a scale exceeds pow2 (largest 127 * 2^100)", *MODE, "--preset", "3-bit")


PLANS: dict[str, tuple[Callable[[Any], object], str]] = {
    "FP32 in the body": (lambda p: p["blocks"][3].update(bits=32), "stays FP32, which integers cannot be"),
    "float scales": (lambda p: p["blocks"][3].update(scale_dtype="float16"), "has scales in float16, mode"),
    "an offset": (lambda p: p["blocks"][3].update(offset=True), "has an offset, mode block-int stores none"),
    "uniform codes": (lambda p: p["blocks"][3].update(quantizer="rtn"), "has rtn codes, which have no form"),
    "odd blocks": (lambda p: p["blocks"][3].update(activation_block=48), "reads blocks of 48 columns"),
    "no activations": (
        lambda p: p["blocks"][3].update(activation_bits=0),
        "activations of 0 bits are impossible",
    ),
    "a table's groups": (lambda p: p["blocks"][0].update(group_size=64), "has groups, tables in mode"),
    "outliers": (lambda p: p["blocks"][3].update(outliers=1.0), "mode block-int has no outliers"),
    "another mode": (lambda p: p.update(mode="int4"), "Invalid enum value 'int4'"),
    "readers that disagree": (
        lambda p: p["blocks"][3].update(activation_bits=6),
        "read the same activations; give them one activation_block and one width",
    ),
}


@pytest.mark.parametrize("defect", PLANS)
def test_edited_plans(refuse: Any, model: Path, tmp_path: Path, defect: str) -> None:
    damage, message = PLANS[defect]
    plan = api.plan(model, PlanOptions(mode="block-int", preset="3-bit"))
    document = json.loads(encode_plan(plan))
    damage(document)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    refuse(model, message, "--plan", path)


def test_a_plan_of_the_mode_is_used_by_itself(
    refuse: Any, tvmq: Run, model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(encode_plan(api.plan(model, PlanOptions(mode="block-int"))))
    refuse(model, "is a plan of mode block-int already; leave out --mode", "--plan", path, *MODE, code=2)
    refuse(
        model, "weights of mode block-int are made when compiling", "--plan", path, verb="quantize", code=2
    )
    float_plan = json.loads(encode_plan(api.plan(tiny_model, PlanOptions(preset="3-bit"))))
    path.write_text(json.dumps(float_plan | {"mode": "block-int"}))
    refuse(tiny_model, "has scales in float16, mode block-int stores pow2", "--plan", path)
    for entry in float_plan["blocks"]:
        entry |= {"scale_dtype": "pow2", "group_size": None}
    path.write_text(json.dumps(float_plan | {"mode": "block-int"}))
    refuse(tiny_model, "mode block-int is for encoders", "--plan", path, code=2)


def test_coded_checkpoints(refuse: Any, tvmq: Run, model: Path, tmp_path: Path) -> None:
    """Their codes are those of the float mode; a plan.json that says otherwise is not believed."""
    coded = tmp_path / "coded"
    assert tvmq("quantize", model, "-o", coded, "--preset", "3-bit", "--scale-dtype", "pow2").code == 0
    refuse(coded, "its bits are fixed; leave out the options for bits", *MODE, code=2)
    document = json.loads((coded / "plan.json").read_text())
    (coded / "plan.json").write_text(json.dumps({**document, "mode": "block-int"}))
    refuse(coded, "is a coded checkpoint, whose codes mode block-int cannot use", code=2)


def test_modules(tmp_path: Path) -> None:
    module = torch.nn.Linear(64, 64).eval()
    options = CompileOptions(plan=PlanOptions(mode="block-int"), isa_levels=("x86_64_v2",))
    with pytest.raises(UsageError, match="mode block-int is for folders of encoders; compile a module with"):
        library.compile(module, (torch.zeros(2, 64),), tmp_path / "x.tvmq", options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def compiled_integers(encoder_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("integers") / "x.tvmq"
    options = CompileOptions(plan=PlanOptions(mode="block-int"), isa_levels=(detect_host()[0],))
    library.compile(encoder_model("BertModel", **SIZES), path, options)
    return path


@pytest.fixture
def artifact(compiled_integers: Path, tmp_path: Path) -> Path:
    """An artifact of the mode to damage."""
    return Path(shutil.copytree(compiled_integers, tmp_path / "x.tvmq"))


@pytest.mark.parametrize("verb", ["embed", "classify"])
def test_texts_longer_than_the_positions(
    tvmq: Run, compiled_integers: Path, tmp_path: Path, verb: str
) -> None:
    """24 positions; with --truncate the text fits. A model without a head classifies nothing."""
    text, out = tmp_path / "in.txt", tmp_path / "out"
    text.write_text("hello\n" + "one two three " * 20 + "\n")
    outcome = tvmq(verb, compiled_integers, "-i", text, "-o", out)
    assert (outcome.code, outcome.err.count("\n"), outcome.out) == (3, 1, "")
    assert not out.exists()
    if verb == "embed":
        assert outcome.err.startswith("error: line 2: text ")
        assert "the model takes at most 24; split it" in outcome.err
        assert tvmq(verb, compiled_integers, "-i", text, "-o", out, "--truncate").code == 0
    else:
        assert outcome.err.startswith("error: ")


def spoil(artifact: Path, name: str, change: Callable[[Any], object]) -> None:
    """Changes one stored array."""
    path = artifact / "weights.safetensors"
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header])[name]
    first, last = (8 + header + offset for offset in entry["data_offsets"])
    dtype = {"I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32}[entry["dtype"]]
    values = np.frombuffer(bytes(data[first:last]), dtype).copy()
    change(values)
    data[first:last] = values.tobytes()
    path.write_bytes(bytes(data))


def reseal(artifact: Path) -> None:
    """Gives changed weights a right hash, as an attacker would."""
    path, weights = artifact / "manifest.json", (artifact / "weights.safetensors").read_bytes()
    document = json.loads(path.read_text())
    facts = {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    document["files"]["weights.safetensors"] = facts
    document["digest"] = ""

    def canonical() -> bytes:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

    document["digest"] = hashlib.sha256(canonical()).hexdigest()
    path.write_bytes(canonical())


ARRAYS: dict[str, Callable[[Any], object]] = {
    f"{QUERY}:levels": lambda a: a.fill(127),
    "encoder.layer.1.output.dense.weight:row_shifts": lambda a: a.fill(255),
    "embeddings.LayerNorm:constants": lambda a: a.fill(-(1 << 31)),
    "embeddings.LayerNorm:channels": lambda a: a.fill(-128),
    "integer:exp2": lambda a: a.fill((1 << 31) - 1),
    "integer:gelu": lambda a: a.fill(-1),
    "integer:rsqrt": lambda a: a.fill(0),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_damaged_arrays(tvmq: Run, artifact: Path, name: str) -> None:
    """Found by their hash; with a right hash by the self-test, and never worse than wrong numbers."""
    spoil(artifact, name, ARRAYS[name])
    outcome = tvmq("verify", artifact)
    assert (outcome.code, outcome.err.count("\n")) == (5, 1)
    with pytest.raises(VerificationError, match="contents differ"):
        encoder.load(artifact)
    reseal(artifact)
    assert tvmq("verify", artifact).code == 0
    with pytest.raises(VerificationError, match="the self-test failed at ISA level"):
        encoder.load(artifact)


def test_another_mode_in_the_manifest(artifact: Path) -> None:
    path = artifact / "manifest.json"
    document = json.loads(path.read_text())
    assert document["mode"] == "block-int"
    path.write_text(json.dumps(document | {"mode": "int4"}, indent=2, ensure_ascii=False) + "\n")
    with pytest.raises(VerificationError, match="Invalid enum value 'int4'"):
        encoder.load(artifact)
    path.write_text(json.dumps(document | {"mode": "float"}, indent=2, ensure_ascii=False) + "\n")
    with pytest.raises(VerificationError, match="changed since it was written"):
        encoder.load(artifact)
