# SPDX-License-Identifier: Apache-2.0
"""Linking: stripped libraries that run, workspaces of planned functions, the error without a compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relay_passes.bit_plan import BitPlan
from targets import detect_host, get_target
from tvmq import build, pipeline
from tvmq.errors import MissingToolError
from tvmq.export import export_program
from tvmq.frontend import import_program
from tvmq.generated import complete
from tvmq.vm import Machine, aligned, as_numpy
from tvmq.weights import collect

PLAN = BitPlan(schema=1, blocks=(), words=(), source="test")


class Chain(nn.Module):
    """Fixed extents, intermediate results of two sizes, views between them, two results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.norm = nn.Linear(32, 48), nn.Linear(48, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(3):
            x = self.norm(x + self.fc2(torch.relu(self.fc1(x))))
        return x, (x * 2).reshape(6, 32)


@pytest.fixture(scope="module")
def chain() -> tuple[nn.Module, Any]:
    module = Chain().eval().requires_grad_(False)
    graphs = import_program(export_program(module, (torch.zeros(2, 3, 32),)), "main")
    target = get_target(detect_host()[0])
    common = pipeline.run(graphs, pipeline.common_phases(PLAN), target.to_tvm())
    return module, build.lower(common, PLAN, target, "int8", None)


def test_names(chain: Any) -> None:
    _, module = chain
    names = build.parameter_names(module)
    assert list(names) == ["main"]
    assert set(names["main"]) == {
        "fc1.weight:packed",
        "fc1.bias",
        "fc2.weight:packed",
        "fc2.bias",
        "norm.weight",
        "norm.bias",
    }
    kernels = build.kernel_names(module)
    assert {"float_gemm", "float_gemm1"} <= set(kernels)
    assert "main" not in kernels


@pytest.mark.parametrize("planned", [(), ("main",)])
def test_a_library_runs_with_and_without_workspaces(
    chain: Any, tmp_path: Path, planned: tuple[str, ...]
) -> None:
    """Workspaces hold garbage from earlier calls: only what a call writes itself may be read."""
    source, module = chain
    library = tmp_path / "chain.so"
    spaces = build.link(module, get_target(detect_host()[0]), library, planned).workspaces
    assert set(spaces) == set(planned)
    state = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    names = build.parameter_names(module)["main"]
    arrays = complete(collect(names, {}, state.__getitem__, set(), {}), {})
    machine = Machine(library)
    buffers = [aligned(array.shape, array.dtype) for array in (arrays[name] for name in names)]
    for buffer, name in zip(buffers, names, strict=True):
        buffer[...] = arrays[name]
    work = [aligned(shape, dtype) for dtype, shape in spaces.get("main", ())]
    assert bool(work) == bool(planned)
    x = aligned((2, 3, 32), np.float32)
    for seed in (1, 2):
        x[...] = np.random.default_rng(seed).standard_normal(x.shape, np.float32)
        for space in work:
            space.view(np.uint8).fill(0xFF)
        expected = source(torch.from_numpy(x.copy()))
        result = machine.call("main", [machine.tensor(a) for a in (x, *buffers, *work)])
        for found, wanted in zip(result, expected, strict=True):
            np.testing.assert_allclose(as_numpy(found), wanted.numpy(), rtol=0, atol=1e-4)


def test_libraries_are_stripped_and_reproducible(chain: Any, tmp_path: Path) -> None:
    _, module = chain
    paths = [tmp_path / name for name in ("a.so", "b.so")]
    for path in paths:
        build.link(module, get_target(detect_host()[0]), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if shutil.which("readelf"):
        sections = subprocess.run(
            ["readelf", "-SW", str(paths[0])], capture_output=True, text=True, check=True
        ).stdout
        assert ".symtab" not in sections


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"no C compiler .*install gcc or clang"):
        build.require_linker(get_target(detect_host()[0]))
    tool = tmp_path / "clang"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert build.require_linker(get_target(detect_host()[0])).command == (str(tool),)
