# SPDX-License-Identifier: Apache-2.0
"""Statistics of what flows through the matrices of a whole model, for ``calibration``.

``F.linear`` and ``F.embedding`` are watched while the module runs: a matrix is known by its parameter,
however the family calls it, and matrices that read the same tensor are measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .calibration import Sums
from .samples import Samples, batches
from .triangles import pack_triangle
from .whole_model import Side, WholeModel

BATCH_TOKENS = 1024
"""Padded tokens of a batch on a side."""


class _Watch(TorchFunctionMode):
    """Calls ``linear(name, x, y)`` and ``lookup(name, ids, y)`` for every such call on a known parameter."""

    def __init__(
        self,
        names: Mapping[int, str],
        linear: Callable[[str, Tensor, Tensor], None],
        lookup: Callable[[str, Tensor, Tensor], None],
    ) -> None:
        super().__init__()
        self._names, self._linear, self._lookup = names, linear, lookup

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear and id(args[1]) in self._names:
            self._linear(self._names[id(args[1])], args[0], result)
        elif func is F.embedding and id(args[1]) in self._names:
            self._lookup(self._names[id(args[1])], args[0], result)
        return result


class ActivationRecorder:
    """One whole model and which of its matrices read what.

    A first run over a few tokens tells the sides and the shared inputs.
    """

    def __init__(self, model: WholeModel) -> None:
        self._model = model
        model.module.eval().requires_grad_(False)
        kinds = {info.name: info for info in model.tensors}
        self._names = {id(p): name for name, p in model.module.named_parameters() if name in kinds}
        self._inputs: dict[str, int] = {}
        self._first: list[str] = []
        self._sides: list[Side | None] = []
        seen: list[Tensor] = []
        tables: dict[str, Side] = {}
        batch, sides = model.trial()

        def note(name: str, x: Tensor, y: Tensor) -> None:
            if name in self._inputs:
                return
            place = next((i for i, other in enumerate(seen) if other is x), len(seen))
            if place == len(seen):
                seen.append(x)
                self._first.append(name)
                self._sides.append(sides[x.shape[1]] if x.ndim == 3 else None)
            self._inputs[name] = place

        def table(name: str, ids: Tensor, y: Tensor) -> None:
            tables[name] = sides[ids.shape[1]]

        with torch.no_grad(), _Watch(self._names, note, table):
            model.outputs(batch)
        self._widths = [x.shape[-1] for x in seen]
        self._tables = tuple(sorted(name for name in tables if name in self._inputs))
        self._lookups = {n: kinds[n].shape[1] for n in sorted(tables) if n not in self._inputs}
        self._places: dict[str, tuple[Side, int]] = {
            name: (side, kinds[name].shape[0])
            for name, side in tables.items()
            if not kinds[name].is_embedding
        }
        self._vocabulary = max(kinds[name].shape[0] for name in tables if kinds[name].is_embedding)

    def measure(self, samples: Samples, *, fisher: bool, seed: int) -> Sums:
        """Sums over all real tokens of ``samples``; ``seed`` draws the outputs that gradients start from."""
        moments = [torch.zeros(width, width) for width in self._widths]
        counts = [0] * len(moments)
        gradients: dict[tuple[str, str], Tensor] = {}
        places = {name: torch.zeros(rows, dtype=torch.int64) for name, (_, rows) in self._places.items()}
        generator = torch.Generator().manual_seed(seed)
        predicted = 0
        real: dict[Side, Tensor] = {}

        def linear(name: str, x: Tensor, y: Tensor) -> None:
            place = self._inputs[name]
            if self._first[place] == name:
                side = self._sides[place]
                rows = x.detach().reshape(-1, x.shape[-1]) if side is None else x.detach()[real[side]]
                moments[place].addmm_(rows.T, rows)
                counts[place] += len(rows)
            if fisher:
                keep(("outputs", name), y)

        def lookup(name: str, ids: Tensor, y: Tensor) -> None:
            if name in places:
                side, rows = self._places[name]
                places[name] += torch.bincount(ids[real[side]], minlength=rows)
            if fisher:
                keep(("lookups", name), y.requires_grad_())

        def keep(key: tuple[str, str], y: Tensor) -> None:
            def add(gradient: Tensor) -> None:  # zero at padding: nothing that counts depends on it
                squares = gradient.reshape(-1, gradient.shape[-1]).square().sum(0)
                gradients[key] = gradients[key] + squares if key in gradients else squares

            y.register_hook(add)

        for batch in batches(samples, BATCH_TOKENS, self._model.pad_id):
            real |= self._model.real(batch)
            with torch.set_grad_enabled(fisher), _Watch(self._names, linear, lookup):
                outputs = self._model.outputs(batch)
            predicted += len(outputs)
            if fisher:
                said = self._model.distribution.of(outputs)
                self._model.distribution.log_likelihood(said, generator).backward()
        equal = [pack_triangle(np.eye(width, dtype=np.float32)) for width in self._lookups.values()]
        alone = {name: len(moments) + i for i, name in enumerate(self._lookups)}
        return Sums(
            inputs=self._inputs | alone,
            tables=self._tables,
            packed=[pack_triangle(m.numpy()) for m in moments] + equal,
            counts=counts + [1] * len(equal),
            outputs={name: g.numpy() for (kind, name), g in gradients.items() if kind == "outputs"},
            lookups={name: g.numpy() for (kind, name), g in gradients.items() if kind == "lookups"},
            rows={name: found.numpy() for name, found in places.items()},
            frequencies=samples.counts(self._vocabulary),
            predicted=predicted,
        )


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch on this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
