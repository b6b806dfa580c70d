# SPDX-License-Identifier: Apache-2.0
"""A problem as a file for ``measure.c``: arguments of the kernels, and the bytes that must come out.

Little-endian, every part padded to 8 bytes: magic, u32 arrays, stages, copies, warm, u64 bytes from one copy
of the weights to the next; per array u8 code, bits, role, dimensions, i64 shape[], u64 bytes, data; per stage
char name[32], u32 arguments, their numbers. The data of an output is what is expected.
"""

from __future__ import annotations

import struct
from pathlib import Path

from schedules.problem import Outputs, Problem

MAGIC = b"tvmqprb1"
PLAIN, WEIGHT, OUTPUT = range(3)
NAME = 32
_CODES = {"i": 0, "u": 1, "f": 2}


def write_problem(
    path: Path, problem: Problem, expected: Outputs, copies: int, spacing: int, *, warm: bool
) -> None:
    """Writes ``problem`` with ``copies`` of its weights ``spacing`` bytes apart, called in turn.

    Args:
        path: the file.
        problem: its arrays and calls.
        expected: every output's right bytes.
        copies: copies of the weights on the device.
        spacing: bytes from one to the next, if not their size.
        warm: whether untimed calls go before the timed ones of a round.
    """
    names = list(problem.arrays)
    with path.open("wb") as file:
        file.write(MAGIC)
        file.write(struct.pack("<4IQ", len(names), len(problem.stages), copies, warm, spacing))
        for name, array in problem.arrays.items():
            role = OUTPUT if name in problem.outputs else WEIGHT if name in problem.weights else PLAIN
            data = (expected[name] if role == OUTPUT else array).tobytes()
            file.write(struct.pack("<4B4x", _CODES[array.dtype.kind], 8 * array.itemsize, role, array.ndim))
            file.write(struct.pack(f"<{array.ndim}qQ", *array.shape, len(data)))
            file.write(_padded(data))
        for stage in problem.stages:
            places = [names.index(name) for name in problem.calls[stage]]
            file.write(struct.pack(f"<{NAME}sQ", stage.encode(), len(places)))
            file.write(_padded(struct.pack(f"<{len(places)}I", *places)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
