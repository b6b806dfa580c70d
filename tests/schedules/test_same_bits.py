# SPDX-License-Identifier: Apache-2.0
"""Every kernel gives the same bits on every ISA level: the same order of sums, nothing fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from schedules.activation import activate
from schedules.attention import AttentionSpec, attention
from schedules.dequant_gemm import DequantSpec, dequant_gemm
from schedules.embedding import GatherSpec, gather
from schedules.float_gemm import FloatSpec, float_gemm, pack
from schedules.level_packing import (
    LevelPlanes,
    pack_group_shifts,
    pack_level_keys,
    pack_levels,
    pack_row_exponents,
    pack_rows,
)
from schedules.lut_gemm import LutSpec, Segment, lut_gemm
from schedules.lut_table import Tables, lut_table
from schedules.lut_table import reference as table_reference
from schedules.math import vector_exp, vector_log
from schedules.norm import NormSpec, norm
from schedules.packing import BitPlanes, ColumnLayout
from schedules.pooling import normalize, pooling
from schedules.ragged_attention import RaggedSpec, ragged_attention, work_columns
from schedules.search_step import SearchSpec, argmax, topk
from schedules.table_output import table_shapes
from schedules.tir import LANES, KernelBuilder, T, body, load, store

Output = tuple[tuple[int, ...], DTypeLike]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A kernel (given a kernel ISA), its inputs, and shapes and dtypes of its outputs and work spaces."""

    kernel: Callable[[str], Any]
    inputs: list[NDArray[Any]]
    outputs: list[Output]
    work: list[Output] = field(default_factory=list)


def normal(*shape: int) -> NDArray[np.float32]:
    """Values of many magnitudes, so that sums in another order round otherwise."""
    rng = np.random.default_rng(list(shape))
    return (rng.standard_normal(shape) * np.exp2(rng.uniform(-8, 8, shape))).astype(np.float32)


def tables_of(layout: ColumnLayout, rows: int, tables: Tables = "int8") -> list[Output]:
    return [((rows, *shape), dtype) for _, shape, dtype in table_shapes(layout, tables)]


def table_call(tables: Tables) -> Call:
    layout = ColumnLayout(k=120, group_size=40)
    return Call(
        kernel=lambda _: lut_table(layout, tables),
        inputs=[normal(7, 120)],
        outputs=tables_of(layout, 7, tables),
    )


def product_call(
    tables: Tables, group: int, planes: Callable[..., BitPlanes], arguments: Any, kind: str = "float16"
) -> Call:
    rows, k, tokens = 81, 240, 5
    outliers = 3.0 if kind == "outliers" else 0.0
    dtype = "float16" if outliers else kind
    segment = Segment(
        rows=rows, bits=3, group_size=group, offset=True, scale_dtype=dtype, output=0, start=0,
        outliers=outliers > 0,
    )  # fmt: skip
    spec = LutSpec(k=k, outputs=(rows,), segments=(segment,), bias=(True,), activation=("",), tables=tables)
    x = normal(tokens, k)
    inputs = [*table_reference(x, spec.table_layout, tables), *([x] if outliers else [])]
    weight = arguments(planes(rows, k, 3, group, offset=True, dtype=dtype, outliers=outliers))
    return Call(
        kernel=lambda isa: lut_gemm(spec, isa),
        inputs=[*inputs, *weight, normal(rows)],
        outputs=[((tokens, rows), "float32")],
    )


def gather_call(planes: Callable[..., BitPlanes], arguments: Any, kind: str = "float16") -> Call:
    outliers = 3.0 if kind == "outliers" else 0.0
    dtype = "float16" if outliers else kind
    segment = Segment(
        rows=81, bits=3, group_size=48, offset=True, scale_dtype=dtype, output=0, start=0,
        outliers=outliers > 0,
    )  # fmt: skip
    spec = GatherSpec(words=81, width=96, segments=(segment,), factor=22.6)
    weight = arguments(planes(81, 96, 3, 48, offset=True, dtype=dtype, outliers=outliers))
    ids = np.arange(81, dtype=np.int32)
    return Call(kernel=lambda _: gather(spec), inputs=[ids, *weight], outputs=[((81, 96), "float32")])


def norm_call(width: int) -> Call:
    layout = ColumnLayout(k=width, group_size=width)
    spec = NormSpec(width=width, epsilon=1e-5, residual=True, table=layout)
    return Call(
        kernel=lambda _: norm(spec),
        inputs=[normal(9, width), normal(9, width) + 1, normal(width), normal(width)],
        outputs=[((9, width), "float32"), *tables_of(layout, 9)],
    )


