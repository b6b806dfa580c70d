# SPDX-License-Identifier: Apache-2.0
"""What ``tvmq tune`` does: workloads of a model folder or of a file, tuned into a log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from schedules.tuning_log import TuningRecord
from schedules.workload import MOST_BITS, Workload
from tvmq.errors import UsageError
from tvmq.loading import MAX_THREADS
from tvmq.options import PlanOptions, Progress, TuneOptions, no_progress
from tvmq.store import read_json

from .logs import read_log
from .model_workloads import plan_workloads, product_shapes, read_workloads
from .runner import Runner
from .runners import make_runner, target_of
from .tuner import Tuner, TuneReport

MAX_JSON = 4 << 20
LONGEST_TIMEOUT = 86400.0


def workloads_of(source: Path, options: TuneOptions) -> list[Workload]:
    """The products of a model folder with the options' plan, or those of a JSON file."""
    if source.is_file():
        return read_workloads(read_json(source, MAX_JSON), str(source))
    from tvmq.checkpoint import Checkpoint
    from tvmq.families import get_family
    from tvmq.model_plan import plan_model

    checkpoint = Checkpoint.open(source)
    family = get_family(checkpoint.config)
    shapes = product_shapes(family.tensors(family.read_config(checkpoint.config)))
    found: dict[Workload, None] = {}
    for plan in _plans(options):
        planned = plan_model(source, plan).plan
        found |= dict.fromkeys(plan_workloads(planned, shapes, options.tables, options.tokens))
    return list(found)


def _plans(options: TuneOptions) -> list[PlanOptions]:
    """The plan as it is, or with one width for everything, each in turn."""
    own = options.plan
    return [replace(own, overrides=(*own.overrides, ("*", bits))) for bits in options.widths] or [own]


def tune(
    source: Path,
    log: Path,
    options: TuneOptions,
    *,
    runner: Runner | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = no_progress,
) -> TuneReport:
    """Tune the products of a model folder or of a JSON file.

    Args:
        source: model folder, or a JSON list of workloads.
        log: tuning log to append to.
        options: what is searched, and how long.
        runner: where candidates run; by default what the options say.
        say: called with a line for every finished workload and every lost candidate.
        progress: called per workload.

    Raises:
        UsageError: a target that the runner does not serve, or a log that exists and is not to be resumed.
        InputError: source or log cannot be used.
        MissingToolError: no C compiler, or another tool that the runner needs.
    """
    target = target_of(options)
    if min(options.threads, *options.tokens) < 1 or min(options.trials, options.time_budget) < 0:
        raise UsageError("threads and tokens must be at least 1, trials and the time budget not negative")
    if not all(1 <= bits <= MOST_BITS for bits in options.widths):
        raise UsageError(f"widths are 1 to {MOST_BITS} bits")
    if options.threads > MAX_THREADS:
        raise UsageError(f"threads is {options.threads}, expected 1 to {MAX_THREADS}")
    if not 0 < options.timeout <= LONGEST_TIMEOUT:
        raise UsageError(f"the time-out is {options.timeout} s, expected at most {LONGEST_TIMEOUT:.0f}")
    records: list[TuningRecord] = []
    if log.exists():
        if not options.resume:
            raise UsageError(f"{log} exists already (add --resume to go on with it, or choose another)")
        records = list(read_log(log).records)
    workloads = workloads_of(source, options)
    tuner = Tuner(log, target.name, options, runner or make_runner(options, target), say, records)
    return tuner.tune(workloads, progress)
