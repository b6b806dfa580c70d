# SPDX-License-Identifier: Apache-2.0
"""From a user's own ``torch.nn.Module`` to an artifact: export, plan, quantize, lower, build, compare, write.

The module's tensors are planned under their own names; what tvmq has no kernel for is compiled by TVM.
The result is compared with PyTorch on the dequantized weights before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from numpy.typing import NDArray
from torch import nn

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, encode_plan, plan_hash
from relay_passes.fold_transpose import transposed_tensors

from . import build, module_selftest, pipeline
from .artifact import Manifest, Model, Weights, staged_artifact, write_artifact, write_weights
from .assembly import (
    WEIGHTS_FILE,
    Clock,
    CompileReport,
    Libraries,
    best_level,
    build_libraries,
    pick_levels,
    stored_bits,
    tool_versions,
)
from .checkpoint import read_frequencies
from .errors import InputError, UsageError, VerificationError
from .families.family import TensorInfo
from .loading import MODULE_FAMILY
from .model_plan import plan_tensors
from .module_export import ExportedModule, export_module
from .module_plan import ModuleGraph
from .module_runtime import CompiledModule
from .options import CompileOptions, Progress, no_progress
from .quantization import quantize_model
from .store import atomic_dir
from .weights import collect

WORST_ERROR = {"int8": 0.2, "exact": 0.01}
"""Relative error against PyTorch on the dequantized weights above which the artifact is not written.

