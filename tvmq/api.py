# SPDX-License-Identifier: Apache-2.0
"""Every verb as a Python function; ``tvmq.<name>`` and the command line both end here.

Nothing heavy is imported before a function that needs it runs.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .installation import check_installation, require
from .options import (
    BenchOptions,
    CompileOptions,
    PlanOptions,
    Progress,
    SearchOptions,
    no_progress,
)

if TYPE_CHECKING:
    from relay_passes.bit_plan import BitPlan

    from .artifact import VerifyResult
    from .benchmark import BenchResult
    from .compiler import CompileReport
    from .diagnosis import Check
    from .evaluation import EvalResult
    from .model_plan import PlanReport
    from .runtime import Translator


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """One ISA level.

    Attributes:
        name: what ``--target`` and ``--isa`` take.
        triple: LLVM target triple.
        features: what the CPU must report.
        runs_here: this CPU has all of them.
    """

    name: str
    triple: str
    features: tuple[str, ...]
    runs_here: bool


def plan(model: Path | str, options: PlanOptions = PlanOptions()) -> BitPlan:
    """Bits for every tensor of a model folder; see ``tvmq.model_plan``."""
    return describe_plan(model, options).plan


def describe_plan(model: Path | str, options: PlanOptions = PlanOptions()) -> PlanReport:
    """The plan of a model folder with its predicted size, before anything is quantized."""
    from .model_plan import plan_model

    return plan_model(Path(model), options)


def compile(
    model: Path | str,
    output: Path | str,
    options: CompileOptions = CompileOptions(),
    *,
    progress: Progress = no_progress,
) -> CompileReport:
    """Compile a model folder into an artifact; see ``tvmq.compiler``.

    Args:
        model: folder with config.json, safetensors and tokenizer files.
        output: folder to write; it appears complete or not at all.
        options: bits, target, tables.
        progress: called at every phase.

    Raises:
        TvmqError: model, options or output cannot be used.
    """
    check_installation()
    require("torch", "compile")
    from .compiler import compile_checkpoint

    return compile_checkpoint(
        Path(model),
        Path(output),
        plan=plan(model, options.plan),
        target=options.target,
        tables=options.tables,
        force=options.force,
        dump_ir=options.dump_ir,
        isa_levels=options.isa_levels,
        progress=progress,
    )


def load(artifact: Path | str, *, threads: int = 1, isa: str | None = None) -> Translator:
    """Open an artifact for translation; see ``tvmq.runtime.load``."""
    check_installation()
    from .runtime import load as open_translator

    return open_translator(Path(artifact), threads=threads, isa=isa)


def evaluate(
    artifact: Path | str,
    data: Path | str,
    search: SearchOptions = SearchOptions(),
    *,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> EvalResult:
    """BLEU and chrF of an artifact on ``source TAB reference`` lines; see ``tvmq.evaluation``."""
    require("sacrebleu", "eval")
    from .evaluation import evaluate as score_artifact

    with closing(load(artifact, threads=search.threads, isa=search.isa)) as translator:
        return score_artifact(translator, Path(data), search, limit=limit, progress=progress)


def bench(artifact: Path | str, options: BenchOptions = BenchOptions()) -> BenchResult:
    """Speed and memory of an artifact, measured in a process of its own; see ``tvmq.benchmark``."""
    check_installation()
    from .artifact import open_artifact
    from .benchmark import bench as measure

    return measure(open_artifact(artifact).path, options)


def inspect(artifact: Path | str) -> dict[str, Any]:
    """What an artifact holds, without loading its code; see ``tvmq.artifact.inspect``."""
    from .artifact import inspect as read

    return read(artifact)


def verify(artifact: Path | str) -> VerifyResult:
    """Compare every file of an artifact with its manifest, without loading its code."""
    from .artifact import verify as check

    return check(artifact)


def targets() -> tuple[TargetInfo, ...]:
    """All ISA levels, lowest first."""
    from targets import detect_host, get_target, target_names

    host = detect_host()
    specs = [get_target(name) for name in target_names()]
    return tuple(
        TargetInfo(
            name=spec.name,
            triple=spec.triple,
            features=tuple(sorted(spec.cpu_flags)),
            runs_here=spec.name in host,
        )
        for spec in specs
    )


def doctor() -> tuple[Check, ...]:
    """What this machine has and lacks for tvmq; see ``tvmq.diagnosis``."""
    from .diagnosis import diagnose

    return diagnose()
