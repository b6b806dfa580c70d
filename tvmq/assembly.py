# SPDX-License-Identifier: Apache-2.0
"""What every compilation does once its graphs exist: levels, one library per level, sizes as they ship.

``compiler`` (model folders) and ``module_compiler`` (a user's own module) both end here.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, WordBits
from schedules.lut_table import Tables
from schedules.tuning_log import NO_RECORDS, TuningLog
from targets import detect_host, pick_targets
from targets.spec import TargetSpec

from . import __version__, build
from .artifact import Bits, BlockSize, IsaLevel, Manifest, RowBits, Versions
from .errors import MissingToolError, UsageError
from .families.family import TensorInfo
from .manifest import Workspace
from .native.library import HEADER, LIBRARY, header, runtime_library
from .native.program import Program, encode
from .options import Progress
from .store import sha256_file

if TYPE_CHECKING:
    import tvm

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """What was written, and the seconds that each phase took."""

    output: Path
    manifest: Manifest
    seconds: dict[str, float]


class Clock:
    """Names the running phase for progress and keeps its duration."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._phase, self._start = "", time.perf_counter()

    def start(self, phase: str) -> None:
        """Ends the running phase and begins ``phase``."""
        self.stop()
        self._phase, self._start = phase, time.perf_counter()
        self._progress(phase, 0, 1)

    def stop(self) -> None:
        """Ends the running phase."""
        if self._phase:
            self.seconds[self._phase] = round(time.perf_counter() - self._start, 3)
            self._progress(self._phase, 1, 1)
        self._phase = ""


def pick_levels(target: str, names: Sequence[str] | None) -> tuple[TargetSpec, ...]:
    """The ISA levels of a target or of an explicit list, lowest first; UsageError for unknown ones."""
    try:
        levels = pick_targets(target, names)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if len({level.name for level in levels}) != len(levels):
        raise UsageError("an ISA level is named twice")
    machines = sorted({level.architecture for level in levels})
    if len(machines) > 1:
        raise UsageError(f"ISA levels of {' and '.join(machines)}; compile once for each architecture")
    return tuple(sorted(levels, key=lambda level: level.rank))


