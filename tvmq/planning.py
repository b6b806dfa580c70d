# SPDX-License-Identifier: Apache-2.0
"""Making a bit plan: a preset, one width or an average, then the user's overrides by name or pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from relay_passes.bit_plan import (
    FLOAT_BITS,
    MAX_BITS,
    SCHEMA,
    BitPlan,
    BlockBits,
    ScaleDtype,
    WordBits,
    check_percent,
)

from .bit_mix import Clusters, mix_bits
from .errors import UsageError
from .families.family import TensorInfo
from .presets import DEFAULT_PRESET, EVERY_BLOCK, Preset, WordClusters, get_preset
from .quantizers import get_quantizer
from .word_bits import cluster_sizes

UNIFORM_PRESET = "3-bit"
"""Settings of a single width; a mix takes those of the default preset, whose errors ``bit_mix`` knows."""
PREFERRED_GROUP = 128
GROUP_UNIT = 32
"""Groups that are a multiple of this need no padding in the kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """How quantized tensors are stored: ``group_size`` 0 is one scale per row, None picks a size."""

    quantizer: str
    group_size: int | None
    offset: bool
    scale_dtype: ScaleDtype
    outliers: float


def make_plan(
    tensors: Sequence[TensorInfo],
    *,
    preset: str | None = None,
    bits: float | None = None,
    uniform: int | None = None,
    overrides: Sequence[tuple[str, int]] = (),
    quantizer: str | None = None,
    group_size: int | None = None,
    offset: bool | None = None,
    scale_dtype: ScaleDtype | None = None,
    outliers: float | None = None,
    frequencies: NDArray[np.integer] | None = None,
) -> BitPlan:
    """The plan for ``tensors``.

    Args:
        tensors: the model's quantizable matrices.
        preset: name of a shipped plan; ``DEFAULT_PRESET`` without it, ``bits`` and ``uniform``.
        bits: mean bits per weight, counting scales, offsets and word orders: a mix is picked.
        uniform: this width for every tensor, 1..8 or 32.
        overrides: (pattern, bits) in order, the last match wins. A pattern is a tensor name, a block name
            or a glob over either.
        quantizer: registry name; None keeps the preset's.
        group_size: columns that share a scale; None keeps the preset's, 0 is one scale per row.
        offset: an offset per group besides the scales; None means no.
        scale_dtype: dtype of scales and offsets; None keeps the preset's.
        outliers: percent of the weights of each matrix that are stored beside the planes; None means none.
        frequencies: occurrences of each word, for presets and mixes with bits by word.

    Raises:
        UsageError: contradicting or unknown settings, in one sentence.
    """
    if sum(choice is not None for choice in (preset, bits, uniform)) > 1:
        raise UsageError("a preset, an average and a uniform width exclude each other; give one of them")
    if not tensors:
        raise UsageError("the model has no quantizable matrices")
    base = get_preset(preset or (DEFAULT_PRESET if uniform is None else UNIFORM_PRESET))
    settings = _Settings(
        quantizer=quantizer or base.quantizer,
        group_size=group_size if group_size is not None or base.grouped else 0,
        offset=bool(offset),
        scale_dtype=scale_dtype or base.scale_dtype,
        outliers=outliers or 0.0,
    )
    try:
        get_quantizer(settings.quantizer)
        check_percent(settings.outliers)
    except ValueError as error:
        raise UsageError(str(error)) from None
    fixed = overridden_bits(tensors, overrides)
    _check_frequencies(tensors, frequencies)
    chosen: Mapping[str, int | Clusters]
    if bits is not None:
        source = f"{bits:g} bits per weight"
        entries = {info.name: _entry(info, fixed.get(info.name, 1), settings) for info in tensors}
        chosen = mix_bits(tensors, entries, average=bits, fixed=fixed, frequencies=frequencies)
    elif uniform is not None:
        source = f"uniform {uniform}"
        chosen = {info.name: _width(uniform, "a uniform width of") for info in tensors}
    else:
        source = f"preset {base.name}"
        chosen = {
            info.name: _preset_bits(info, base, frequencies) for info in tensors if info.name not in fixed
        }
    chosen = {**chosen, **fixed}
    made = [_planned(info, chosen[info.name], settings) for info in tensors]
    return BitPlan(
        schema=SCHEMA,
        blocks=tuple(entry for entry in made if isinstance(entry, BlockBits)),
        words=tuple(entry for entry in made if isinstance(entry, WordBits)),
        source="; ".join([source, *(f"{pattern}={width}" for pattern, width in overrides)]),
    )


