# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: golden files, tests bound to an ISA level, the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files under tests/golden")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose ISA level this CPU cannot run, saying which.

    Levels of another architecture run under an emulator where one and a cross compiler are installed.
    """
    from targets import detect_host, get_target, host_architecture

    for marker in item.iter_markers("isa"):
        (level,) = marker.args
        if get_target(level).architecture != host_architecture():
            missing = missing_for_emulation(level)
            if missing:
                pytest.skip(f"{level} needs {missing}")
        elif level not in detect_host():
            pytest.skip(f"this CPU does not run {level}")


def missing_for_emulation(level: str) -> str:
    """What would have to be installed to run code of another architecture here; empty if nothing."""
    from targets import get_target
    from targets.toolchain import find_emulator, find_linker

    spec = get_target(level)
    if find_emulator(spec) is None:
        return f"qemu-user and libc6-dev-arm64-cross to run {spec.architecture} code"
    return "" if find_linker(spec) else f"a cross compiler for {spec.architecture}"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/<name>; ``pytest --update-golden`` writes it instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {name}; write it with: pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"{name} differs; if right: pytest --update-golden"

    return check


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one command line gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def tvmq(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process: ``tvmq("verify", path)``."""

    def run(*words: object) -> Outcome:
        from tvmq.cli import main

        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Marian folder with random weights that compiles in seconds: 2 + 2 layers, width 64, 320 words."""
    from benchmarks.make_base import BaseShape, write_base

    shape = BaseShape(layers=2, width=64, ffn=128, heads=4, vocabulary=320)
    folder = write_base(tmp_path_factory.mktemp("tiny") / "model", seed=3, shape=shape)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"max_length": 13}))
    return folder


@pytest.fixture(scope="session")
def compiled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``compiled("3-bit", tables="exact")``: the artifact of the tiny model, made once per session."""
    from tvmq import api
    from tvmq.options import CompileOptions, PlanOptions

    made: dict[tuple[str, tuple[Any, ...]], Path] = {}
    folder = tmp_path_factory.mktemp("compiled")

    def make(preset: str, **options: Any) -> Path:
        key = (preset, tuple(sorted(options.items())))
        if key not in made:
            path = folder / f"{len(made)}.tvmq"
            api.compile(tiny_model, path, CompileOptions(plan=PlanOptions(preset=preset), **options))
            made[key] = path
        return made[key]

    return make


@pytest.fixture(scope="session")
def encoder_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``encoder_model("BertForSequenceClassification", id2label={0: "a", 1: "b"})``: a folder, made once.

    A random model as transformers saves it, with a tokenizer: 2 layers, width 32, 4 heads, 128 pieces, 24
    positions. Keywords change the config.
    """
    import shutil

    from benchmarks.make_bert import BertShape, write_bert

    made: dict[str, Path] = {}
    shape = BertShape(layers=1, width=32, ffn=48, heads=4, vocabulary=128, positions=24)
    base = write_bert(tmp_path_factory.mktemp("tokenizer") / "bert", shape=shape)

    def make(architecture: str, **changes: Any) -> Path:
        key = f"{architecture} {sorted(changes.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("encoder") / architecture
            _save_random_encoder(architecture, folder, changes)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(base / name, folder / name)
            made[key] = folder
        return made[key]

    return make


def _save_random_encoder(architecture: str, folder: Path, changes: dict[str, Any]) -> None:
    import torch
    import transformers

    stem = architecture.partition("For")[0].removesuffix("Model")
    sizes: dict[str, Any] = {"vocab_size": 128, "max_position_embeddings": 24}
    if stem == "DistilBert":
        sizes |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    else:
        sizes |= {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        }
    config = getattr(transformers, f"{stem}Config")(**sizes | changes)
    model = getattr(transformers, architecture)(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 2:
                tensor.copy_(noise / tensor.shape[-1] ** 0.5)
            else:
                tensor.copy_(0.2 * noise + (1.0 if name.lower().endswith("norm.weight") else 0.0))
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def compiled_encoder(
    encoder_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``compiled_encoder("BertModel", "fp32", pooling=PoolingOptions(...))``: for this CPU, made once."""
    from targets import detect_host
    from tvmq import api
    from tvmq.options import CompileOptions, PlanOptions

    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("compiled-encoders")

    def make(architecture: str, preset: str = "fp32", **options: Any) -> Path:
        key = f"{architecture} {preset} {sorted(options.items())}"
        if key not in made:
            path = folder / f"{len(made)}.tvmq"
            facts = {"plan": PlanOptions(preset=preset), "isa_levels": (detect_host()[0],), **options}
            api.compile(encoder_model(architecture), path, CompileOptions(**facts))
            made[key] = path
        return made[key]

    return make
