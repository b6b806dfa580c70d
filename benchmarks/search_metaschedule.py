# SPDX-License-Identifier: Apache-2.0
"""TVM's MetaSchedule over the knobs of a workload: ScheduleFn, evolutionary search, its XGBoost cost model.

Our kernels are written as they run, so its primitives find nothing in them to transform: the knobs are
the tilings of a made-up loop nest, which its mutators understand, and the cost model's features are the knobs
themselves. Builder and runner look measurements up, so that only the search is compared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schedules.schedule import AnySchedule, Schedule
from schedules.tuning_log import Key

PER_ROUND = 4


def knob_values(schedules: Sequence[AnySchedule], m: int) -> list[list[Any]]:
    """The values of every knob that any of the schedules has, each in order."""
    columns = zip(*(knobs(schedule, m) for schedule in schedules), strict=True)
    return [sorted(set(column), key=repr) for column in columns]


def knobs(schedule: AnySchedule, m: int) -> tuple[Any, ...]:
    """What the space varies."""
    if not isinstance(schedule, Schedule):
        return (schedule.tokens, schedule.chunk_steps)
    tile = schedule.tiles[-1] if m == 1 else schedule.tiles[0]
    return (tile.tokens, tile.row_tiles, tile.unroll, tile.prefetch)


def load() -> None:
    """Imports what its search needs, intrinsics of all devices among them: many seconds."""
    import tvm.s_tir.tensor_intrin  # noqa: F401
    import xgboost  # noqa: F401


def metaschedule(key: Key, gains: Mapping[AnySchedule, float], trials: int) -> list[float]:
    """The best gain after every trial of a search that is told the gains it asks for."""
    import tvm
    from tvm.ir.utils import derived_object
    from tvm.s_tir import Schedule as Trace
    from tvm.s_tir import meta_schedule as ms
    from tvm.script import tirx as T

    values = knob_values(list(gains), key.m)
    by_knobs = {knobs(schedule, key.m): gain for schedule, gain in gains.items()}
    a, b, c, d = (2 ** (len(own) - 1) for own in values)

    @T.prim_func(s_tir=True)
    def nest(x: T.Buffer((a, b, c, d), "float32"), y: T.Buffer((a, b, c, d), "float32")):  # noqa: ANN202
        T.func_attr({"tirx.noalias": True})
        for i, j, k, n in T.grid(a, b, c, d):
            with T.sblock("y"):
                vi, vj, vk, vl = T.axis.remap("SSSS", [i, j, k, n])
                y[vi, vj, vk, vl] = x[vi, vj, vk, vl] + T.float32(1)

    def template(sch: Any) -> None:
        block = sch.get_sblock("y", "main")
        for loop in sch.get_loops(block):
            sch.split(loop, sch.sample_perfect_tile(loop, n=2, max_innermost_factor=64))

    def chosen(sch: Any) -> tuple[Any, ...]:
        loops = sch.get_loops(sch.get_sblock("y", "main"))
        extents = [int(sch.get(loop).extent) for loop in loops]
        return tuple(own[inner.bit_length() - 1] for own, inner in zip(values, extents[1::2], strict=True))

    asked: list[float] = []

    @derived_object
    class Features(ms.feature_extractor.PyFeatureExtractor):
        def extract_from(self, context: Any, candidates: Any) -> Any:
            rows = []
            for candidate in candidates:
                found = [own.index(v) for own, v in zip(values, chosen(candidate.sch), strict=True)]
                rows.append(tvm.runtime.tensor(np.array([found], np.float64)))
            return rows

    @derived_object
    class Builder(ms.builder.PyBuilder):
        def build(self, build_inputs: Any) -> Any:
            paths = [json.dumps(chosen(Trace(item.mod))) for item in build_inputs]
            return [ms.builder.BuilderResult(path, None) for path in paths]

    @derived_object
    class Done(ms.runner.PyRunnerFuture):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def done(self) -> bool:
            return True

        def result(self) -> Any:
            return ms.runner.RunnerResult([self.seconds], None)

    @derived_object
    class Runner(ms.runner.PyRunner):
        def run(self, runner_inputs: Any) -> Any:
            found = []
            for item in runner_inputs:
                plain = tuple(tuple(v) if isinstance(v, list) else v for v in json.loads(item.artifact_path))
                # What the space leaves out is the code of another candidate; it was not worth a trial.
                gain = by_knobs.get(plain, 1.0)
                asked.append(gain)
                found.append(Done(1.0 / max(gain, 1e-3)))
            return found

    model = ms.cost_model.XGBModel(extractor=Features(), num_warmup_samples=PER_ROUND, num_tuning_cores=1)
    space = ms.space_generator.ScheduleFn(
        template, sch_rules=[], postprocs=[], mutator_probs={ms.mutator.MutateTileSize(): 1.0}
    )
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=64, init_measured_ratio=0.2, init_min_unmeasured=8, genetic_num_iters=2
    )
    with tempfile.TemporaryDirectory() as folder:
        ms.tune_tir(
            nest,
            tvm.target.Target({"kind": "llvm", "num-cores": 1}),
            folder,
            max_trials_global=trials,
            num_trials_per_iter=PER_ROUND,
            measure_callbacks=[ms.measure_callback.AddToDatabase(), ms.measure_callback.UpdateCostModel()],
            builder=Builder(),
            runner=Runner(),
            cost_model=model,
            space=space,
            strategy=strategy,
            num_tuning_cores=1,
            seed=1,
        )
    return [max(1.0, *asked[: i + 1]) for i in range(len(asked))] or [1.0]
