# SPDX-License-Identifier: Apache-2.0
"""tvmq: compile a trained Transformer into a small, fast, self-contained folder.

Everything a user needs is a name of this package; the names load on first use, so that
``import tvmq`` costs nothing. The functions live in ``tvmq.api``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        allocate,
        bench,
        bench_kernels,
        compile,
        doctor,
        evaluate,
        inspect,
        load,
        package,
        plan,
        quantize,
        report,
        retrain,
        targets,
        tune,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "allocate",
    "bench",
    "bench_kernels",
    "compile",
    "doctor",
    "evaluate",
    "inspect",
    "load",
    "package",
    "plan",
    "quantize",
    "report",
    "retrain",
    "targets",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tvmq' has no attribute {name!r}")
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
