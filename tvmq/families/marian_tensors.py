# SPDX-License-Identifier: Apache-2.0
"""Which tensor of a Marian checkpoint is which, and whether they fit its config.json. No torch here."""

from __future__ import annotations

import numpy as np

from tvmq.errors import InputError
from tvmq.generated import sinusoidal

from .family import TensorSource
from .leaf import check_tensors
from .marian_config import MarianConfig, shapes

_POSITION_TABLES = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def sources(checkpoint: TensorSource) -> dict[str, str]:
    """Tensor that the model computes with -> name that the checkpoint stores it under.

    Tied copies (``lm_head.weight``, ``...embed_tokens.weight``) and stored position tables may be there; they
    must equal what the model computes with. A missing ``final_logits_bias`` means zeros.

    Raises:
        InputError: every missing, unexpected or misshapen tensor, or the first copy that differs.
    """
    config = MarianConfig.from_dict(checkpoint.config)
    expected = shapes(config)
    source = _sources(config, set(checkpoint.names()), expected)
    _check_tensors(config, checkpoint, expected, source)
    _check_copies(checkpoint, config, source)
    return source


def _tied(config: MarianConfig) -> dict[str, str]:
    """Other names that a checkpoint may store a tied table under -> the name that is computed with."""
    canonical = {
        "model.encoder.embed_tokens.weight": f"{config.encoder_embedding}.weight",
        "model.decoder.embed_tokens.weight": f"{config.decoder_embedding}.weight",
        "lm_head.weight": f"{config.head}.weight",
    }
    return {copy: name for copy, name in canonical.items() if copy != name}


def _sources(config: MarianConfig, names: set[str], expected: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Tensor of the model -> name that the checkpoint stores it under (absent when it does not)."""
    source = {name: name for name in expected if name in names}
    for copy, name in _tied(config).items():
        if copy in names:
            source.setdefault(name, copy)
    return source


def _check_tensors(
    config: MarianConfig,
    checkpoint: TensorSource,
    expected: dict[str, tuple[int, ...]],
    source: dict[str, str],
) -> None:
    tables = dict.fromkeys(_POSITION_TABLES, (config.max_positions, config.d_model))
    known = expected | {copy: expected[name] for copy, name in _tied(config).items()} | tables
    missing = [name for name in expected if name not in source and name != "final_logits_bias"]
    check_tensors(checkpoint, known, missing)


def _check_copies(checkpoint: TensorSource, config: MarianConfig, source: dict[str, str]) -> None:
    names = set(checkpoint.names())
    for copy, name in _tied(config).items():
        if copy not in names or source[name] == copy:
            continue
        if not np.array_equal(checkpoint.tensor(copy), checkpoint.tensor(source[name])):
            raise InputError(
                f"{copy} differs from {name}, but config.json ties them; untie them there or fix the tensors"
            )
    for name in _POSITION_TABLES:
        expected = sinusoidal(config.max_positions, config.d_model)
        # half precision moves a sine by up to 2.5e-4
        if name in names and not np.allclose(checkpoint.tensor(name), expected, rtol=0, atol=1e-3):
            raise InputError(
                f"{name} does not hold sinusoidal positions; learned positions are not supported, "
                "convert the model with sinusoidal ones"
            )
