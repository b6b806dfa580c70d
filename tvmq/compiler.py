# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint and a plan to an artifact folder: export, quantize, lower, build, self-test, write."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from relay_passes.bit_plan import BitPlan, WordBits, encode_plan, plan_hash
from relay_passes.fold_transpose import transposed_tensors
from schedules.lut_table import Tables
from targets import detect_host, get_target, resolve_targets
from targets.spec import TargetSpec

from . import __version__, build, pipeline, selftest
from .artifact import Bits, BlockSize, IsaLevel, Manifest, Model, RowBits, Versions, Weights, write_artifact, write_weights
from .checkpoint import Checkpoint
from .errors import UsageError
from .families import Family, get_family
from .graphs import BANNED, translation_module
from .manifest import Generated
from .options import Progress, no_progress
from .quantize import quantize_model
from .store import atomic_dir
from .tokenizer import MarianTokenizer
from .weights import collect

WEIGHTS_FILE = "weights.safetensors"
POSITIONS = "positions"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """What was written, and the seconds that each phase took."""

    output: Path
    manifest: Manifest
    seconds: dict[str, float]


class _Clock:
    """Names the running phase for progress and keeps its duration."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._phase, self._start = "", time.perf_counter()

    def start(self, phase: str) -> None:
        self.stop()
        self._phase, self._start = phase, time.perf_counter()
        self._progress(phase, 0, 1)

    def stop(self) -> None:
        if self._phase:
            self.seconds[self._phase] = round(time.perf_counter() - self._start, 3)
            self._progress(self._phase, 1, 1)
        self._phase = ""


def compile_checkpoint(
    model: Path,
    output: Path,
    *,
    plan: BitPlan,
    target: str = "host",
    tables: Tables = "int8",
    force: bool = False,
    dump_ir: Path | None = None,
    isa_levels: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> CompileReport:
    """Compile a checkpoint folder into an artifact folder.

    Args:
        model: Hugging Face folder (config.json, safetensors, tokenizer files).
        output: folder to write; it appears complete or not at all.
        plan: bits of every tensor, see ``tvmq.planning``.
        target: an ISA level, or ``host`` or ``x86-64``.
        tables: int8 lookup tables, or exact FP32 ones.
        force: replace an existing artifact.
        dump_ir: folder for the IR after each phase.
        isa_levels: exactly these levels instead of the target's.
        progress: told of every phase.

    Raises:
        TvmqError: model, plan, target or output cannot be used.
    """
    levels = _levels(target, isa_levels)
    build.find_linker()
    clock = _Clock(progress)
    with atomic_dir(output, force, inputs=[model]) as staging:
        clock.start("read")
        checkpoint = Checkpoint.open(model)
        family = get_family(checkpoint.config)
        config = family.read_config(checkpoint.config)
        tokenizer = MarianTokenizer.open(model)
        plan.validate({info.name: info.shape for info in family.tensors(config)})
        loaded = family.load(checkpoint)
        clock.start("export")
        if dump_ir is not None:
            dump_ir.mkdir(parents=True, exist_ok=True)
        banned = np.array([config.pad_id], np.int32)
        graphs = translation_module(family.export(loaded), len(banned))
        clock.start("quantize")
        quantized = quantize_model(checkpoint, plan, checkpoint.frequencies(), progress)
        clock.start("lower")
        common = pipeline.run(graphs, pipeline.common_phases(plan), levels[0].to_tvm(), dump_ir)
        libraries, parameters = [], {}
        for level in levels:
            clock.start(f"build {level.name}")
            lowered = build.lower(common, plan, level, tables, dump_ir)
            parameters = build.parameter_names(lowered)
            library = f"lib/{level.name}.so"
            (staging / "lib").mkdir(exist_ok=True)
            build.link(lowered, level, staging / library)
            libraries.append(_isa_level(level, library, build.kernel_names(lowered)))
        clock.start("pack")
        state = loaded.state_dict()
        arrays = collect(
            {name for names in parameters.values() for name in names if name != POSITIONS},
            quantized,
            lambda name: state[name].numpy(),
            transposed_tensors(common),
            {BANNED: banned},
        )
        write_weights(staging / WEIGHTS_FILE, arrays)
        (staging / "plan.json").write_bytes(encode_plan(plan))
        _copy_tokenizer(tokenizer, staging / "tokenizer")
        rows, columns = loaded.positions.shape
        weights = Weights(
            file=WEIGHTS_FILE,
            parameters=parameters,
            generated={POSITIONS: Generated(kind="sinusoidal", rows=rows, columns=columns)},
        )
        manifest = _manifest(
            checkpoint, family, config, plan, tables, target, libraries, weights, _bits(family, config, plan, arrays)
        )
        clock.start("self-test")
        selftest.record(staging, manifest, _self_test_level(levels))
        written = write_artifact(staging, manifest)
        clock.stop()
    return CompileReport(output=output, manifest=written, seconds=clock.seconds)


def _levels(target: str, names: Sequence[str] | None) -> tuple[TargetSpec, ...]:
    try:
        levels = tuple(get_target(n) for n in names) if names else resolve_targets(target)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if len({level.name for level in levels}) != len(levels):
        raise UsageError("an ISA level is named twice")
    return tuple(sorted(levels, key=lambda level: level.rank))


def _self_test_level(levels: Sequence[TargetSpec]) -> str | None:
    """The best compiled level that this machine runs; None when cross-compiling."""
    compiled = {level.name for level in levels}
    return next((name for name in detect_host() if name in compiled), None)


def _isa_level(level: TargetSpec, library: str, kernels: tuple[str, ...]) -> IsaLevel:
    return IsaLevel(
        name=level.name, library=library, features=tuple(sorted(level.cpu_flags)), kernels=kernels
    )


def _copy_tokenizer(tokenizer: MarianTokenizer, folder: Path) -> None:
    """Copies the tokenizer's files; vocab.json loses its white space, nothing else."""
    folder.mkdir()
    for file in tokenizer.files():
        data = file.read_bytes()
        if file.name == "vocab.json":
            text = json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":"))
            data = text.encode("utf-8")
        (folder / file.name).write_bytes(data)


