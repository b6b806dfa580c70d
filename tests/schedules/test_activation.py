# SPDX-License-Identifier: Apache-2.0
"""Activations equal their meaning in double precision within the errors that their docstrings state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schedules.activation import ACTIVATIONS, activate, reference
from schedules.tir import LANES, KernelBuilder, T, body, load, store

VALUES = np.concatenate(
    [np.linspace(-9, 9, 1 << 16), [0.0, -0.0, 1e-30, -1e-30, 40.0, -40.0, 3e4, -3e4]]
).astype(np.float32)
ERROR = {"": (0.0, 0.0), "relu": (0.0, 0.0), "gelu": (8e-7, 0.0), "gelu_tanh": (1e-6, 5e-7),
         "tanh": (2e-7, 0.0)}  # fmt: skip
"""Absolute error, and error relative to the size of x."""


def elementwise(name: str, lanes: int) -> Any:
    """The activation over float32[n], ``lanes`` values at a time."""
    kernel = KernelBuilder("activation")
    with kernel.define():
        n = T.int64()
        x, y = kernel.param("x", (n,)), kernel.param("y", (n,))
        with body([y], [x]), T.serial(0, T.floordiv(n, lanes)) as i:
            store(y, (i * lanes,), activate(name, load(x, (i * lanes,), lanes), lanes), lanes)
    return kernel.result


def run(build: Any, level: Any, name: str, x: NDArray[np.float32], lanes: int = LANES) -> NDArray[np.float32]:
    padded = np.pad(x, (0, -x.size % LANES))
    return build(elementwise(name, lanes), level)([padded], (padded.shape, "float32"))[0][: x.size]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_meaning(build: Any, level: Any, name: str) -> None:
    absolute, relative = ERROR[name]
    y, wanted = run(build, level, name, VALUES), reference(name, VALUES)
    assert (np.abs(y - wanted.astype(np.float64)) <= absolute + relative * np.abs(VALUES)).all()


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "tanh"])
def test_short_vectors_give_the_same_bits(build: Any, level: Any, name: str) -> None:
    assert run(build, level, name, VALUES, 4).tobytes() == run(build, level, name, VALUES).tobytes()


def test_tanh_keeps_the_sign_of_zero(build: Any, level: Any) -> None:
    y = run(build, level, "tanh", np.array([0.0, -0.0], np.float32))
    assert np.signbit(y).tolist() == [False, True]


def test_gelu_ends_exactly(build: Any, level: Any) -> None:
    x = np.array([5.5, 6, 80, 3e4, -5.5, -6, -80, -3e4], np.float32)
    assert run(build, level, "gelu", x).tolist() == [5.5, 6, 80, 3e4, 0, 0, 0, 0]


def test_gelu_reference_is_torchs() -> None:
    import torch

    x = torch.from_numpy(VALUES)
    for name, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
        torch.testing.assert_close(
            torch.from_numpy(reference(name, VALUES)), torch.nn.functional.gelu(x, approximate=approximate)
        )


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown activation 'mish'; known: relu, gelu, gelu_tanh, tanh"):
        activate("mish", None)
