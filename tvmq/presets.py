# SPDX-License-Identifier: Apache-2.0
"""Shipped plans by name: every row of Table 2 of Chung et al. 2020, and uniform widths for any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from relay_passes.bit_plan import FLOAT_BITS, ScaleDtype

from .errors import UsageError

ENCODER, DECODER = ("Enc_ee", "Enc_ffn"), ("Dec_dd", "Dec_ed", "Dec_ffn")
EVERY_BLOCK = "*"
DEFAULT_PRESET = "default"
"""The smallest setting that stays within one BLEU of FP32 without retraining, on the embedded model's dev and
test sets: 3 bits with one scale per row and plane. (Groups of 128 cost 0.3 bits more and gain nothing that
these sets show.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordClusters:
    """Bits by word frequency (Algorithm 1): clusters of b, b - 1 .. 1 bits, each ``r`` times as large."""

    b: int
    r: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Bits by block name (or ``EVERY_BLOCK``) and how they are quantized unless the user says otherwise.

    ``grouped``: scales per group of columns (the largest size that suits the kernels), else per row.
    """

    name: str
    bits: Mapping[str, int | WordClusters]
    quantizer: str
    grouped: bool
    scale_dtype: ScaleDtype


def preset_names() -> tuple[str, ...]:
    """Names that ``get_preset`` accepts."""
    return tuple(_PRESETS)


def get_preset(name: str) -> Preset:
    """The preset called ``name``; UsageError listing the known ones if there is none."""
    if name not in _PRESETS:
        close = get_close_matches(name, _PRESETS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown preset {name!r}: known are {', '.join(_PRESETS)}{hint}")
    return _PRESETS[name]


def _paper(row: str, emb: int | WordClusters, decoder: tuple[int, ...], encoder: tuple[int, ...]) -> Preset:
    bits = {
        "Emb": emb,
        **dict(zip(DECODER, decoder, strict=True)),
        **dict(zip(ENCODER, encoder, strict=True)),
    }
    return _greedy(row, bits)


def _greedy(row: str, bits: Mapping[str, int | WordClusters]) -> Preset:
    name = f"chung2020-{row}"
    return Preset(name=name, bits=bits, quantizer="greedy", grouped=False, scale_dtype="float32")


def _uniform(name: str, bits: int, quantizer: str, *, grouped: bool = True) -> Preset:
    return Preset(
        name=name, bits={EVERY_BLOCK: bits}, quantizer=quantizer, grouped=grouped, scale_dtype="float16"
    )


def _all() -> dict[str, Preset]:
    words = {"2.5": WordClusters(b=4, r=1), "1.3": WordClusters(b=4, r=4), "1.1": WordClusters(b=4, r=8)}
    keep_decoder, keep_encoder = (FLOAT_BITS,) * 3, (FLOAT_BITS,) * 2
    phases = {
        "fp-fp": (keep_decoder, keep_encoder),
        "1.8-fp": ((2, 3, 1), keep_encoder),
        "1.8-3.7": ((2, 3, 1), (3, 4)),
    }
    presets = [
        _uniform(DEFAULT_PRESET, 3, "alternating", grouped=False),
        _uniform("fp32", FLOAT_BITS, "alternating"),
        *(_uniform(f"{bits}-bit", bits, "alternating") for bits in (1, 2, 3, 4)),
        _uniform("8-bit", 8, "rtn"),
        _greedy("fp", {EVERY_BLOCK: FLOAT_BITS}),
        _greedy("3bit", {EVERY_BLOCK: 3}),
        _greedy("2bit", {EVERY_BLOCK: 2}),
        _paper("emb2", 2, keep_decoder, keep_encoder),
        *(
            _paper(f"{emb}-{phase}", clusters, decoder, encoder)
            for phase, (decoder, encoder) in phases.items()
            for emb, clusters in words.items()
        ),
    ]
    return {preset.name: preset for preset in presets}


_PRESETS = _all()
