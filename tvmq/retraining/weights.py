# SPDX-License-Identifier: Apache-2.0
"""The student's weights: every planned matrix cut into banks, every other parameter trained as it is.

Matrices of equal width, group size and phase share a bank, whatever their block, so that a training step
launches a handful of kernels for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from relay_passes.bit_plan import FLOAT_BITS, BitPlan, BlockBits, ScaleDtype, WordBits
from schedules.outliers import Outliers
from schedules.packing import BitPlanes, WordPlanes
from tvmq.outliers import halves
from tvmq.quantizers.quantizer import Form, SolvedRows, assemble

from .banks import Bank, FixedBank, Groups, NearestBank, ProjectedBank
from .options import Method

_BANKS: dict[Method, type[Bank]] = {"ste": NearestBank, "pnr": ProjectedBank, "scales": FixedBank}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Consecutive rows of a matrix (all, or one word segment) within a bank.

    Attributes:
        tensor: name in the checkpoint.
        bank: key of the bank.
        rows, columns: extent.
        scale_dtype: of the stored scales.
        outliers: key of the trained values beside the planes; "" for none.
        places: intp[m], their places.
    """

    tensor: str
    bank: str
    rows: int
    columns: int
    scale_dtype: ScaleDtype
    outliers: str
    places: NDArray[np.int64]


