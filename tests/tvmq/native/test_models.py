# SPDX-License-Identifier: Apache-2.0
"""The native runtime gives what the Relax VM gives: the same tokens, scores and rows, to the last bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmq
from tvmq.errors import InputError, UsageError, VerificationError
from tvmq.loading import EXECUTOR

LENGTHS = (5, 1, 30, 12, 12, 2, 7, 18, 3, 25)


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [[*rng.integers(2, 319, length).tolist(), 0] for length in LENGTHS]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """``both(artifact)``: the same artifact on the VM and on the native runtime."""
    opened: list[Any] = []

    def open_both(artifact: Path, **options: Any) -> tuple[Any, Any]:
        for name in ("vm", "native"):
            monkeypatch.setenv(EXECUTOR, name)
            opened.append(tvmq.load(artifact, **options))
        assert type(opened[-1]._model).__name__.startswith("Native")
        return opened[-2], opened[-1]

    yield open_both
    for one in opened:
        one.close()


def words(translator: Any, sources: list[list[int]], **options: Any) -> list[list[tuple[Any, str]]]:
    """Tokens and scores; repr, since the scores of greedy search are NaN."""
    return [
        [(h.tokens, repr(h.score)) for h in best] for best in translator.translate_ids(sources, **options)
    ]


@pytest.mark.parametrize(
    ("preset", "target", "threads"),
    [("3-bit", "linux-x86-64", 1), ("3-bit", "linux-x86-64", 2), ("chung2020-2.5-1.8-3.7", "host", 1)],
)
def test_translations_are_the_vms(
    compiled: Callable[..., Path], both: Any, sources: list[list[int]], preset: str, target: str, threads: int
) -> None:
    vm, native = both(compiled(preset, target=target), threads=threads)
    for options in (
        {"beams": 1},
        {"beams": 4, "n_best": 4},
        {"beams": 3, "n_best": 2, "length_penalty": 0.6, "max_new_tokens": 7},
        {"beams": 2, "forced_length": 5},
        {"beams": 1, "forced_length": 4},
    ):
        for size in (1, 4, 16):
            expected = words(vm, sources, batch_size=size, **options)
            assert words(native, sources, batch_size=size, **options) == expected


def test_every_level_gives_the_same(compiled: Callable[..., Path], both: Any, sources: Any) -> None:
    from targets import detect_host

    artifact = compiled("3-bit", target="linux-x86-64")
    found = []
    for level in detect_host():
        _, native = both(artifact, isa=level)
        found.append(words(native, sources, beams=4, n_best=4))
    assert all(one == found[0] for one in found)


ENCODERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("BertForSequenceClassification", {"num_attention_heads": 2}, {"mode": "block-int"}),
    # 8 x 31 logits: 15 * (247 / 15) is less than 247, the last place that the self-test compares
    ("RobertaForTokenClassification", {"num_labels": 31}, {"preset": "3-bit"}),
]


@pytest.mark.parametrize(("architecture", "changes", "plan"), ENCODERS)
def test_encodings_are_the_vms(
    encoder_model: Callable[..., Path],
    tmp_path: Path,
    both: Any,
    architecture: str,
    changes: dict[str, Any],
    plan: dict[str, Any],
) -> None:
    from targets import detect_host
    from tvmq.options import CompileOptions, PlanOptions

    artifact = tmp_path / "encoder.tvmq"
    options = CompileOptions(plan=PlanOptions(**plan), isa_levels=(detect_host()[0],))
    tvmq.compile(encoder_model(architecture, **changes), artifact, options)
    vm, native = both(artifact)
    texts = ["one two", "a b c d e f g h", "it", "the end of all this"]
    functions = ["embed", vm.head] if vm.head else ["embed"]
    tokens = vm.tokenize(texts)
    for function in functions:
        for size in (1, 3):
            pairs = zip(
                vm.run(function, tokens, batch_size=size),
                native.run(function, tokens, batch_size=size),
                strict=True,
            )
            for wanted, found in pairs:
                assert found.dtype == wanted.dtype
                assert found.tobytes() == wanted.tobytes()


def test_wrong_inputs_are_refused(compiled: Callable[..., Path], both: Any) -> None:
    _, native = both(compiled("3-bit", target="linux-x86-64"))
    with pytest.raises(InputError, match="sentence 1 holds a token id outside"):
        native.translate_ids([[320, 0]])
    with pytest.raises(UsageError, match="max_new_tokens is 100000"):
        native.translate_ids([[5, 0]], max_new_tokens=100_000)


def test_an_unknown_executor_is_refused(
    compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXECUTOR, "relay")
    with pytest.raises(UsageError, match="TVMQ_EXECUTOR is 'relay', expected native or vm"):
        tvmq.load(compiled("3-bit", target="linux-x86-64"))


def anew(path: Path, data: bytes) -> None:
    """Another file of that name: one that this process has mapped must not change under it."""
    path.unlink()
    path.write_bytes(data)


def test_a_changed_library_is_refused(
    compiled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from targets import detect_host

    monkeypatch.setenv(EXECUTOR, "native")
    artifact = tmp_path / "changed.tvmq"
    shutil.copytree(compiled("3-bit", target="linux-x86-64"), artifact)
    levels = {level["name"]: level["library"] for level in tvmq.inspect(artifact)["libraries"]}
    for name in (levels[detect_host()[0]], "weights.safetensors", "lib/libtvmq.so"):
        path = artifact / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        anew(path, data)
        with pytest.raises(VerificationError, match="contents differ"), closing(tvmq.load(artifact)):
            pass
        data[len(data) // 2] ^= 1
        anew(path, data)


def test_an_interrupt_ends_a_long_translation(compiled: Callable[..., Path]) -> None:
    """It would take minutes; Python alone would see the interrupt only afterwards."""
    code = (
        f"import tvmq\nwith tvmq.load({str(compiled('3-bit', target='linux-x86-64'))!r}) as translator:\n"
        "    print('go', flush=True)\n    try:\n"
        "        options = {'max_new_tokens': 511, 'forced_length': 511, 'beams': 4, 'batch_size': 2000}\n"
        "        translator.translate_ids([[5] * 30 + [0]] * 2000, **options)\n"
        "    except KeyboardInterrupt:\n        print('stopped')\n"
        "        print(len(translator.translate_ids([[5, 0]])))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "stopped\n1\n"
