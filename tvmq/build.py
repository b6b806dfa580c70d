# SPDX-License-Identifier: Apache-2.0
"""From a lowered Relax module to one stripped shared library per ISA level."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from relay_passes.bit_plan import BitPlan
from relay_passes.lowering import is_entry
from relay_passes.plan_buffers import Key, PlanBuffers, workspace_keys
from schedules.lut_table import Tables
from schedules.tuning_log import NO_RECORDS, TuningLog
from targets.spec import TargetSpec
from targets.toolchain import link_libraries, link_options

from . import pipeline
from .native.flatten import flatten
from .native.library import require_linker
from .native.program import Program

OPTIONS = ("-shared", "-fPIC", "-s", "-Wl,--build-id=none")
NOT_PROTECTED = "-Wl,-z,norelro"
"""Else up to 64 KB would be filled to keep a few addresses read-only beside slots that are written anyway."""
SONAME = "libtvmq_kernels.so"
"""The same for all, since levels whose kernels are the same share a library; it is opened by its path."""
EXPORTS = "{ global: __tvm_ffi_*; __TVM*; local: *; };\n"
"""A linker's version script: kernels, the executable, and the slots that their host fills."""


class LinkError(Exception):
    """The linker failed; the text is what it printed."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """What the caller of a linked library must know.

    Attributes:
        workspaces: planned function -> dtype and shape of the buffers that it takes after its weights.
        program: its functions as kernel calls, where asked for.
    """

    workspaces: dict[str, list[Key]]
    program: Program | None


def link(
    module: tvm.IRModule, target: TargetSpec, path: Path, planned: Sequence[str] = (), *, flat: bool = False
) -> Linked:
    """Compiles and links ``module`` to ``path``.

    Args:
        module: lowered for ``target``.
        target: an ISA level.
        path: the library to write.
        planned: entry functions that take their intermediate buffers as workspaces.
        flat: give the program for the native runtime too.

    Raises:
        MissingToolError: nothing links for ``target``.
        LinkError: the linker failed.
        NotFlatError: with ``flat``, a function that is more than kernel calls.
    """
    create = linking(target)
    workspaces: dict[str, list[Key]] = {}
    explicit: list[tvm.IRModule] = []

    @tvm.transform.module_pass(opt_level=0, name="tvmq.build")
    def lowering(mod: tvm.IRModule, _: Any) -> tvm.IRModule:
        for step in _before_memory():
            mod = step(mod)
        explicit.append(mod)
        mod = PlanBuffers(names=tuple(planned))(mod)
        for var, function in mod.functions.items():
            if str(var.name_hint) in planned:
                workspaces[str(var.name_hint)] = workspace_keys(function)
        for step in _after_memory():
            mod = step(mod)
        return mod

    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
        executable = relax.build(module, target.to_tvm(), relax_pipeline=lowering)

    executable.export_library(str(path), fcompile=create)
    return Linked(workspaces=workspaces, program=flatten(explicit[-1]) if flat else None)


def linking(target: TargetSpec) -> Any:
    """What ``export_library`` calls to link; MissingToolError where nothing links for ``target``."""
    linker = require_linker(target)

    def create(output: str, objects: Sequence[str], options: Any = None, **_: Any) -> None:
        exports = Path(objects[0]).with_name("exports.map")
        exports.write_text(EXPORTS, encoding="ascii")
        named = f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={exports}"
        try:
            ends = link_libraries(linker)
            command = [*linker.command, *OPTIONS, *link_options(linker), NOT_PROTECTED, *named, "-o", output]
            subprocess.run(
                [*command, *objects, *ends],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            raise LinkError(error.stdout or error.stderr or "no message") from error

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
