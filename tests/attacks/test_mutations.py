# SPDX-License-Identifier: Apache-2.0
"""Random damage to valid inputs: a TvmqError, a failed verification, or no harm; never anything else."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.artifact import inspect, open_artifact, verify
from tvmq.checkpoint import Checkpoint
from tvmq.errors import TvmqError

CHECKPOINT_FILES = ("config.json", "generation_config.json", "model.safetensors", "token_freq.tsv")
ARTIFACT_FILES = ("manifest.json", "weights.safetensors", "lib/v3.so")

Mutation = tuple[str, float, float, bytes]
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "splice", "insert", "digit"]),
        st.floats(0, 1),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=3,
)


def mutate(data: bytes, mutations: list[Mutation]) -> bytes:
    """Flips, cuts, copies and inserts bytes at places given as fractions of the length."""
    for kind, first, second, noise in mutations:
        here, there = (int(x * len(data)) for x in (first, second))
        match kind:
            case "flip":
                data = data[:here] + bytes(b ^ noise[0] for b in data[here : here + 1]) + data[here + 1 :]
            case "cut":
                data = data[: min(here, there)] + data[max(here, there) :]
            case "splice":
                data = data[:here] + data[there : there + 16] + data[here:]
            case "insert":
                data = data[:here] + noise + data[here:]
            case _:
                digits = [i for i, b in enumerate(data) if 48 <= b < 58]
                if digits:
                    at = digits[int(first * (len(digits) - 1))]
                    data = data[:at] + b"%d" % (noise[0] % 10) + data[at + 1 :]
    return data


@contextlib.contextmanager
def damaged(pristine: Path, name: str, data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / pristine.name
        shutil.copytree(pristine, copy)
        (copy / name).write_bytes(data)
        yield copy


def read_everything(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    for name in checkpoint.names():
        checkpoint.tensor(name)
    checkpoint.frequencies()
    assert len(checkpoint.sha256) == 64


@settings(deadline=None, max_examples=250)
@given(name=st.sampled_from(CHECKPOINT_FILES), mutations=MUTATIONS)
def test_checkpoint(pristine_checkpoint: Path, name: str, mutations: list[Mutation]) -> None:
    data = mutate((pristine_checkpoint / name).read_bytes(), mutations)
    with damaged(pristine_checkpoint, name, data) as folder, contextlib.suppress(TvmqError):
        read_everything(folder)


@settings(deadline=None, max_examples=250)
@given(name=st.sampled_from(ARTIFACT_FILES), mutations=MUTATIONS)
def test_artifact(pristine_artifact: Path, name: str, mutations: list[Mutation]) -> None:
    original = (pristine_artifact / name).read_bytes()
    data = mutate(original, mutations)
    with damaged(pristine_artifact, name, data) as folder:
        with contextlib.suppress(TvmqError):
            inspect(folder)
            open_artifact(folder).weights()
        try:
            ok = verify(folder).ok
        except TvmqError:
            ok = False
    assert ok == (data == original)


def test_every_flipped_byte_of_the_manifest_is_noticed(artifact: Path) -> None:
    path = artifact / "manifest.json"
    original = path.read_bytes()
    assert verify(artifact).ok
    unnoticed = []
    for at in range(len(original)):
        path.write_bytes(original[:at] + bytes([original[at] ^ 1 << at % 7]) + original[at + 1 :])
        with contextlib.suppress(TvmqError):
            if verify(artifact).ok:
                unnoticed.append(at)
    assert unnoticed == []


def test_every_flipped_byte_of_the_weights_is_noticed(artifact: Path) -> None:
    path = artifact / "weights.safetensors"
    original = path.read_bytes()
    for at in range(len(original)):
        path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
        assert not verify(artifact).ok
