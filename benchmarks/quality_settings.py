# SPDX-License-Identifier: Apache-2.0
"""Rows of the quality table before they are measured: presets, plans and coded checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from relay_passes.bit_plan import (
    FLOAT_BITS,
    MAX_JSON_BYTES,
    BitPlan,
    BlockBits,
    ScaleDtype,
    WordBits,
    decode_plan,
    encode_plan,
    plan_hash,
)
from tvmq.options import PlanOptions
from tvmq.quantizers import NEED_MOMENTS, get_quantizer
from tvmq.store import atomic_write, read_bytes, sha256_file

GROUP = 128
Kind = Literal["fp32", "preset", "plan", "checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """How the codes of a preset are found.

    Attributes:
        label: for people.
        quantizer: registry name.
        group_size: columns that share a scale; 0 is a whole row.
        scale_dtype: of the scales.
    """

    label: str
    quantizer: str
    group_size: int
    scale_dtype: ScaleDtype


CODES: dict[str, Codes] = {
    "greedy": Codes(
        label="greedy, a scale per row", quantizer="greedy", group_size=0, scale_dtype="float32"
    ),
    "alternating": Codes(
        label="alternating, a scale per row", quantizer="alternating", group_size=0, scale_dtype="float32"
    ),
    "grouped": Codes(
        label=f"alternating, a scale per {GROUP} columns",
        quantizer="alternating",
        group_size=GROUP,
        scale_dtype="float16",
    ),
    "hessian": Codes(
        label="hessian, an fp16 scale per row", quantizer="hessian", group_size=0, scale_dtype="float16"
    ),
}
FREE = tuple(name for name, codes in CODES.items() if codes.quantizer not in NEED_MOMENTS)
"""Codes that need no calibration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table.

    Attributes:
        name: the bits.
        codes: how they were found.
        plan: of ``model``; empty for a checkpoint that brings its own.
        calibration: for codes that go by one.
        checkpoint: a folder to compile as it is, instead of the model.
        kind: what the row is.
        sha256: of what the row was made from: a checkpoint's weights, a plan, a calibration. Rows of other
            ones are measured again.
    """

    name: str
    codes: str
    plan: PlanOptions = field(default_factory=PlanOptions)
    calibration: Path | None = None
    checkpoint: Path | None = None
    kind: Kind = "preset"
    sha256: str = ""


FP32 = Setting(name="fp32", codes="", kind="fp32", plan=PlanOptions(preset="fp32"))


def settings(
    codes: Sequence[str], presets: Sequence[str], calibration: Path | None = None
) -> list[Setting]:
    """Every preset with every kind of codes."""
    return [_preset(name, CODES[kind], calibration) for name in presets for kind in codes]


def _preset(name: str, codes: Codes, calibration: Path | None) -> Setting:
    used = calibration if codes.quantizer in NEED_MOMENTS else None
    plan = PlanOptions(
        preset=name,
        quantizer=codes.quantizer,
        group_size=codes.group_size,
        scale_dtype=codes.scale_dtype,
    )
    sha256 = sha256_file(used) if used else ""
    return Setting(name=name, codes=codes.label, plan=plan, calibration=used, sha256=sha256)


def plans(
    files: Sequence[Path], quantizers: Sequence[str], calibration: Path | None, work: Path
) -> list[Setting]:
    """Every plan file with every quantizer in place of its own, or as it is without any.

    Args:
        files: plan.json files; each is named by its stem.
        quantizers: registry names.
        calibration: for quantizers that go by one.
        work: folder for the plans that are compiled.

    Raises:
        InputError: a file that cannot be read.
        ValueError: one that is no plan, or unknown codes, or codes without their calibration.
    """
    for name in quantizers:
        get_quantizer(name)  # refuses unknown ones
    found = []
    for file in files:
        plan = decode_plan(read_bytes(file, MAX_JSON_BYTES))
        found += [_plan(file, _with(plan, name), calibration, work) for name in quantizers or [None]]
    return found


def _plan(file: Path, plan: BitPlan, calibration: Path | None, work: Path) -> Setting:
    names = sorted({entry.quantizer for entry in plan.entries() if _coded(entry)})
    needy = [name for name in names if name in NEED_MOMENTS]
    if needy and calibration is None:
        raise ValueError(f"{file}: {needy[0]} codes need --calibration FILE")
    used = calibration if needy else None
    digest = plan_hash(plan)
    path = work / "plans" / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, encode_plan(plan))
    return Setting(
        name=file.stem,
        codes=", ".join([*names, *_outliers(plan)]),
        plan=PlanOptions(plan=path),
        calibration=used,
        kind="plan",
        sha256=digest + (sha256_file(used) if used else ""),
    )


def _with(plan: BitPlan, quantizer: str | None) -> BitPlan:
    if quantizer is None:
        return plan
    return replace(
        plan,
        blocks=tuple(replace(e, quantizer=quantizer) if _coded(e) else e for e in plan.blocks),
        words=tuple(replace(entry, quantizer=quantizer) for entry in plan.words),
    )


def _coded(entry: BlockBits | WordBits) -> bool:
    return isinstance(entry, WordBits) or entry.bits != FLOAT_BITS


def _outliers(plan: BitPlan) -> list[str]:
    percents = sorted({entry.outliers for entry in plan.entries()} - {0.0})
    return [f"{percent:g} % outliers" for percent in percents]


def checkpoints(folders: Sequence[Path]) -> list[Setting]:
    """Coded checkpoints as they are; each is named by its folder."""
    from tvmq.checkpoint import Checkpoint

    return [
        Setting(
            name=folder.name,
            codes="as stored",
            checkpoint=folder,
            kind="checkpoint",
            sha256=Checkpoint.open(folder).sha256,
        )
        for folder in folders
    ]
