# SPDX-License-Identifier: Apache-2.0
"""Statistics of what flows through the matrices of a whole-sentence module, for ``calibration``.

``F.linear`` and ``F.embedding`` are watched while the module runs: a matrix is known by its parameter,
however the family calls it, and matrices that read the same tensor are measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .calibration import Sums, pack_triangle
from .samples import Samples, batches

BATCH_TOKENS = 1024
"""Padded tokens of a batch on a side."""
Side = Literal["source", "target", "all"]
_SIDES: dict[int, Side] = {2: "source", 3: "target"}
"""Length of a sequence in the first run -> the side it belongs to."""


class _Watch(TorchFunctionMode):
    """Calls ``linear(name, x, y)`` and ``lookup(name, y)`` for every such call on a known parameter."""

    def __init__(
        self,
        names: Mapping[int, str],
        linear: Callable[[str, Tensor, Tensor], None],
        lookup: Callable[[str, Tensor], None],
    ) -> None:
        super().__init__()
        self._names, self._linear, self._lookup = names, linear, lookup

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear and id(args[1]) in self._names:
            self._linear(self._names[id(args[1])], args[0], result)
        elif func is F.embedding and id(args[1]) in self._names:
            self._lookup(self._names[id(args[1])], result)
        return result


class ActivationRecorder:
    """One whole-sentence module and which of its matrices read what.

    A first run over two source and three target tokens tells the sides and the shared inputs.
    """

    def __init__(self, module: nn.Module, pad_id: int) -> None:
        self._module = module.eval().requires_grad_(False)
        self._pad_id = pad_id
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._inputs: dict[str, int] = {}
        self._first: list[str] = []
        self._sides: list[Side] = []
        seen: list[Tensor] = []
        tables: list[str] = []

        def note(name: str, x: Tensor, y: Tensor) -> None:
            if name in self._inputs:
                return
            place = next((i for i, other in enumerate(seen) if other is x), len(seen))
            if place == len(seen):
                seen.append(x)
                self._first.append(name)
                self._sides.append(_SIDES[x.shape[1]] if x.ndim == 3 else "all")
            self._inputs[name] = place

        def table(name: str, y: Tensor) -> None:
            tables.append(name)

        with torch.no_grad(), _Watch(self._names, note, table):
            tokens = torch.zeros((1, 3), dtype=torch.int64)
            self._module(tokens[:, :2], torch.tensor([2]), tokens)
        self._widths = [x.shape[-1] for x in seen]
        self._tables = tuple(sorted(set(tables)))
        self._vocabulary = max(len(module.get_parameter(name)) for name in self._tables)

    def measure(self, samples: Samples, *, fisher: bool, seed: int) -> Sums:
        """Sums over all real tokens of ``samples``; ``seed`` draws the tokens that gradients start from."""
        moments = [torch.zeros(width, width) for width in self._widths]
        counts = [0] * len(moments)
        gradients: dict[tuple[str, str], Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        predicted = 0
        real: dict[Side, Tensor] = {}

        def linear(name: str, x: Tensor, y: Tensor) -> None:
            place = self._inputs[name]
            if self._first[place] == name:
                side = self._sides[place]
                rows = x.detach().reshape(-1, x.shape[-1]) if side == "all" else x.detach()[real[side]]
                moments[place].addmm_(rows.T, rows)
                counts[place] += len(rows)
            if fisher:
                keep(("outputs", name), y)

        def lookup(name: str, y: Tensor) -> None:
            if fisher:
                keep(("lookups", name), y.requires_grad_())

        def keep(key: tuple[str, str], y: Tensor) -> None:
            def add(gradient: Tensor) -> None:  # zero at padding: nothing that counts depends on it
                squares = gradient.reshape(-1, gradient.shape[-1]).square().sum(0)
                gradients[key] = gradients[key] + squares if key in gradients else squares

            y.register_hook(add)

        for batch in batches(samples, BATCH_TOKENS, self._pad_id):
            source, source_real = _side(batch.source, batch.source_lengths)
            target, target_real = _side(batch.target, batch.target_lengths)
            real |= {"source": source_real, "target": target_real}
            predicted += int(batch.target_lengths.sum())
            with torch.set_grad_enabled(fisher), _Watch(self._names, linear, lookup):
                logits = self._module(source, torch.from_numpy(batch.source_lengths), target)
            if fisher:
                log_p = torch.log_softmax(logits[target_real], -1)
                drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
                log_p.gather(1, drawn).sum().backward()
        return Sums(
            inputs=dict(self._inputs),
            tables=self._tables,
            packed=[pack_triangle(m.numpy()) for m in moments],
            counts=counts,
            outputs={name: g.numpy() for (kind, name), g in gradients.items() if kind == "outputs"},
            lookups={name: g.numpy() for (kind, name), g in gradients.items() if kind == "lookups"},
            frequencies=_frequencies(samples, self._vocabulary),
            target_tokens=predicted,
        )


def _side(ids: np.ndarray, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
    """Token ids and which of them are real: int64[B, T], bool[B, T]."""
    return torch.from_numpy(ids), torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None])


def _frequencies(samples: Samples, vocabulary: int) -> np.ndarray:
    counts = np.zeros(vocabulary, np.int64)
    for sample in samples:
        counts += np.bincount((*sample.source, *sample.target), minlength=vocabulary)
    return counts


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch on this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
