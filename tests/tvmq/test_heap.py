# SPDX-License-Identifier: Apache-2.0
"""Freed arrays are used again instead of being mapped anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource
import numpy as np
from tvmq.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        first = np.ones(2 << 20)
        second = first * 2
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_large_arrays_stay_with_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert without > 100
    assert kept < without / 20
