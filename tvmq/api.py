# SPDX-License-Identifier: Apache-2.0
"""Every verb as a Python function; ``tvmq.<name>`` and the command line both end here.

Nothing heavy is imported before a function that needs it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .errors import UsageError
from .installation import check_installation, require
from .kernels.verbs import bench_kernels as bench_kernels
from .kernels.verbs import describe_schedules as describe_schedules
from .kernels.verbs import tune as tune
from .options import (
    AllocationOptions,
    BenchOptions,
    CompileOptions,
    PlanOptions,
    Progress,
    QuantizeOptions,
    ReportOptions,
    SearchOptions,
    no_progress,
)
from .packaging.verbs import package as package
from .retraining.options import RetrainOptions

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from relay_passes.bit_plan import BitPlan

    from .allocation_report import AllocationReport
    from .artifact import VerifyResult
    from .assembly import CompileReport
    from .benchmark import BenchResult
    from .coding import QuantizeReport
    from .diagnosis import Check, TargetInfo
    from .encoder import Encoder
    from .encoder_benchmark import EncoderBenchResult
    from .encoder_evaluation import EncoderEvalResult
    from .evaluation import EvalResult
    from .model_plan import PlanReport
    from .module_runtime import CompiledModule
    from .reporting.writer import ReportResult
    from .retraining.loop import Evaluation
    from .retraining.session import RetrainReport
    from .runtime import Translator


def plan(model: Path | str, options: PlanOptions = PlanOptions()) -> BitPlan:
    """Bits for every tensor of a model folder; see ``tvmq.model_plan``."""
    return describe_plan(model, options).plan


def describe_plan(model: Path | str, options: PlanOptions = PlanOptions()) -> PlanReport:
    """The plan of a model folder with its predicted size, before anything is quantized."""
    from .model_plan import plan_model

    return plan_model(Path(model), options)


def allocate(
    model: Path | str, options: AllocationOptions, *, progress: Progress = no_progress
) -> AllocationReport:
    """The plan of least expected damage within a budget, from measured sensitivities.

    Measures (or reads) what each width does to each matrix, and solves for the bits; see
    ``tvmq.measured_plan``.
    """
    from .measured_plan import allocate_model

    return allocate_model(Path(model), options, progress)


def quantize(
    model: Path | str,
    output: Path | str,
    options: QuantizeOptions = QuantizeOptions(),
    *,
    progress: Progress = no_progress,
) -> QuantizeReport:
    """Quantize a model folder into a coded checkpoint, which ``compile`` takes; see ``tvmq.coding``."""
    from .calibration import calibration_of
    from .coding import quantize_checkpoint

    planned = describe_plan(model, options.plan)
    return quantize_checkpoint(
        Path(model),
        Path(output),
        plan=planned.plan,
        frequencies=planned.frequencies,
        calibration=calibration_of(Path(model), options.calibration, planned.plan),
        force=options.force,
        progress=progress,
    )


@overload
def compile(
    model: Path | str,
    output: Path | str,
    options: CompileOptions = ...,
    *,
    progress: Progress = ...,
) -> CompileReport: ...


@overload
def compile(
    model: Module,
    example_inputs: Sequence[Tensor],
    output: Path | str,
    options: CompileOptions = ...,
    *,
    dynamic_shapes: Any = ...,
    progress: Progress = ...,
) -> CompileReport: ...


def compile(model: Any, *args: Any, **keywords: Any) -> CompileReport:
    """Compile a model folder or a ``torch.nn.Module`` into an artifact folder.

    Two forms: ``compile(folder, output, options)`` for a translation model, and
    ``compile(module, example_inputs, output, options)`` for any module made of linear, embedding, layer norm,
    attention and activations; ``load`` then gives a ``Translator`` or a ``CompiledModule``.

    Args:
        model: folder with config.json, safetensors and tokenizer files; or a float32 module on the CPU, in
            evaluation mode.
        example_inputs: module only: a tuple with one tensor per argument of ``forward``.
        output: folder to write; it appears complete or not at all.
        options: bits, target, tables.
        dynamic_shapes: module only: which extents are free, as ``torch.export.export`` takes them; all are
            fixed without it. Give the example two or more of each free extent.
        progress: called at every phase.

    Raises:
        TvmqError: model, inputs, options or output cannot be used.
    """
    check_installation()
    require("torch", "compile")
    if isinstance(model, str | Path):
        return _compile_folder(Path(model), *args, **keywords)
    from torch.nn import Module

    if not isinstance(model, Module):
        raise UsageError(
            f"{type(model).__name__} cannot be compiled, expected a model folder or a torch.nn.Module"
        )
    return _compile_module(model, *args, **keywords)


def _compile_folder(
    model: Path,
    output: Path | str,
    options: CompileOptions = CompileOptions(),
    *,
    progress: Progress = no_progress,
) -> CompileReport:
    from .calibration import calibration_of
    from .compiler import compile_checkpoint
    from .kernels.logs import log_of

    planned = describe_plan(model, options.plan)
    return compile_checkpoint(
        model,
        Path(output),
        plan=planned.plan,
        frequencies=planned.frequencies,
        calibration=calibration_of(model, options.calibration, planned.plan),
        target=options.target,
        tables=options.tables,
        force=options.force,
        dump_ir=options.dump_ir,
        isa_levels=options.isa_levels,
        pooling=options.pooling,
        log=log_of(options.tuning_log),
        progress=progress,
    )


def _compile_module(
    module: Module,
    example_inputs: Sequence[Tensor],
    output: Path | str,
    options: CompileOptions = CompileOptions(),
    *,
    dynamic_shapes: Any = None,
    progress: Progress = no_progress,
) -> CompileReport:
    from .module_compiler import compile_module

    if options.calibration is not None:
        raise UsageError(
            "a module has no calibration; leave it out, and take alternating, greedy or rtn codes"
        )
    return compile_module(
        module, example_inputs, Path(output), options, dynamic_shapes=dynamic_shapes, progress=progress
    )


def retrain(
    model: Path | str,
    output: Path | str,
    *,
    data: Path | str,
    dev: Path | str,
    start: Path | PlanOptions,
    calibration: Path | None = None,
    dev_limit: int | None = None,
    options: RetrainOptions = RetrainOptions(),
    force: bool = False,
    progress: Progress = no_progress,
    on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
) -> RetrainReport:
    """Distil an FP32 model folder into its quantized form and write a coded checkpoint.

    Args:
        model: the FP32 model, which is the teacher.
        output: folder to write; ``compile`` takes it.
        data: training text, ``source TAB target`` lines, plain or .xz.
        dev: development text, never trained on; it decides which weights are kept.
        start: a coded checkpoint to go on from, or how many bits every tensor gets.
        calibration: file of ``tvmq plan --save-calibration``, for plans with hessian codes.
        dev_limit: only the first development pairs.
        options: method, limits and learning rates.
        force: replace an existing coded checkpoint.
        progress: called after every step.
        on_evaluation: called after every evaluation.

    Raises:
        TvmqError: anything given cannot be used.
    """
    require("torch", "compile")
    require("sacrebleu", "eval")
    from .retraining.session import retrain_model, start_from

    return retrain_model(
        Path(model),
        Path(output),
        start=start_from(start, calibration),
        data=Path(data),
        dev=Path(dev),
        dev_limit=dev_limit,
        options=options,
        force=force,
        progress=progress,
        on_evaluation=on_evaluation,
    )


def load(
    artifact: Path | str, *, threads: int = 1, isa: str | None = None
) -> Translator | Encoder | CompiledModule:
    """Open an artifact: a ``Translator``, an ``Encoder`` or a ``CompiledModule``, by what it holds.

    See ``tvmq.runtime.load``, ``tvmq.encoder.load`` and ``tvmq.module_runtime.load``.
    """
    check_installation()
    from .artifact import open_artifact
    from .loading import use_of

    match use_of(open_artifact(artifact)):
        case "translate":
            return load_translator(artifact, threads=threads, isa=isa)
        case "encode":
            return load_encoder(artifact, threads=threads, isa=isa)
        case "module":
            from .module_runtime import load as open_module

            return open_module(artifact, threads=threads, isa=isa)


def load_translator(artifact: Path | str, *, threads: int = 1, isa: str | None = None) -> Translator:
    """As ``load``, but InputError for an artifact that does not translate."""
    check_installation()
    from .runtime import load as open_translator

    return open_translator(Path(artifact), threads=threads, isa=isa)


def load_encoder(artifact: Path | str, *, threads: int = 1, isa: str | None = None) -> Encoder:
    """As ``load``, but InputError for an artifact that does not encode."""
    check_installation()
    from .encoder import load as open_encoder

    return open_encoder(Path(artifact), threads=threads, isa=isa)


def evaluate(
    artifact: Path | str,
    data: Path | str,
    search: SearchOptions = SearchOptions(),
    *,
    metric: str | None = None,
    limit: int | None = None,
    baseline: Path | str | None = None,
    output: Path | str | None = None,
    truncate: bool = False,
    progress: Progress = no_progress,
) -> EvalResult | EncoderEvalResult:
    """Score an artifact: BLEU and chrF of a translation model, accuracy or Spearman of an encoder.

    See ``tvmq.evaluation`` and ``tvmq.encoder_evaluation``.

    Args:
        artifact: folder that ``compile`` wrote.
        data: lines of source TAB reference, text TAB label or text TAB text TAB score.
        search: generation options of a translation model, batch size and threads; of the baseline too.
        metric: ``bleu``, ``accuracy`` or ``spearman``; None takes what fits.
        limit: only the first lines.
        baseline: another artifact, or a file with one output a line, for a paired test.
        output: file for the outputs, one a line; a later call can take it as its baseline.
        truncate: encoders only: cut texts that are too long.
        progress: called per batch.
    """
    check_installation()
    from .artifact import open_artifact
    from .evaluation import check_output, evaluate_translator, write_hypotheses
    from .loading import use_of

    given = None if baseline is None else Path(baseline)
    if output is not None:
        check_output(Path(output), [Path(data), *([] if given is None else [given])])
    common: Any = {"metric": metric, "limit": limit, "baseline": given, "progress": progress}
    if use_of(open_artifact(artifact)) == "encode":
        from .encoder_evaluation import evaluate_encoder

        result = evaluate_encoder(Path(artifact), Path(data), search, truncate=truncate, **common)
    else:
        result = evaluate_translator(Path(artifact), Path(data), search, **common)
    if output is not None:
        write_hypotheses(Path(output), result.outputs)
    return result


def bench(artifact: Path | str, options: BenchOptions = BenchOptions()) -> BenchResult | EncoderBenchResult:
    """Speed and memory of an artifact, measured in a process of its own; see ``tvmq.benchmark``."""
    check_installation()
    from .artifact import open_artifact
    from .benchmark import bench as measure

    return measure(open_artifact(artifact).path, options)


def inspect(artifact: Path | str) -> dict[str, Any]:
    """What an artifact holds, without loading its code; see ``tvmq.artifact.inspect``."""
    from .artifact import inspect as read

    return read(artifact)


def report(target: Path | str, output: Path | str, options: ReportOptions = ReportOptions()) -> ReportResult:
    """Write an HTML page about the bits of a plan, a coded checkpoint or an artifact; loads no code of it.

    See ``tvmq.reporting``.
    """
    require("matplotlib", "plan")
    from .reporting.writer import write_report

    return write_report(Path(target), Path(output), options)


def verify(artifact: Path | str) -> VerifyResult:
    """Compare every file of an artifact with its manifest, without loading its code."""
    from .artifact import verify as check

    return check(artifact)


def targets() -> tuple[TargetInfo, ...]:
    """All ISA levels, lowest first."""
    from .diagnosis import isa_levels

    return isa_levels()


def doctor() -> tuple[Check, ...]:
    """What this machine has and lacks for tvmq; see ``tvmq.diagnosis``."""
    from .diagnosis import diagnose

    return diagnose()
