# SPDX-License-Identifier: Apache-2.0
"""The verbs over single kernels as Python functions; ``tvmq.api`` has them too. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tvmq.installation import check_installation
from tvmq.options import CompileOptions, KernelBenchOptions, Progress, TuneOptions, no_progress

if TYPE_CHECKING:
    from tvmq.manifest import KernelSchedule

    from .bench import KernelReport
    from .tuner import TuneReport


def bench_kernels(options: KernelBenchOptions, *, progress: Progress = no_progress) -> KernelReport:
    """Times of one product by every kernel, beside the machine's limits; see ``tvmq.kernels.bench``."""
    check_installation()
    from .bench import bench_kernels as measure

    return measure(options, progress)


def tune(
    source: Path | str,
    log: Path | str,
    options: TuneOptions = TuneOptions(),
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = no_progress,
) -> TuneReport:
    """Search schedules for a model folder or a file of workloads; see ``tvmq.kernels.tune``."""
    check_installation()
    from .tune import tune as search

    return search(Path(source), Path(log), options, say=say, progress=progress)


def describe_schedules(model: Path | str, options: CompileOptions) -> tuple[KernelSchedule, ...]:
    """How the products of a model folder will be cut on every level, from the tuning logs."""
    from tvmq.assembly import pick_levels
    from tvmq.checkpoint import Checkpoint
    from tvmq.families import get_family
    from tvmq.model_plan import plan_model

    from .logs import log_of
    from .model_workloads import kernel_schedules

    checkpoint = Checkpoint.open(Path(model))
    family = get_family(checkpoint.config)
    infos = family.tensors(family.read_config(checkpoint.config))
    planned = plan_model(Path(model), options.plan).plan
    levels = pick_levels(options.target, options.isa_levels)
    return kernel_schedules(log_of(options.tuning_log), infos, planned, options.tables, levels)