def attention_call(kind: Any) -> Call:
    width, rows, slots = 60, 23, 4
    layout = ColumnLayout(k=width, group_size=width)
    spec = AttentionSpec(kind=kind, heads=2, width=width, table=layout)
    # Weights of many keys matter only if the scores are close.
    q, k, v = 0.2 * normal(rows, width), 0.2 * normal(width, rows).T, normal(rows, width)
    offsets = np.array([0, 3, rows], np.int32)
    match kind:
        case "cross":
            m, inputs = 3, [q[:3], k, v, offsets, np.array([1, 0, 1], np.int32)]
        case _:
            caches = [0.2 * normal(slots, 40, width), normal(slots, 40, width)]
            position, ancestry = np.full(slots, 37, np.int32), np.zeros((slots, 40), np.int32)
            m, inputs = slots, [q[:slots], k[:slots], v[:slots], *caches, position, ancestry]
    return Call(
        kernel=lambda _: attention(spec),
        inputs=[np.ascontiguousarray(a) for a in inputs],
        outputs=[((m, width), "float32"), *tables_of(layout, m)],
    )


def ragged_call() -> Call:
    width, rows = 60, 23
    layout = ColumnLayout(k=width, group_size=width)
    spec = RaggedSpec(heads=2, width=width, table=layout)
    q, k, v = 0.2 * normal(rows, width), 0.2 * normal(width, rows).T, normal(rows, width)
    return Call(
        kernel=lambda _: ragged_attention(spec),
        inputs=[np.ascontiguousarray(a) for a in (q, k, v)] + [np.array([0, 3, rows], np.int32)],
        outputs=[((rows, width), "float32"), *tables_of(layout, rows)],
        work=[((spec.work_rows, work_columns(rows)), "float32")],
    )