def overridden_bits(
    tensors: Sequence[TensorInfo], overrides: Sequence[tuple[str, int]]
) -> dict[str, int]:
    """Bits of the tensors that a pattern names, the last one deciding; UsageError for one without a match."""
    names = sorted({info.name for info in tensors} | {info.block for info in tensors})
    fixed: dict[str, int] = {}
    for pattern, bits in overrides:
        _width(bits, f"{pattern}:")
        matches = [
            info.name
            for info in tensors
            if pattern in (info.name, info.block)
            or fnmatchcase(info.name, pattern)
            or fnmatchcase(info.block, pattern)
        ]
        if not matches:
            close = get_close_matches(pattern, names, 3, 0.4) or sorted({info.block for info in tensors})
            raise UsageError(f"no tensor or block matches {pattern!r}; close are {', '.join(close)}")
        fixed |= dict.fromkeys(matches, bits)
    return fixed


def _width(bits: int, what: str) -> int:
    if not (1 <= bits <= MAX_BITS or bits == FLOAT_BITS):
        raise UsageError(
            f"{what} {bits} bits is impossible (expected 1 to {MAX_BITS}, or {FLOAT_BITS} for FP32)"
        )
    return bits


def _check_frequencies(tensors: Sequence[TensorInfo], frequencies: NDArray[np.integer] | None) -> None:
    if frequencies is None:
        return
    for info in tensors:
        if info.is_embedding and frequencies.shape != (info.shape[0],):
            raise UsageError(
                f"token frequencies for {frequencies.size} words, but {info.name} has {info.shape[0]} rows; "
                "give the frequencies of this model's vocabulary"
            )


def _preset_bits(info: TensorInfo, preset: Preset, frequencies: NDArray[np.integer] | None) -> int | Clusters:
    bits = preset.bits.get(info.block, preset.bits.get(EVERY_BLOCK))
    if bits is None:
        raise UsageError(
            f"preset {preset.name} has no bits for block {info.block} ({info.name}): it is made for "
            f"{', '.join(preset.bits)}; use fp32, 1-bit to 4-bit or 8-bit"
        )
    if not isinstance(bits, WordClusters):
        return bits
    if frequencies is None or not info.is_embedding:
        raise UsageError(
            f"preset {preset.name} gives {info.name} bits by word and needs token frequencies: "
            "put token_freq.tsv in the model folder, or give --frequencies FILE or --text FILE"
        )
    sizes = cluster_sizes(info.shape[0], bits.b, bits.r)
    return tuple((rows, bits.b - i) for i, rows in enumerate(sizes) if rows)


def _planned(info: TensorInfo, bits: int | Clusters, settings: _Settings) -> BlockBits | WordBits:
    if isinstance(bits, int):
        return _entry(info, bits, settings)
    return _entry(info, bits[0][1], settings).by_word(bits)


def _entry(info: TensorInfo, bits: int, settings: _Settings) -> BlockBits:
    entry = BlockBits(tensor=info.name, block=info.block, bits=bits)
    if bits == FLOAT_BITS:
        return entry
    return replace(
        entry,
        group_size=_group(info, settings.group_size),
        quantizer=settings.quantizer,
        offset=settings.offset,
        scale_dtype=settings.scale_dtype,
        outliers=settings.outliers,
    )


def _group(info: TensorInfo, wanted: int | None) -> int | None:
    columns = info.shape[1]
    fits = [size for size in range(GROUP_UNIT, PREFERRED_GROUP + 1, GROUP_UNIT) if columns % size == 0]
    if wanted is None:
        return fits[-1] if fits else None
    if wanted < 0 or (wanted and columns % wanted):
        choices = ", ".join(str(size) for size in (0, *fits))
        raise UsageError(
            f"{info.name}: group size {wanted} does not divide {columns} columns (for example {choices}; "
            "0 is one scale per row)"
        )
    return wanted or None
