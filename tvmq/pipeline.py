# SPDX-License-Identifier: Apache-2.0
"""The ordered list of passes, in phases; the IR after each phase can be written to a folder.

Phases: 0 imported, 1 annotated (plan attached; in mode block-int then exponents), 2 lowered (kernels of
``schedules``), 3 legalised and fused (what is left of Relax becomes TensorIR). ``build`` compiles the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from relay_passes.annotate_bits import AnnotateBits
from relay_passes.annotate_ranges import AnnotateRanges
from relay_passes.bit_plan import BitPlan
from relay_passes.check_bits import CheckBits
from relay_passes.check_integer import CheckInteger
from relay_passes.choose_exponents import ChooseExponents
from relay_passes.fold_transpose import FoldTranspose
from relay_passes.legalize import Legalize
from relay_passes.lower_attention import LowerAttention
from relay_passes.lower_block_int import LowerBlockInt
from relay_passes.lower_embedding import LowerEmbedding
from relay_passes.lower_linear import LowerLinear
from relay_passes.lower_norm import LowerNorm
from relay_passes.lower_pooling import LowerPooling
from relay_passes.lower_search import LowerSearch
from relay_passes.share_tables import ShareTables
from schedules.lut_table import Tables
from schedules.tuning_log import NO_RECORDS, TuningLog
from targets.spec import TargetSpec

from .errors import InputError
from .store import atomic_write

Pass = Callable[[tvm.IRModule], tvm.IRModule]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Passes that run together and the name that their result is dumped under."""

    name: str
    passes: Sequence[Pass]


def common_phases(plan: BitPlan) -> list[Phase]:
    """What does not depend on the target."""
    return [
        Phase(name="0-imported", passes=[relax.transform.CanonicalizeBindings(), FoldTranspose()]),
        Phase(name="1-annotated", passes=[AnnotateBits(plan=plan)]),
    ]


def integer_phase(plan: BitPlan, longest: int, ranges: Mapping[str, NDArray[np.floating]]) -> Phase:
    """The constants of mode block-int: what is read, how large it is, which exponents it gets."""
    return Phase(
        name="1-exponents",
        passes=[
            AnnotateRanges(plan=plan, longest=longest, ranges=ranges),
            ChooseExponents(plan=plan),
        ],
    )


def target_phases(
    plan: BitPlan, target: TargetSpec, tables: Tables, log: TuningLog = NO_RECORDS
) -> list[Phase]:
    """What is done once per ISA level, with the schedules of a tuning log."""
    return [
        Phase(
            name=f"2-lowered-{target.name}",
            passes=[
                *_integer_passes(plan, target, log),
                LowerEmbedding(plan=plan),
                LowerLinear(plan=plan, target=target, tables=tables, log=log),
                ShareTables(),
                LowerNorm(),
                LowerAttention(),
                LowerPooling(),
                LowerSearch(),
                CheckBits(plan=plan),
            ],
        ),
        Phase(
            name=f"3-fused-{target.name}",
            passes=[
                relax.transform.ConvertToDataflow(min_size=2),
                Legalize(),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
            ],
        ),
    ]


def _integer_passes(plan: BitPlan, target: TargetSpec, log: TuningLog) -> list[Pass]:
    if plan.mode == "float":
        return []
    return [LowerBlockInt(plan=plan, target=target, log=log), CheckInteger()]


def make_dump_folder(path: Path) -> None:
    """The folder for ``dump``, before any work is done; InputError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write IR to {path}: {error.strerror} (name a folder)") from error


def run_phase(module: tvm.IRModule, phase: Phase, dump: Path | None = None) -> tvm.IRModule:
    """Runs the passes of one phase; with ``dump``, writes ``<phase>.py`` there."""
    for step in phase.passes:
        module = step(module)
    if dump is not None:
        atomic_write(dump / f"{phase.name}.py", module.script() + "\n")
    return module


def run(module: tvm.IRModule, phases: Sequence[Phase], target: Any, dump: Path | None = None) -> tvm.IRModule:
    """Runs the phases in order; with ``dump``, writes ``<phase>.py`` after each."""
    with target:
        for phase in phases:
            module = run_phase(module, phase, dump)
    return module