def best_level(levels: Sequence[TargetSpec]) -> str | None:
    """The best compiled level that this machine runs; None when cross-compiling."""
    compiled = {level.name for level in levels if level.system == "linux"}
    return next((name for name in detect_host() if name in compiled), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Libraries:
    """The linked libraries, and for each function the stored weights and the workspaces that it takes."""

    levels: tuple[IsaLevel, ...]
    parameters: dict[str, tuple[str, ...]]
    workspaces: dict[str, tuple[Workspace, ...]]


def build_libraries(
    graphs: tvm.IRModule,
    staging: Path,
    plan: BitPlan,
    levels: Sequence[TargetSpec],
    tables: Tables,
    dump_ir: Path | None,
    clock: Clock,
    planned: Sequence[str] = (),
    log: TuningLog = NO_RECORDS,
    *,
    flat: bool = False,
) -> Libraries:
    """Lowers and links ``graphs`` (after the common phases) into ``staging``/lib, once per level.

    Schedules are those of ``log``. ``planned`` names functions whose intermediate buffers become workspaces
    (``plan_buffers``). With ``flat``, the program for the native runtime is written too. Levels with the same
    program or the same library share it; it has the name of the lowest.

    Raises:
        NotFlatError: with ``flat``, a graph that is more than kernel calls.
    """
    found, parameters, workspaces = [], {}, {}
    programs: dict[bytes, str] = {}
    written: dict[str, str] = {}
    if flat:
        _write_runtime(staging, levels[0])
    (staging / "lib").mkdir(exist_ok=True)
    for level in levels:
        clock.start(f"build {level.name}")
        lowered = build.lower(graphs, plan, level, tables, dump_ir, log)
        parameters = build.parameter_names(lowered)
        library = f"lib/{level.name}.so"
        linked = _link(lowered, level, staging / library, planned, flat)
        workspaces = {
            name: tuple(msgspec.convert({"dtype": dtype, "shape": shape}, Workspace) for dtype, shape in keys)
            for name, keys in linked.workspaces.items()
        }
        own = written.setdefault(sha256_file(staging / library), library)
        if own != library:
            (staging / library).unlink()
        program = _write_program(staging, level.name, linked.program, programs)
        features = tuple(sorted(level.cpu_flags))
        kernels = build.kernel_names(lowered)
        found.append(
            IsaLevel(name=level.name, library=own, program=program, features=features, kernels=kernels)
        )
    return Libraries(levels=tuple(found), parameters=parameters, workspaces=workspaces)


def _write_runtime(staging: Path, level: TargetSpec) -> None:
    """The native runtime for a level's architecture and its header, beside the libraries that it runs."""
    for name, data in ((LIBRARY, runtime_library(build.require_linker(level))), (HEADER, header())):
        (staging / name).parent.mkdir(exist_ok=True)
        (staging / name).write_bytes(data)


def _write_program(staging: Path, level: str, program: Program | None, written: dict[bytes, str]) -> str:
    """Name of the file that holds ``program``: one written before or a new one; "" for none."""
    if program is None:
        return ""
    data = encode(program)
    if data not in written:
        written[data] = f"lib/{level}.program"
        (staging / written[data]).write_bytes(data)
    return written[data]


def _link(
    module: tvm.IRModule, level: TargetSpec, path: Path, planned: Sequence[str], flat: bool
) -> build.Linked:
    """``build.link``; a full disk or a broken C compiler is the user's error."""
    try:
        return build.link(module, level, path, planned, flat=flat)
    except build.LinkError as error:
        complaint = str(error)
        if os.strerror(errno.ENOSPC) in complaint:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        first = complaint.strip().partition("\n")[0]
        name = build.require_linker(level).name
        raise MissingToolError(
            f"{name} cannot link the library of {level.name}: {first} (repair the C compiler)"
        ) from error


def tool_versions() -> Versions:
    """What makes the artifact."""
    from tvm.target.codegen import llvm_version_major

    return Versions(tool=__version__, tvm=version("apache-tvm"), llvm=str(llvm_version_major()))


def stored_bits(
    infos: Sequence[TensorInfo],
    plan: BitPlan,
    arrays: Mapping[str, NDArray[Any]],
    other_params: int | None = None,
) -> Bits:
    """Sizes as they ship: every byte of the weights file's arrays, row padding and orders included.

    ``other_params`` are the parameters outside the plan, as FP32 has them; None where those are stored one
    for one.
    """
    blocks: dict[str, list[int]] = {}
    for info in infos:
        prefix = f"{info.name}:"
        stored = sum(a.nbytes for name, a in arrays.items() if name == info.name or name.startswith(prefix))
        entry = blocks.setdefault(info.block, [0, 0])
        entry[0] += stored
        entry[1] += info.shape[0] * info.shape[1]
    planned = sum(count for _, count in blocks.values())
    total = sum(a.nbytes for a in arrays.values())
    names = {info.name for info in infos}
    others = [a for name, a in arrays.items() if name.partition(":")[0] not in names]
    fp32 = 4 * (planned + (sum(a.size for a in others) if other_params is None else other_params))
    words = [entry for entry in plan.entries() if isinstance(entry, WordBits)]
    return Bits(
        bits_per_weight=round((total - sum(a.nbytes for a in others)) * 8 / planned, 4),
        size_bytes=total,
        fp32_bytes=fp32,
        ratio=round(fp32 / total, 3),
        blocks=tuple(
            BlockSize(name=name, bits=round(stored * 8 / count, 4), params=count)
            for name, (stored, count) in blocks.items()
        ),
        word_bits=tuple(RowBits(rows=rows, bits=bits) for entry in words for rows, bits in entry.clusters),
    )