Far above rounding (int8 tables: about 0.01): only a wrongly translated operator comes here."""


def compile_module(
    module: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    output: Path,
    options: CompileOptions = CompileOptions(),
    *,
    dynamic_shapes: Any = None,
    progress: Progress = no_progress,
) -> CompileReport:
    """Compile a module into an artifact folder that ``tvmq.load`` runs; see ``tvmq.compile``.

    Raises:
        TvmqError: module, inputs, options or output cannot be used.
    """
    levels = pick_levels(options.target, options.isa_levels)
    for level in levels:
        build.require_linker(level)
    clock = Clock(progress)
    with atomic_dir(output, options.force) as staging:
        clock.start("export")
        exported = export_module(module, example_inputs, dynamic_shapes)
        if options.dump_ir is not None:
            pipeline.make_dump_folder(options.dump_ir)
        target = levels[0].to_tvm()
        imported, _ = pipeline.common_phases(BitPlan(schema=1, blocks=(), words=(), source=""))
        graphs = pipeline.run(exported.graphs, [imported], target, options.dump_ir)
        graph = ModuleGraph(graphs)
        exported = exported.with_limits(graph.word_limits())
        frequencies = _frequencies(options)
        infos = graph.tensors(frequencies)
        plan = plan_tensors(infos, options.plan, frequencies)
        if plan.mode != "float":
            raise UsageError(f"mode {plan.mode} is for folders of encoders; compile a module with mode float")
        source = _Tensors(exported.state, transposed_tensors(graphs))
        clock.start("quantize")
        quantized = quantize_model(source, plan, frequencies, progress)
        clock.start("lower")
        _, annotate = pipeline.common_phases(plan)
        graphs = pipeline.run(graphs, [annotate], target, options.dump_ir)
        libraries = _build(graphs, staging, plan, levels, options, clock)
        clock.start("pack")
        stored = {name for names in libraries.parameters.values() for name in names}
        arrays = collect(stored, quantized, source.tensor, set(), {})
        write_weights(staging / WEIGHTS_FILE, arrays)
        (staging / "plan.json").write_bytes(encode_plan(plan))
        manifest = _manifest(exported, infos, plan, arrays, libraries, options)
        clock.start("self-test")
        dequantized = source.original({name: planes.dequantize() for name, planes in quantized.items()})
        quantizes = any(getattr(entry, "bits", 0) != FLOAT_BITS for entry in plan.entries())
        worst = WORST_ERROR[options.tables if quantizes else "exact"]
        _self_test(staging, manifest, exported, dequantized, best_level(levels), worst)
        written = write_artifact(staging, manifest)
        clock.stop()
    return CompileReport(output=output, manifest=written, seconds=clock.seconds)


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The module's weights as the graphs use them: matrices of ``x @ W`` stand as [outputs, inputs]."""

    state: Mapping[str, NDArray[np.float32]]
    transposed: set[str]

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def names(self) -> list[str]:
        return sorted(self.state)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensor(name).shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        value = self.state[name]
        return value.T if name in self.transposed else value

    def original(self, values: Mapping[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
        """Tensors in the graph's layout as the module holds them."""
        turned = {name: value.T if name in self.transposed else value for name, value in values.items()}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in turned.items()}


def _frequencies(options: CompileOptions) -> NDArray[np.int64] | None:
    if options.plan.text is not None:
        raise UsageError("a module has no tokenizer to count words with; give frequencies instead of text")
    return None if options.plan.frequencies is None else read_frequencies(options.plan.frequencies, None)


def _build(
    graphs: tvm.IRModule,
    staging: Path,
    plan: BitPlan,
    levels: Sequence[Any],
    options: CompileOptions,
    clock: Clock,
) -> Libraries:
    """As ``build_libraries``; what TVM cannot compile is the user's to know in one sentence."""
    try:
        return build_libraries(graphs, staging, plan, levels, options.tables, options.dump_ir, clock)
    except (tvm.error.InternalError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"TVM cannot compile an operator of this module ({reason[-1] if reason else 'no reason given'}); "
            "write it with linears, attention, norms and element-wise operators"
        ) from error


def _manifest(
    exported: ExportedModule,
    infos: Sequence[TensorInfo],
    plan: BitPlan,
    arrays: Mapping[str, NDArray[Any]],
    libraries: Libraries,
    options: CompileOptions,
) -> Manifest:
    return Manifest(
        versions=tool_versions(),
        family=MODULE_FAMILY,
        model=Model(
            name=exported.name, sha256=_hash(exported.state), licence="not stated by the module", revision=""
        ),
        plan_sha256=plan_hash(plan),
        tables=options.tables,
        target=options.target,
        isa_levels=libraries.levels,
        weights=Weights(file=WEIGHTS_FILE, parameters=libraries.parameters),
        architecture=exported.signature.to_architecture(),
        generation={},
        bits=stored_bits(infos, plan, arrays),
    )


def _hash(state: Mapping[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(state[name]).data)
    return digest.hexdigest()


def _self_test(
    staging: Path,
    manifest: Manifest,
    exported: ExportedModule,
    dequantized: Mapping[str, torch.Tensor],
    level: str | None,
    worst: float,
) -> None:
    """Runs the new library on a small input, compares with PyTorch and records the answer."""
    signature = exported.signature
    recorded = module_selftest.small_inputs(signature, exported.examples)
    if level is None:
        module_selftest.record(staging, recorded, [])
        return
    inputs = module_selftest.arrays(signature, recorded)
    with CompiledModule(staged_artifact(staging, manifest), level, f"lib/{level}.so") as compiled:
        outputs = module_selftest.as_list(compiled(*inputs))
    expected = exported.run(dequantized, inputs)
    module_selftest.record(staging, recorded, outputs)
    for spec, found, wanted in zip(signature.outputs, outputs, expected, strict=True):
        error = _relative_error(found, wanted)
        if found.shape != wanted.shape or error > worst:
            raise VerificationError(
                f"output {spec.name} of the compiled module differs from PyTorch's by {error:.1%} of its "
                "size: an operator is not computed as in PyTorch; please report it with the module"
            )


def _relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Distance over size of the finite values; 1 where values that are not finite differ."""
    if found.shape != wanted.shape:
        return 1.0
    a, b = (x.astype(np.float64).ravel() for x in (found, wanted))
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return 1.0
    return float(np.linalg.norm((a - b)[finite]) / max(float(np.linalg.norm(b[finite])), 1e-12))
