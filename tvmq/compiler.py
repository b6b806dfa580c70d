# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint and a plan to an artifact folder: export, quantize, lower, build, self-test, write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, encode_plan, plan_hash
from relay_passes.fold_transpose import transposed_tensors
from schedules.lut_table import Tables
from schedules.tuning_log import NO_RECORDS, TuningLog

from . import build, pipeline
from .artifact import Bits, IsaLevel, Manifest, Model, Weights, write_artifact, write_weights
from .assembly import (
    WEIGHTS_FILE,
    Clock,
    CompileReport,
    best_level,
    build_libraries,
    pick_levels,
    stored_bits,
    tool_versions,
)
from .calibration import Calibration, word_counts
from .checkpoint import Checkpoint
from .errors import InputError
from .families import get_family
from .integer_plan import BLOCK_INT
from .integer_weights import IntegerBody
from .kernels.model_workloads import kernel_schedules
from .model_plan import check_mode, other_params
from .options import PoolingOptions, Progress, no_progress
from .quantization import quantize_model
from .store import atomic_dir
from .tasks import Job, get_task
from .tasks.task import Facts
from .weights import Source, collect, computed_orders

if TYPE_CHECKING:
    import tvm


def compile_checkpoint(
    model: Path,
    output: Path,
    *,
    plan: BitPlan,
    frequencies: NDArray[np.integer] | None = None,
    calibration: Calibration | None = None,
    target: str = "host",
    tables: Tables = "int8",
    force: bool = False,
    dump_ir: Path | None = None,
    isa_levels: Sequence[str] | None = None,
    pooling: PoolingOptions = PoolingOptions(),
    log: TuningLog = NO_RECORDS,
    progress: Progress = no_progress,
) -> CompileReport:
    """Compile a checkpoint folder into an artifact folder.

    Args:
        model: Hugging Face folder (config.json, safetensors, tokenizer files).
        output: folder to write; it appears complete or not at all.
        plan: bits of every tensor, see ``tvmq.planning``.
        frequencies: occurrences of each word, for bits by word; by default those in the model folder
            or of the calibration.
        calibration: of this model, for quantizers that go by it.
        target: an ISA level, or a set of them: ``host``, ``linux-x86-64``,
            ``linux-arm64`` or ``android-arm64``.
        tables: int8 lookup tables, or exact FP32 ones.
        force: replace an existing artifact.
        dump_ir: folder for the IR after each phase.
        isa_levels: exactly these levels instead of the target's.
        pooling: of an encoder's embeddings, instead of what the model folder says.
        log: measured schedules.
        progress: told of every phase.

    Raises:
        TvmqError: model, plan, target or output cannot be used.
    """
    levels = pick_levels(target, isa_levels)
    for level in levels:
        build.require_linker(level)
    clock = Clock(progress)
    with atomic_dir(output, force, inputs=[model]) as staging:
        clock.start("read")
        checkpoint = Checkpoint.open(model)
        family = get_family(checkpoint.config)
        config = family.read_config(checkpoint.config)
        job = get_task(family.task).prepare(checkpoint, config, pooling)
        check_mode(plan.mode, checkpoint, family)
        plan.validate({info.name: info.shape for info in family.tensors(config)})
        loaded = family.load(checkpoint)
        clock.start("export")
        if dump_ir is not None:
            pipeline.make_dump_folder(dump_ir)
        graphs = job.graphs(family.export(loaded))
        clock.start("quantize")
        counts = word_counts(checkpoint, frequencies, calibration)
        common = pipeline.run(graphs, pipeline.common_phases(plan), levels[0].to_tvm(), dump_ir)
        state = loaded.state_dict()
        body = None
        if plan.mode == BLOCK_INT:
            body = _integer_body(common, plan, job, calibration, lambda name: state[name].numpy(), dump_ir)
            common = body.graphs
        outside = plan if body is None else body.outside
        quantized = quantize_model(checkpoint, outside, counts, progress, calibration)
        whole = {} if body is None else body.arrays(counts, progress)
        clock.start("lower")
        try:
            libraries = build_libraries(
                common, staging, plan, levels, tables, dump_ir, clock, job.planned, log, flat=True
            )
        except ValueError as error:  # of a pass: what the kernels cannot compute
            raise InputError(str(error)) from error
        clock.start("pack")
        names = {name for taken in libraries.parameters.values() for name in taken}
        generated = {**job.generated(loaded), **computed_orders(names)}
        arrays = collect(
            names - generated.keys(),
            quantized,
            lambda name: state[name].numpy(),
            transposed_tensors(common),
            {**job.extra, **whole},
        )
        write_weights(staging / WEIGHTS_FILE, arrays)
        (staging / "plan.json").write_bytes(encode_plan(plan))
        _write_tokenizer(job, staging / "tokenizer")
        weights = Weights(
            file=WEIGHTS_FILE,
            parameters=libraries.parameters,
            workspaces=libraries.workspaces,
            generated=generated,
        )
        infos = family.tensors(config)
        others = None if body is None else other_params(checkpoint, infos)
        bits = stored_bits(infos, plan, arrays, others)
        manifest = _manifest(
            checkpoint, family.name, job.facts(), plan, tables, target, libraries.levels, weights, bits
        )
        chosen = kernel_schedules(log, infos, plan, tables, levels)
        manifest = msgspec.structs.replace(manifest, schedules=chosen)
        clock.start("self-test")
        job.record(staging, manifest, best_level(levels))
        written = write_artifact(staging, manifest)
        clock.stop()
    return CompileReport(output=output, manifest=written, seconds=clock.seconds)


def _integer_body(
    graphs: tvm.IRModule,
    plan: BitPlan,
    job: Job,
    calibration: Calibration | None,
    source: Source,
    dump_ir: Path | None,
) -> IntegerBody:
    """The integer part of a model; InputError for a plan that does not fit it."""
    assert job.longest is not None, "checked by check_mode"
    try:
        return IntegerBody.of(graphs, plan, job.longest, calibration, source, dump_ir)
    except ValueError as error:
        raise InputError(str(error)) from error


def _write_tokenizer(job: Job, folder: Path) -> None:
    folder.mkdir()
    for name, data in job.tokenizer_files().items():
        (folder / name).write_bytes(data)


def _manifest(
    checkpoint: Checkpoint,
    family: str,
    facts: Facts,
    plan: BitPlan,
    tables: Tables,
    target: str,
    libraries: Sequence[IsaLevel],
    weights: Weights,
    bits: Bits,
) -> Manifest:
    return Manifest(
        versions=tool_versions(),
        family=family,
        model=Model(
            name=checkpoint.path.name,
            sha256=checkpoint.sha256,
            licence=_licence(checkpoint.path),
            revision=str(checkpoint.config.get("_commit_hash") or ""),
        ),
        plan_sha256=plan_hash(plan),
        mode=plan.mode,
        tables=tables,
        target=target,
        isa_levels=tuple(libraries),
        weights=weights,
        architecture=dict(facts.architecture),
        generation=dict(facts.generation),
        labels=facts.labels,
        bits=bits,
    )


def _licence(folder: Path) -> str:
    """First line of a licence note in the model folder, so that it travels with the artifact."""
    for name in ("LICENSE-NOTE.md", "LICENSE", "LICENSE.md", "LICENSE.txt"):
        path = folder / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[0].lstrip("# ").strip()[:200] if lines else name
    return "not stated by the model folder"
