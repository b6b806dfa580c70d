# SPDX-License-Identifier: Apache-2.0
"""Measured records as numbers for a learnt cost model: workload and knobs on one side, gains on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .schedule import AnySchedule, Schedule
from .tuning_log import Key, TuningRecord
from .workload import FORMATS

PARAMETERS = {
    "max_depth": 5,
    "eta": 0.3,
    "min_child_weight": 0,
    "gamma": 0.0,
    "objective": "reg:squarederror",
    "nthread": 1,
    "verbosity": 0,
}
TREES = 50


def features(key: Key, schedule: AnySchedule) -> list[float]:
    """A workload and a schedule of its family as numbers."""
    whole = key.group == key.k
    facts = [math.log2(key.n), math.log2(key.k), math.log2(key.m), key.bits, 0.0 if whole else key.group]
    facts.append(FORMATS[key.op].index(key.layout))
    spread = {None: 0.0, True: 1.0, False: 2.0}[schedule.spread]
    if isinstance(schedule, Schedule):
        knobs = [*astuple(schedule.tiles[0]), *astuple(schedule.tiles[-1])]
    else:
        knobs = [schedule.tokens[0] if schedule.tokens else 0, len(schedule.tokens), schedule.chunk_steps]
    return [*facts, spread, *map(float, knobs)]


def predicted_gains(
    key: Key, schedules: Sequence[AnySchedule], records: Sequence[TuningRecord]
) -> NDArray[np.float32]:
    """Gains that gradient-boosted trees expect of schedules, learnt from records of the same family."""
    import xgboost

    rows = np.array([features(record.key, record.schedule) for record in records], np.float32)
    gains = np.array([record.gain for record in records], np.float32)
    booster: Any = xgboost.train(PARAMETERS, xgboost.DMatrix(rows, gains), TREES)
    wanted = np.array([features(key, schedule) for schedule in schedules], np.float32)
    return booster.predict(xgboost.DMatrix(wanted))
