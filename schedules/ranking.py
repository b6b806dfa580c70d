# SPDX-License-Identifier: Apache-2.0
"""Which candidates to try next: those of which gradient-boosted trees expect most.

The trees (XGBoost, an extra) learn gains over the rule from the workload and the knobs of all records of the
same family, target and threads. Where it is not installed, or there is nothing to learn from yet, candidates
come in the order of the space, which begins with what mostly does well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from importlib.util import find_spec
from typing import Any

import numpy as np

from .schedule import AnySchedule, Schedule
from .tuning_log import Key, TuningRecord
from .workload import FORMATS

LEAST_RECORDS = 4
"""Records below which trees only repeat what they saw."""
TREES = 40
PARAMETERS = {
    "max_depth": 5,
    "eta": 0.3,
    "min_child_weight": 0,
    "objective": "reg:squarederror",
    "nthread": 1,
    "seed": 0,
    "verbosity": 0,
}
_SAME = ("op", "target", "threads", "kernel")


def ranked(
    key: Key, schedules: Sequence[AnySchedule], records: Iterable[TuningRecord]
) -> list[AnySchedule]:
    """The schedules, most promising first; in their own order where nothing is known."""
    known = [r for r in records if all(getattr(r.key, name) == getattr(key, name) for name in _SAME)]
    if len(known) < LEAST_RECORDS or find_spec("xgboost") is None:
        return list(schedules)
    expected = expected_gains(key, schedules, known)
    order = sorted(range(len(schedules)), key=lambda index: -expected[index])
    return [schedules[index] for index in order]


def expected_gains(
    key: Key, schedules: Sequence[AnySchedule], records: Sequence[TuningRecord]
) -> list[float]:
    """What trees that learnt from ``records`` expect of schedules; a failure's gain is 0."""
    import xgboost

    rows = np.array([features(record.key, record.schedule) for record in records], np.float32)
    gains = np.array([record.gain for record in records], np.float32)
    trees: Any = xgboost.train(PARAMETERS, xgboost.DMatrix(rows, gains), TREES)
    wanted = np.array([features(key, schedule) for schedule in schedules], np.float32)
    return [float(gain) for gain in trees.predict(xgboost.DMatrix(wanted))]


def features(key: Key, schedule: AnySchedule) -> list[float]:
    """A workload and a schedule of its family as numbers."""
    facts = [math.log2(key.n), math.log2(key.k), math.log2(key.m), float(key.bits)]
    facts += [0.0 if key.group == key.k else float(key.group), float(FORMATS[key.op].index(key.layout))]
    facts.append({None: 0.0, True: 1.0, False: 2.0}[schedule.spread])
    if isinstance(schedule, Schedule):
        # The smallest tile, which serves single tokens, and the largest.
        knobs = [*astuple(schedule.tiles[-1]), *astuple(schedule.tiles[0])]
    else:
        knobs = [schedule.tokens[0] if schedule.tokens else 0, len(schedule.tokens), schedule.chunk_steps]
    return [*facts, *map(float, knobs)]
