# SPDX-License-Identifier: Apache-2.0
"""How one embedding is made of a text's tokens: what a sentence-transformers folder says about it.

modules.json lists the steps; the one of type Pooling has a config.json of its own. Folders without them get
the mean over the tokens, normalised to unit length. No code of theirs is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from .errors import InputError
from .store import read_json, read_json_object, show

PoolKind = Literal["mean", "cls"]
MODULES, SETTINGS = "modules.json", "sentence_bert_config.json"
_MAX_BYTES = 1 << 20
_MODES: dict[str, PoolKind] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean": "mean",
    "pooling_mode_cls": "cls",
}
_OVERRIDE = "choose with --pooling mean or cls, and --normalize or --no-normalize"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """Mean over a text's tokens or its first token, and whether rows get unit length."""

    kind: PoolKind = "mean"
    normalize: bool = True


def read_pooling(folder: Path, *, kind: PoolKind | None = None, normalize: bool | None = None) -> Pooling:
    """The pooling of a model folder; ``kind`` and ``normalize`` replace what it says.

    Raises:
        InputError: the folder asks for steps that are not supported, and they are not all replaced.
    """
    if kind is not None and normalize is not None:
        return Pooling(kind=kind, normalize=normalize)
    found = _from_modules(folder, kind) if (folder / MODULES).exists() else Pooling()
    return Pooling(
        kind=found.kind if kind is None else kind,
        normalize=found.normalize if normalize is None else normalize,
    )


def read_text_limit(folder: Path) -> int | None:
    """The longest text in tokens that sentence-transformers would give the model; None where it says none."""
    path = folder / SETTINGS
    value = read_json_object(path, _MAX_BYTES).get("max_seq_length") if path.exists() else None
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: max_seq_length is {show(str(value))}, expected a positive whole number")
    return value


def text_limit(folder: Path, tokenizer_limit: int | None, longest: int) -> int:
    """Tokens that a text is cut to: what sentence-transformers, else the tokenizer says; at most ``longest``.

    Args:
        folder: of the model.
        tokenizer_limit: ``TextTokenizer.limit``.
        longest: what the model takes.
    """
    limits = (read_text_limit(folder), tokenizer_limit)
    return min(next((limit for limit in limits if limit is not None), longest), longest)


def _from_modules(folder: Path, kind: PoolKind | None) -> Pooling:
    path = folder / MODULES
    steps = read_json(path, _MAX_BYTES)
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"{path}: expected a list of steps")
    types = [str(step.get("type", "")).rpartition(".")[2] for step in steps]
    known = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
    if types not in known:
        found = ", ".join(show(name) for name in types)
        raise InputError(
            f"{path}: the steps {found} are not supported, only Transformer, Pooling and Normalize are "
            f"({_OVERRIDE})"
        )
    chosen = _kind(_step_folder(path, cast("dict[str, Any]", steps[1]))) if kind is None else kind
    return Pooling(kind=chosen, normalize="Normalize" in types)


def _step_folder(path: Path, step: dict[str, Any]) -> Path:
    """The folder of a step, a plain name beside modules.json."""
    name = step.get("path")
    if not isinstance(name, str) or len(PurePosixPath(name).parts) != 1 or name in (".", "..", "/"):
        raise InputError(f"{path}: the path of a step is {show(str(name))}, expected the name of a folder")
    return path.parent / name


def _kind(folder: Path) -> PoolKind:
    path = folder / "config.json"
    config = read_json_object(path, _MAX_BYTES)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if isinstance(config.get("pooling_mode"), str):  # one name instead of a flag for each
        chosen = [f"pooling_mode_{config['pooling_mode']}"]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        found = ", ".join(show(key) for key in chosen) or "none"
        raise InputError(
            f"{path}: the pooling modes {found} are not supported, only mean or cls alone is ({_OVERRIDE})"
        )
    return _MODES[chosen[0]]