def integer_call(bits: int) -> Call:
    """Integer sums; the exponents of tokens, rows and groups all differ."""
    rng = np.random.default_rng(bits)
    spec = DequantSpec(n=81, k=384, bits=bits, groups=3, x_groups=3, w_groups=3, bias=True)
    weights: tuple[NDArray, ...] = (pack_levels(rng.integers(-127, 128, (81, 384)).astype(np.int8)),)
    if spec.planes:
        planes = np.packbits(rng.integers(0, 2, (bits, 81, 384), np.uint8), axis=2, bitorder="little")
        alphas = rng.integers(-127 // bits + 1, 127 // bits, (bits, 81, 3)).astype(np.int8)
        weights = pack_level_keys(LevelPlanes(planes=planes, alphas=alphas, shape=(81, 384)))
    x = rng.integers(-127, 128, (37, 384)).astype(np.int8)
    exponents = rng.integers(-9, 9, (37, 3)).astype(np.int32)
    shifts = pack_group_shifts(rng.integers(0, 5, (81, 3)).astype(np.uint8))
    bias = pack_rows(rng.integers(-(1 << 20), 1 << 20, 81).astype(np.int32))
    rows = pack_row_exponents(rng.integers(-6, 7, 81).astype(np.int8))
    return Call(
        kernel=lambda isa: dequant_gemm(spec, isa),
        inputs=[x, exponents, *weights, shifts, bias, *rows],
        outputs=[((37, 81), "int32"), ((37,), "int32")],
    )


def float_call(activation: str = "") -> Call:
    spec = FloatSpec(n=81, k=120, bias=True, activation=activation)
    return Call(
        kernel=lambda _: float_gemm(spec),
        inputs=[normal(6, 120), pack(normal(81, 120)), normal(81)],
        outputs=[((6, 81), "float32")],
    )


def pooling_call(kernel: Any) -> Call:
    rows, width = 23, 45
    pools = kernel is not normalize
    offsets = [np.array([0, 3, rows], np.int32)] if pools else []
    return Call(
        kernel=lambda _: pooling("mean", width) if pools else normalize(width),
        inputs=[normal(rows, width), *offsets],
        outputs=[((2 if pools else rows, width), "float32")],
    )


def search_call(kernel: Any) -> Call:
    spec = SearchSpec(vocabulary=777, banned=1)
    found: list[Output] = [((5, 4), "float32"), ((5, 4), "int32")] if kernel is topk else [((5,), "int32")]
    return Call(
        kernel=lambda _: kernel(spec),
        inputs=[0.05 * normal(5, 777), np.array([3], np.int32)],
        outputs=found,
    )


def elementwise(function: Any) -> Any:
    """``function`` over float32[n] in vectors."""
    kernel = KernelBuilder("elementwise")
    with kernel.define():
        n = T.int64()
        x, y = kernel.param("x", (n,)), kernel.param("y", (n,))
        with body([y], [x]), T.serial(0, T.floordiv(n, LANES)) as i:
            store(y, (i * LANES,), function(load(x, (i * LANES,), LANES)), LANES)
    return kernel.result


def math_call(function: Any, values: NDArray[np.float32]) -> Call:
    return Call(
        kernel=lambda _: elementwise(function), inputs=[values], outputs=[(values.shape, "float32")]
    )


EXPONENTS = np.linspace(-100, 0, 1 << 16, dtype=np.float32)
EVERYWHERE = np.linspace(-12, 12, 1 << 16, dtype=np.float32)
POSITIVES = np.exp2(np.linspace(-120, 120, 1 << 16)).astype(np.float32)


@pytest.fixture
def call(request: pytest.FixtureRequest, weights: Any) -> Call:
    """One call of the family that the test is parametrized with."""
    made = (weights.planes, weights.arguments)
    match request.param.split():
        case ["table", tables]:
            return table_call(tables)
        case ["product", tables, group, *kind]:
            return product_call(tables, int(group), *made, *kind)
        case ["gather", *kind]:
            return gather_call(*made, *kind)
        case ["norm", width]:
            return norm_call(int(width))
        case ["attention", "ragged"]:
            return ragged_call()
        case ["attention", kind]:
            return attention_call(kind)
        case ["integer", bits]:
            return integer_call(int(bits))
        case ["float", *activation]:
            return float_call(*activation)
        case ["pooling"]:
            return pooling_call(pooling)
        case ["normalize"]:
            return pooling_call(normalize)
        case ["activation", name]:
            return math_call(partial(activate, name), EVERYWHERE)
        case ["exp"]:
            return math_call(vector_exp, EXPONENTS)
        case ["log"]:
            return math_call(vector_log, POSITIVES)
        case _:
            return search_call({"argmax": argmax, "topk": topk}[request.param])


FAMILIES = pytest.mark.parametrize(
    "call",
    [
        "table int8", "table exact", "product int8 240", "product int8 40", "product exact 240",
        "product exact 40", "product int8 40 pow2", "product exact 240 pow2", "product int8 240 outliers",
        "product exact 40 outliers", "gather", "gather pow2", "gather outliers",
        "norm 128", "norm 39", "attention ragged", "attention cached", "attention cross", "float",
        "integer 3", "integer 8",
        "float gelu", "argmax", "topk", "exp", "log", "activation gelu", "activation gelu_tanh",
        "activation tanh", "pooling", "normalize",
    ],
    indirect=True,
)  # fmt: skip


@FAMILIES
def test_every_level(build: Any, host_levels: Any, call: Call) -> None:
    kernels = [build(call.kernel(level.kernel_isa), level) for level in host_levels]
    buffers = [*call.outputs, *call.work]
    found = [kernel(call.inputs, *buffers)[: len(call.outputs)] for kernel in kernels]
    assert len(found) > 1
    assert all(np.isfinite(a).all() for a in found[0])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


@FAMILIES
def test_other_architectures(build: Any, host_levels: Any, emulated_levels: Any, call: Call) -> None:
    from tvm_ffi import structural_equal

    kernels = [build(call.kernel(host_levels[-1].kernel_isa), host_levels[-1])]
    last = None
    for level in emulated_levels:
        function = call.kernel(level.kernel_isa)
        # What a level takes over from the one below is run on the lowest and the highest.
        if last is None or level is emulated_levels[-1] or not structural_equal(function, last):
            kernels.append(build(function, level))
        last = function
    buffers = [*call.outputs, *call.work]
    found = [kernel(call.inputs, *buffers)[: len(call.outputs)] for kernel in kernels]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("function", "exact", "values"),
    [(vector_exp, np.exp, EXPONENTS[EXPONENTS > -87]), (vector_log, np.log, POSITIVES)],
    ids=["exp", "log"],
)
def test_within_two_ulp(build: Any, level: Any, function: Any, exact: Any, values: Any) -> None:
    values = values[: values.size // LANES * LANES]
    (y, *_) = build(elementwise(function), level)([values], (values.shape, "float32"))
    expected = exact(values.astype(np.float64))
    assert (np.abs(y - expected) <= 2 * np.spacing(np.abs(expected).astype(np.float32))).all()
