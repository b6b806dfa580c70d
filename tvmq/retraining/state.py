# SPDX-License-Identifier: Apache-2.0
"""The whole state of a run in one safetensors file, so that a killed run goes on where it last wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvmq.errors import InputError
from tvmq.store import atomic_file, parse_json
from tvmq.tensor_file import open_weights, write_weights

_FACTS = "facts"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    path: Path,
    weights: nn.Module,
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """Replace ``path`` by the state of a run: weights now, best weights, Adam's moments, ``facts`` (JSON)."""
    names = {id(parameter): name for name, parameter in weights.named_parameters()}
    tensors = {f"now/{name}": tensor for name, tensor in weights.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for parameter, moments in optimizer.state.items():
        tensors |= {f"{key}/{names[id(parameter)]}": moments[key] for key in _MOMENTS}
        tensors[f"step/{names[id(parameter)]}"] = torch.as_tensor(moments["step"]).reshape(1).float()
    arrays = {name: _writable(tensor) for name, tensor in tensors.items()}
    arrays[_FACTS] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with atomic_file(path) as place:
        write_weights(place, arrays)


def restore(
    path: Path, weights: nn.Module, optimizer: torch.optim.Optimizer, run: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put a saved state back; gives the best weights and the facts.

    Args:
        path: the file.
        weights, optimizer: as made for the same run.
        run: facts that must be the same in the file (model, plan, data, options).

    Raises:
        InputError: the file belongs to another run or is damaged.
    """
    arrays = open_weights(path)
    facts = parse_json(arrays.pop(_FACTS, np.empty(0, np.uint8)).tobytes(), f"{path}: facts")
    if not isinstance(facts, dict) or {key: facts.get(key) for key in run} != dict(run):
        raise InputError(f"{path}: the state of another run; give another --state file, or remove this one")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    try:
        weights.load_state_dict(_section(tensors, "now", weights))
        best = _section(tensors, "best", weights)
        for name, parameter in weights.named_parameters():
            if f"step/{name}" in tensors:
                moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in _MOMENTS}
                step = tensors[f"step/{name}"][0].to(parameter.device)
                optimizer.state[parameter] = {**moments, "step": step}
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path}: not a complete state ({error}); remove it to start anew") from None
    return best, facts


def _section(tensors: Mapping[str, Tensor], section: str, weights: nn.Module) -> dict[str, Tensor]:
    like = weights.state_dict()
    names = [name for name in tensors if name.startswith(f"{section}/")]
    return {
        name.removeprefix(f"{section}/"): tensors[name].to(like[name.removeprefix(f"{section}/")].dtype)
        for name in names
    }


def _writable(tensor: Tensor) -> Any:
    array = tensor.detach().cpu().numpy()
    match array.dtype.name:
        case "bool":
            return array.astype(np.uint8)
        case "int64":
            return array.astype(np.int32)
        case _:
            return array
