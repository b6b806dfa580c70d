# SPDX-License-Identifier: Apache-2.0
"""What one product is asked to do: the facts that the time of a kernel depends on besides its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Op = Literal["lut", "exact", "dequant", "float"]
"""Kernel families: int8 tables, FP32 tables, integer dot products, FP32."""
OPS: tuple[Op, ...] = get_args(Op)
M_BUCKETS = (1, 4, 16, 64, 256)
"""Numbers of tokens that stand for all down to the next smaller: 1, 2-4, 5-16, 17-64, 65 and more."""
LARGEST = 1 << 24
FLOAT_BITS = 32
MOST_BITS = 8
FORMATS: dict[str, tuple[str, ...]] = {
    "lut": ("float16", "float16+offset", "float32", "float32+offset", "pow2", "pow2+offset"),
    "exact": ("float16", "float16+offset", "float32", "float32+offset", "pow2", "pow2+offset"),
    "dequant": ("planes", "levels"),
    "float": ("packed",),
}
"""How weights of each family are stored: scales and offsets, or what stands for them."""


def m_bucket(m: int) -> int:
    """The bucket of m tokens."""
    return next((bucket for bucket in M_BUCKETS if m <= bucket), M_BUCKETS[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kernel call.

    Attributes:
        op: kernel family.
        n: output rows.
        k: columns.
        m: tokens.
        bits: planes of a weight; 8 are stored levels of ``dequant``, 32 is ``float``.
        group: columns that share a scale; k for one scale a row.
        layout: how weights are stored, one of ``FORMATS``.

    Raises:
        ValueError: a kernel does not compute that; the text says why.
    """

    op: Op
    n: int
    k: int
    m: int
    bits: int
    group: int
    layout: str

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"unknown kernel {self.op!r}; known: {', '.join(OPS)}")
        for name, value in (("n", self.n), ("k", self.k), ("m", self.m)):
            if not 1 <= value <= LARGEST:
                raise ValueError(f"{name} is {value}, expected 1 to {LARGEST}")
        if self.layout not in FORMATS[self.op]:
            raise ValueError(f"{self.op} has no layout {self.layout!r}; known: {', '.join(FORMATS[self.op])}")
        self._check_bits()
        if not 1 <= self.group <= self.k or self.k % self.group:
            raise ValueError(f"groups of {self.group} columns do not divide {self.k}")
        if self.op == "dequant" and self.group != self.k and self.group % 64:
            raise ValueError(f"groups of {self.group} columns, expected multiples of 64 or all {self.k}")
        if self.op == "float" and self.group != self.k:
            raise ValueError("FP32 weights have no groups")

    def _check_bits(self) -> None:
        if self.op == "float":
            right = self.bits == FLOAT_BITS
        elif self.op == "dequant":
            right = self.bits == MOST_BITS if self.layout == "levels" else 1 <= self.bits < MOST_BITS
        else:
            right = 1 <= self.bits <= MOST_BITS
        if not right:
            raise ValueError(f"{self.op} has no kernel for {self.bits} bits in layout {self.layout}")

    @staticmethod
    def of(op: Op, n: int, k: int, m: int, bits: int, group: int = 0, scale: str = "float16") -> Workload:
        """The workload of an op with its usual layout; ``group`` of 0 is a whole row."""
        layout = scale
        if op == "dequant":
            layout = "levels" if bits == MOST_BITS else "planes"
        elif op == "float":
            layout = "packed"
        return Workload(op=op, n=n, k=k, m=m, bits=bits, group=group or k, layout=layout)