class StudentWeights(nn.Module):
    """All weights of the model that is trained, by their names in the checkpoint.

    Attributes:
        banks: the planned matrices.
        outliers: values of the weights beside the planes, which are added to what the banks give.
        floats: everything else that is trained: biases, norms, matrices that the plan keeps in FP32.
        float_names: name in the checkpoint -> key in ``floats`` (which may hold no dots).
        phase: banks of later phases are not quantized yet.
    """

    def __init__(
        self,
        latents: Mapping[str, NDArray[np.float32]],
        planes: Mapping[str, BitPlanes | WordPlanes],
        floats: Mapping[str, Tensor],
        plan: BitPlan,
        method: Method,
        phases: Sequence[Sequence[str]],
    ) -> None:
        """Cut everything into banks.

        Args:
            latents: FP32 weights of the planned matrices, from which training starts.
            planes: their codes and scales at the start.
            floats: the other parameters.
            plan: bits of every matrix.
            method: how weights are quantized in training.
            phases: blocks by the phase in which their quantization begins; blocks in none begin at once.
        """
        super().__init__()
        self._parts: list[_Part] = []
        self.outliers = nn.ParameterDict()
        self._orders: dict[str, str] = {}
        self.float_names = {name: name.replace(".", "/") for name in floats}
        self.floats = nn.ParameterDict(
            {self.float_names[name]: nn.Parameter(t) for name, t in floats.items()}
        )
        pieces: dict[str, list[tuple[NDArray[np.float32], BitPlanes]]] = {}
        self._phase_of: dict[str, int] = {}
        for entry in plan.entries():
            if isinstance(entry, BlockBits) and entry.bits == FLOAT_BITS:
                continue
            phase = next((i for i, blocks in enumerate(phases) if entry.block in blocks), 0)
            self._cut(entry, phase, latents[entry.tensor], planes[entry.tensor], pieces)
        self.banks = nn.ModuleDict({key: _BANKS[method](_groups(rows)) for key, rows in pieces.items()})
        self.phase = 0

    def _cut(
        self,
        entry: BlockBits | WordBits,
        phase: int,
        latent: NDArray[np.float32],
        coded: BitPlanes | WordPlanes,
        pieces: dict[str, list[tuple[NDArray[np.float32], BitPlanes]]],
    ) -> None:
        segments = (coded,)
        if isinstance(coded, WordPlanes):
            latent, segments = latent[coded.order], coded.segments
            self._orders[entry.tensor] = f"order_{len(self._orders)}"
            rank = np.empty_like(coded.order)
            rank[coded.order] = np.arange(len(rank), dtype=rank.dtype)
            self.register_buffer(self._orders[entry.tensor], torch.from_numpy(rank.astype(np.int64)))
        first = 0
        for segment in segments:
            assert isinstance(segment, BitPlanes)
            offset = "z" if segment.offsets is not None else ""
            key = f"p{phase}_b{segment.bits}_g{segment.group_size}{offset}"
            rows, columns = segment.shape
            part = latent[first : first + rows]
            outliers, places = "", np.empty(0, np.int64)
            if segment.outliers is not None:
                outliers, places = f"outliers_{len(self._parts)}", segment.outliers.places
                values = segment.outliers.values.astype(np.float32)
                self.outliers[outliers] = nn.Parameter(torch.from_numpy(values))
                self.register_buffer(f"{outliers}_places", torch.from_numpy(places))
                part = part.copy()  # the banks hold what the planes should give
                part.reshape(-1)[places] -= values
            pieces.setdefault(key, []).append((part, segment))
            self._phase_of[key] = phase
            self._parts.append(
                _Part(
                    tensor=entry.tensor,
                    bank=key,
                    rows=rows,
                    columns=columns,
                    scale_dtype=entry.scale_dtype,
                    outliers=outliers,
                    places=places,
                )
            )
            first += rows

    def forward(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Every weight in ``dtype`` by name; matrices as [rows, columns], words in the order of their ids."""
        pieces: dict[str, list[Tensor]] = {}
        for part, value in self._split({key: self._value(key, dtype) for key in self.banks}):
            if part.outliers:
                value = self._with_outliers(value, part, dtype)
            pieces.setdefault(part.tensor, []).append(value.view(part.rows, part.columns))
        weights = {name: self.floats[key].to(dtype) for name, key in self.float_names.items()}
        for name, found in pieces.items():
            whole = found[0] if len(found) == 1 else torch.cat(found)
            rank = self._orders.get(name)
            weights[name] = whole if rank is None else whole[self.get_buffer(rank)]
        return weights

    def _with_outliers(self, value: Tensor, part: _Part, dtype: torch.dtype) -> Tensor:
        places = self.get_buffer(f"{part.outliers}_places")
        return value.reshape(-1).index_add(0, places, self.outliers[part.outliers].to(dtype))

    def project(self) -> None:
        """Solve scales again (and project weights, where the method does) in the banks of this phase."""
        for key in self.banks:
            if self._phase_of[key] <= self.phase:
                self._bank(key).project()

    def latents(self) -> list[nn.Parameter]:
        """Weights behind the codes that the method trains."""
        found = (self._bank(key).latent for key in self.banks)
        return [parameter for parameter in found if parameter.requires_grad]

    def scales(self) -> list[nn.Parameter]:
        """Scales, offsets and outliers that the method trains."""
        found = (p for key in self.banks for p in self._bank(key).scale_parameters())
        return [*(parameter for parameter in found if parameter.requires_grad), *self.outliers.values()]

    @torch.no_grad()
    def planes(self) -> dict[str, BitPlanes | WordPlanes]:
        """What is shipped: codes and rounded scales of every planned matrix."""
        found: dict[str, list[BitPlanes]] = {}
        stored: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        first: dict[str, int] = {}
        for part in self._parts:
            where = (part.bank, part.scale_dtype)
            if where not in stored:
                stored[where] = self._bank(part.bank).stored(part.scale_dtype)
            codes, params = stored[where]
            groups = part.columns // codes.shape[2]
            begin = first.get(part.bank, 0)
            span = slice(begin, begin + part.rows * groups)
            first[part.bank] = span.stop
            found.setdefault(part.tensor, []).append(self._packed(codes[:, span], params[:, span], part))
        return {name: self._joined(name, segments) for name, segments in found.items()}

    def _packed(self, codes: Tensor, params: Tensor, part: _Part) -> BitPlanes:
        """The planes of a part from its codes bool[q, N, m] and its scales and offsets [q (+ 1), N]."""
        form = Form(
            n=part.rows,
            k=part.columns,
            bits=len(codes),
            group=codes.shape[2],
            offset=len(params) > len(codes),
            scale_dtype=part.scale_dtype,
        )
        outliers = None
        if part.outliers:
            values = self.outliers[part.outliers].cpu().numpy()
            outliers = Outliers(places=part.places, values=halves(values))
        wide = params.cpu().numpy().astype(np.float64)
        return assemble(form, SolvedRows(codes=codes.cpu().numpy(), params=wide), outliers)

    def _joined(self, name: str, segments: list[BitPlanes]) -> BitPlanes | WordPlanes:
        if name not in self._orders:
            return segments[0]
        rank = self.get_buffer(self._orders[name]).cpu().numpy()
        return WordPlanes(order=np.argsort(rank).astype(np.int32), segments=tuple(segments))

    def _bank(self, key: str) -> Bank:
        bank = self.banks[key]
        assert isinstance(bank, Bank)
        return bank

    def _value(self, key: str, dtype: torch.dtype) -> Tensor:
        bank = self._bank(key)
        return bank(dtype) if self._phase_of[key] <= self.phase else bank.latent.to(dtype)

    def _split(self, values: Mapping[str, Tensor]) -> list[tuple[_Part, Tensor]]:
        """One split per bank: its backward is one concatenation instead of a sum of padded slices."""
        parts = {key: [part for part in self._parts if part.bank == key] for key in values}
        cut = {
            key: iter(values[key].split([part.rows * part.columns // values[key].shape[1] for part in found]))
            for key, found in parts.items()
        }
        return [(part, next(cut[part.bank])) for part in self._parts]


def _groups(pieces: Sequence[tuple[NDArray[np.float32], BitPlanes]]) -> Groups:
    """Weights and codes of the rows that share a bank, group after group."""
    size = pieces[0][1].group_size
    planes = [coded for _, coded in pieces]
    offsets = [_flat(found, -1) for found in (coded.float_offsets() for coded in planes) if found is not None]
    return Groups(
        latent=torch.cat([_flat(weight, -1, size) for weight, _ in pieces]),
        scales=torch.cat([_flat(coded.alphas(), coded.bits, -1) for coded in planes], 1),
        offsets=torch.cat(offsets) if offsets else None,
        codes=torch.cat([_flat(coded.signs(), coded.bits, -1, size) > 0 for coded in planes], 1),
    )


def _flat(array: NDArray, *shape: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).reshape(shape))
