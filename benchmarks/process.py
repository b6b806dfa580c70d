# SPDX-License-Identifier: Apache-2.0
"""Settings of a measuring process that must be made before any engine is imported."""

from __future__ import annotations

import os


def set_threads(threads: int) -> None:
    """OpenMP and BLAS pools are sized when a library is first imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
