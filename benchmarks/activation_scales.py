# SPDX-License-Identifier: Apache-2.0
"""What int8 activations cost an encoder's embeddings, by how columns share a power of two.

    python -m benchmarks.activation_scales

Simulated in PyTorch: every linear reads activations rounded to 8 bits, its weights are FP32 or 8-bit levels
with an exponent per row (``tvmq.integer_levels``). Compared are one exponent per token, exponents per group
of columns, groups of channels sorted by range (per-embedding-group quantization with a permutation,
Bondarenko et al. 2021) and channel exponents folded into the weights (``relay_passes.choose_exponents``);
ranges are those of calibration texts. Everything else is exact, so that only the rounding differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from relay_passes.choose_exponents import channel_exponents
from tvmq.integer_levels import quantize_levels

from . import encoder_texts
from .embeddings import Fidelity, fidelity, packaged_model, print_fidelity
from .encoder_engines import EncoderSetup
from .encoder_texts import CALIBRATION_SAMPLE, TEST_SAMPLES
from .encoders import WORK
from .process import set_threads

LIMIT = 127
BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How a linear's inputs share scales.

    Attributes:
        block: columns that share an exponent; 0 is the row.
        sort: channels are put in groups by their range.
        fold: channels have exponents that the weights take over.
    """

    block: int = 0
    sort: bool = False
    fold: bool = False


SCALINGS = {
    "one exponent per token": Scaling(),
    "groups of 128": Scaling(block=128),
    "groups of 64": Scaling(block=64),
    "groups of 128, sorted channels": Scaling(block=128, sort=True),
    "groups of 64, sorted channels": Scaling(block=64, sort=True),
    "one exponent per token, channel exponents": Scaling(fold=True),
    "groups of 128, channel exponents": Scaling(block=128, fold=True),
    "groups of 64, channel exponents": Scaling(block=64, fold=True),
}


def rounded(x: Tensor, block: int) -> Tensor:
    """``x`` [..., k] in 8 bits, over the least power of two for each ``block`` of columns (0: the row)."""
    groups = x.reshape(*x.shape[:-1], -1, block or x.shape[-1])
    peak = groups.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    step = torch.exp2(torch.ceil(torch.log2(peak / LIMIT)))
    return (torch.round(groups / step).clamp(-LIMIT, LIMIT) * step).reshape(x.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a linear's inputs go through before they are rounded.

    Attributes:
        order: int64[k], columns in the order of the groups.
        exponents: float32[k], columns are divided by 2 to these.
    """

    order: Tensor
    exponents: Tensor

    @classmethod
    def of(cls, scaling: Scaling, ranges: NDArray[np.float64]) -> Inputs:
        """For inputs of these root mean squares by channel."""
        order = np.argsort(ranges, kind="stable") if scaling.sort else np.arange(len(ranges))
        exponents = channel_exponents(ranges.tolist()) if scaling.fold else [0] * len(ranges)
        return cls(order=torch.from_numpy(order), exponents=torch.tensor(exponents, dtype=torch.float32))

    def round(self, x: Tensor, block: int) -> Tensor:
        """``x`` rounded, its columns where they were and as large as they were."""
        factors = torch.exp2(self.exponents)
        result = torch.empty_like(x)
        result[..., self.order] = rounded((x / factors)[..., self.order], block)
        return result * factors

    def weight(self, weight: Tensor) -> Tensor:
        """A linear's weight as 8-bit levels after it has taken the exponents over."""
        factors = torch.exp2(self.exponents)
        levels = quantize_levels((weight * factors).numpy())
        return torch.from_numpy(levels.dequantize()) / factors


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The matrices that are multiplied by, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}


def measure_ranges(module: nn.Module, run: Callable[[], Any]) -> dict[str, NDArray[np.float64]]:
    """Linear -> root mean square of each input channel while ``run`` runs, padding included."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, torch.zeros(rows.shape[1])) + rows.square().sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    hooks = [part.register_forward_pre_hook(watch(name)) for name, part in linears(module).items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / counts[name]).sqrt().numpy() for name, total in sums.items()}


@contextmanager
def simulated(
    module: nn.Module, scaling: Scaling, ranges: Mapping[str, NDArray[np.float64]], *, levels: bool
) -> Iterator[None]:
    """``module`` with rounded activations, and weights as 8-bit ``levels``, inside the block."""
    before = {name: part.weight.data for name, part in linears(module).items()}
    hooks = []
    for name, part in linears(module).items():
        inputs = Inputs.of(scaling, ranges[name])

        def hook(_: nn.Module, x: tuple[Tensor, ...], inputs: Inputs = inputs) -> tuple[Tensor, ...]:
            return (inputs.round(x[0], scaling.block), *x[1:])

        hooks.append(part.register_forward_pre_hook(hook))
        if levels:
            part.weight.data = inputs.weight(part.weight.data)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, part in linears(module).items():
            part.weight.data = before[name]


class Embedder:
    """Embeddings of texts by PyTorch in FP32."""

    def __init__(self, model: Path, threads: int) -> None:
        from .encoder_pytorch import EncoderModule

        set_threads(threads)
        self.setup = EncoderSetup(model=model, work=WORK, threads=threads, calibration=())
        self.module = EncoderModule(self.setup)

    def rows(self, ids: encoder_texts.Batch) -> NDArray[np.float32]:
        """float32[texts, width]; texts of like length share a batch."""
        from .encoder_engines import pad

        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(ids)
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            batch = pad([ids[i] for i in places], self.setup.padding)
            with torch.inference_mode():
                rows = self.module(*(torch.from_numpy(array) for array in batch)).numpy()
            for place, row in zip(places, rows, strict=True):
                found[place] = row
        return np.stack(found)


def main(
    model: Annotated[Path | None, typer.Option(help="Sentence encoder; default: of the package.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="File of texts; may repeat.")] = None,
    calibration: Annotated[Path, typer.Option(help="Texts that the ranges are from.")] = CALIBRATION_SAMPLE,
    threads: Annotated[int, typer.Option(min=1, help="PyTorch's threads.")] = 2,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")] = None,
) -> None:
    """Compare ways to share scales among activations."""
    folder = model or packaged_model()
    texts = list(dict.fromkeys(encoder_texts.read_texts(text or TEST_SAMPLES)))
    ids = encoder_texts.token_ids(folder, texts)
    embedder = Embedder(folder, threads)
    reference = embedder.rows(ids)
    measured = encoder_texts.calibration(folder, calibration)
    ranges = measure_ranges(embedder.module, lambda: embedder.rows(measured))
    found: dict[str, Fidelity] = {}
    for levels, weights in ((False, "FP32 weights"), (True, "8-bit weights")):
        for label, scaling in SCALINGS.items():
            with simulated(embedder.module, scaling, ranges, levels=levels):
                found[f"{label}, {weights}"] = fidelity(embedder.rows(ids), reference)
    print_fidelity(folder, len(texts), found)
    if json_path is not None:
        results = [{"scaling": label, **one.to_json()} for label, one in found.items()]
        json_path.write_text(json.dumps({"texts": len(texts), "results": results}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
