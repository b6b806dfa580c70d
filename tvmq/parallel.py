# SPDX-License-Identifier: Apache-2.0
"""Measurements in parallel through joblib: processes here, or whatever ``joblib.parallel_config`` names.

A user points a measurement at a cluster with joblib's own backends::

    with joblib.parallel_config(backend="dask"):
        tvmq.allocate(model, options)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .quantizers.quantizer import usable_cores


def run_jobs(calls: Iterable[Any], jobs: int | None) -> Iterator[Any]:
    """The results of ``joblib.delayed`` calls, in their order and as soon as they are there.

    Backends that cannot hand results on one by one (multiprocessing and Ray's) give all of them at the end.

    Args:
        calls: what to run.
        jobs: how many at a time; None is what ``joblib.parallel_config`` says, else one per core.
    """
    from joblib import Parallel
    from joblib.parallel import DEFAULT_BACKEND, get_active_backend

    active: Any = get_active_backend()
    backend, configured = active
    ours = type(backend).__name__ == f"{DEFAULT_BACKEND.title()}Backend"
    if jobs is None and configured is None and ours:
        jobs = usable_cores()
    kind = "generator" if backend.supports_return_generator else "list"
    return iter(Parallel(n_jobs=jobs, return_as=kind)(calls))
