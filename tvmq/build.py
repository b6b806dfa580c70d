# SPDX-License-Identifier: Apache-2.0
"""From a lowered Relax module to one stripped shared library per ISA level."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.support import cc

from relay_passes.bit_plan import BitPlan
from relay_passes.lowering import is_entry
from schedules.lut_table import Tables
from targets.spec import TargetSpec

from . import pipeline
from .errors import MissingToolError

LINKERS = ("cc", "gcc", "clang")


def find_linker() -> str:
    """A C compiler to link with; MissingToolError where there is none."""
    for name in LINKERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise MissingToolError("no C compiler to link with (looked for cc, gcc, clang); install gcc or clang")


def lower(
    module: tvm.IRModule, plan: BitPlan, target: TargetSpec, tables: Tables, dump: Path | None
) -> tvm.IRModule:
    """The module as kernels of one ISA level, ready to compile."""
    phases = pipeline.target_phases(plan, target, tables)
    return pipeline.run(module, phases, target.to_tvm(), dump)


def parameter_names(module: tvm.IRModule) -> dict[str, tuple[str, ...]]:
    """Entry function -> names of its stored weights, in the order of its parameters."""
    return {
        str(var.name_hint): tuple(
            str(p.name) for p in list(function.params)[int(function.attrs["num_input"]) :]
        )
        for var, function in module.functions.items()
        if is_entry(function)
    }


def kernel_names(module: tvm.IRModule) -> tuple[str, ...]:
    """Names of the compiled kernels."""
    return tuple(
        sorted(str(v.name_hint) for v, f in module.functions.items() if not isinstance(f, relax.Function))
    )


def link(module: tvm.IRModule, target: TargetSpec, path: Path) -> None:
    """Compiles and links ``module`` to ``path``."""
    linker = find_linker()
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
        executable = relax.build(module, target.to_tvm())

    def create(output: str, objects: Sequence[str], options: Any = None, **_: Any) -> None:
        cc.create_shared(output, list(objects), ["-s", "-Wl,--build-id=none"], cc=linker)

    create.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(path), fcompile=create)
