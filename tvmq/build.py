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
from relay_passes.plan_buffers import Key, PlanBuffers, workspace_keys
from schedules.lut_table import Tables
from schedules.tuning_log import NO_RECORDS, TuningLog
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
    module: tvm.IRModule,
    plan: BitPlan,
    target: TargetSpec,
    tables: Tables,
    dump: Path | None,
    log: TuningLog = NO_RECORDS,
) -> tvm.IRModule:
    """The module as kernels of one ISA level, ready to compile."""
    phases = pipeline.target_phases(plan, target, tables, log)
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


def link(
    module: tvm.IRModule, target: TargetSpec, path: Path, planned: Sequence[str] = ()
) -> dict[str, list[Key]]:
    """Compiles and links ``module`` to ``path``.

    Args:
        module: lowered for ``target``.
        target: an ISA level.
        path: the library to write.
        planned: entry functions that take their intermediate buffers as workspaces.

    Returns:
        For each of ``planned``, dtype and shape of the workspaces that it takes after its weights.
    """
    linked = shared_library()
    workspaces: dict[str, list[Key]] = {}

    @tvm.transform.module_pass(opt_level=0, name="tvmq.build")
    def lowering(mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        for step in _before_memory():
            mod = step(mod)
        mod = PlanBuffers(names=tuple(planned))(mod)
        for var, function in mod.functions.items():
            if str(var.name_hint) in planned:
                workspaces[str(var.name_hint)] = workspace_keys(function)
        for step in _after_memory():
            mod = step(mod)
        return mod

    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
        executable = relax.build(module, target.to_tvm(), relax_pipeline=lowering)

    executable.export_library(str(path), fcompile=linked)
    return workspaces


def shared_library() -> Any:
    """What TVM calls to link object files; MissingToolError where no compiler links."""
    linker = find_linker()

    def create(output: str, objects: Sequence[str], options: Any = None, **_: Any) -> None:
        cc.create_shared(output, list(objects), ["-s", "-Wl,--build-id=none"], cc=linker)

    create.output_format = "so"  # type: ignore[attr-defined]
    return create


def _before_memory() -> list[Any]:
    """TVM's own build passes up to explicit allocation."""
    transform = relax.transform
    return [
        transform.LegalizeOps(),
        transform.RewriteDataflowReshape(),
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
    ]


def _after_memory() -> list[Any]:
    """TVM's own build passes from allocation to the virtual machine."""
    transform = relax.transform
    return [
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(emit_err_ctx=False),
        transform.AttachGlobalSymbol(),
    ]