def _manifest(
    checkpoint: Checkpoint,
    family: Family,
    config: Any,
    plan: BitPlan,
    tables: Tables,
    target: str,
    libraries: Sequence[IsaLevel],
    weights: Weights,
    bits: Bits,
) -> Manifest:
    generation = checkpoint.generation
    limit = int(generation.get("max_length") or config.max_positions)
    return Manifest(
        versions=Versions(tool=__version__, tvm=version("apache-tvm"), llvm=_llvm_version()),
        family=family.name,
        model=Model(
            name=checkpoint.path.name,
            sha256=checkpoint.sha256,
            licence=_licence(checkpoint.path),
            revision=str(checkpoint.config.get("_commit_hash") or ""),
        ),
        plan_sha256=plan_hash(plan),
        tables=tables,
        target=target,
        isa_levels=tuple(libraries),
        weights=weights,
        architecture={
            "vocab": config.decoder_vocab_size,
            "source_vocab": config.vocab_size,
            "d_model": config.d_model,
            "encoder_layers": config.encoder_layers,
            "decoder_layers": config.decoder_layers,
            "heads": config.decoder_heads,
            "max_source": config.max_positions,
            "max_target": config.max_positions,
        },
        generation={
            "eos_token_id": config.eos_id,
            "pad_token_id": config.pad_id,
            "decoder_start_token_id": config.start_id,
            "forced_eos_token_id": config.forced_eos_id,
            "num_beams": int(generation.get("num_beams") or 1),
            "length_penalty": float(generation.get("length_penalty") or 1.0),
            "max_new_tokens": max(1, min(limit, config.max_positions) - 1),
        },
        bits=bits,
    )


def _llvm_version() -> str:
    from tvm.target.codegen import llvm_version_major

    return str(llvm_version_major())


def _licence(folder: Path) -> str:
    """First line of a licence note in the model folder, so that it travels with the artifact."""
    for name in ("LICENSE-NOTE.md", "LICENSE", "LICENSE.md", "LICENSE.txt"):
        path = folder / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[0].lstrip("# ").strip()[:200] if lines else name
    return "not stated by the model folder"


def _bits(family: Family, config: Any, plan: BitPlan, arrays: dict[str, np.ndarray]) -> Bits:
    """Sizes as they ship: every byte of the weights file's arrays, row padding and orders included."""
    blocks: dict[str, list[int]] = {}
    infos = family.tensors(config)
    for info in infos:
        prefix = f"{info.name}:"
        stored = sum(a.nbytes for name, a in arrays.items() if name.startswith(prefix))
        entry = blocks.setdefault(info.block, [0, 0])
        entry[0] += stored
        entry[1] += info.shape[0] * info.shape[1]
    planned = sum(count for _, count in blocks.values())
    others = sum(a.nbytes for name, a in arrays.items() if ":" not in name)
    total = sum(a.nbytes for a in arrays.values())
    words = [entry for entry in plan.entries() if isinstance(entry, WordBits)]
    return Bits(
        bits_per_weight=round((total - others) * 8 / planned, 4),
        size_bytes=total,
        fp32_bytes=4 * planned + others,
        ratio=round((4 * planned + others) / total, 3),
        blocks=tuple(
            BlockSize(name=name, bits=round(stored * 8 / count, 4), params=count)
            for name, (stored, count) in blocks.items()
        ),
        word_bits=tuple(RowBits(rows=rows, bits=bits) for entry in words for rows, bits in entry.clusters),
    )
