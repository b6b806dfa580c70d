# SPDX-License-Identifier: Apache-2.0
"""LowerBlockInt: the body of an encoder becomes integer kernels, from embedding to last hidden states.

Before: composites with exponents (``choose_exponents``). After: ``block_gather`` for tables that are added,
``block_norm`` with the residual inside, ``dequant_gemm``, ``block_quantize`` (with GELU) where a product is
read as blocks, ``block_attention``, and one ``block_dequantize`` where the head begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from schedules.block_attention import BlockAttentionSpec, block_attention
from schedules.block_dequantize import block_dequantize
from schedules.block_format import BlockLayout
from schedules.block_gather import LEVEL_BITS, BlockGatherSpec, RowSegment, RowTable, block_gather
from schedules.block_norm import BlockNormSpec, block_norm
from schedules.block_quantize import (
    GELU_TABLES,
    BlockActivation,
    BlockQuantizeSpec,
    block_quantize,
    gelu_form,
)
from schedules.dequant_gemm import DequantSpec, dequant_gemm
from schedules.integer_storage import (
    bias_array,
    channel_array,
    function_table,
    matrix_arrays,
    norm_arrays,
    row_exponent_arrays,
    table_arrays,
)
from schedules.level_packing import TILE_COLUMNS
from schedules.packing import word_dtype
from schedules.schedule import DequantSchedule
from schedules.tuned import tuned
from schedules.tuning_log import NO_RECORDS, TuningLog
from schedules.workload import Workload
from targets.spec import TargetSpec

from .annotate_ranges import LONGEST_ATTR
from .bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from .integer_body import BodyStep, bindings, body_steps
from .lowering import Lowering, float_type

BIAS_SHIFT = -16
"""Exponent of a bias beside its row's."""
TABLE_BITS = LEVEL_BITS
"""Bits of tables that the plan does not name (token types)."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """int8 mantissas and exponents; ``channels`` is the norm that made them, or "".

    Of a norm there is also the fine part, and its channel exponents apply.
    """

    mantissas: Any
    exponents: Any
    layout: BlockLayout
    channels: str = ""
    fine: Any = None


@dataclass(frozen=True, slots=True)
class Wide:
    """An int32 row with one exponent, or one per head; ``activation`` is still to be computed."""

    y: Any
    exponents: Any
    groups: int = 1
    activation: BlockActivation = ""


@dataclass(frozen=True, slots=True)
class Tables:
    """Rows of tables that are to be added: (composite call's step) each."""

    steps: tuple[BodyStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerBlockInt:
    """Lower the body of every entry function for ``target``.

    Raises:
        ValueError: a matrix of the body that stays FP32, an activation that has no integer form, or column
            groups that do not fit the blocks of activations.
    """

    plan: BitPlan
    target: TargetSpec
    log: TuningLog = NO_RECORDS

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        flat = relax.transform.ToNonDataflow()(module)
        return _Integers(flat, self).run()


def dequant_workload(spec: DequantSpec) -> Workload:
    """An integer product for the tuning log, for one token."""
    return Workload.of("dequant", spec.n, spec.k, 1, spec.bits, spec.k // spec.groups)


def matrix_spec(entry: BlockBits, n: int, k: int, *, bias: bool, relu: bool = False) -> DequantSpec:
    """The product of a planned matrix; ValueError where its groups do not fit its activations."""
    if entry.bits == FLOAT_BITS:
        raise ValueError(f"{entry.tensor} stays FP32, which integers cannot be (give it 1 to 8 bits)")
    layout = BlockLayout.of(k, entry.activation_block, entry.activation_bits)
    w_groups = k // (entry.group_size or k) if entry.bits < LEVEL_BITS else 1
    groups = max(layout.groups, w_groups)
    if {layout.groups, w_groups} - {1, groups}:
        raise ValueError(
            f"{entry.tensor}: {w_groups} groups of weights and {layout.groups} blocks of activations, "
            "expected equal numbers or one of either (choose group_size or activation_block)"
        )
    if groups > 1 and k % (groups * TILE_COLUMNS):
        raise ValueError(
            f"{entry.tensor}: groups of {k // groups} columns, expected multiples of {TILE_COLUMNS} or all"
        )
    return DequantSpec(
        n=n,
        k=k,
        bits=entry.bits,
        groups=groups,
        x_groups=layout.groups,
        w_groups=w_groups,
        bias=bias,
        bias_shift=BIAS_SHIFT,
        activation="relu" if relu else "",
    )


def row_table(entry: BlockBits | WordBits | None, rows: int) -> RowTable:
    """How a table is stored; one that the plan does not name keeps whole levels."""
    match entry:
        case None:
            return RowTable(segments=(RowSegment(rows=rows, bits=TABLE_BITS),))
        case BlockBits():
            if entry.bits == FLOAT_BITS:
                raise ValueError(f"{entry.tensor} stays FP32, which integers cannot be (give it 1 to 8 bits)")
            return RowTable(segments=(RowSegment(rows=rows, bits=entry.bits),))
        case WordBits():
            segments = tuple(RowSegment(rows=count, bits=bits) for count, bits in entry.clusters)
            return RowTable(segments=segments, rank_dtype=word_dtype(rows))


@mutator
class _Integers(Lowering):
    def __init__(self, module: tvm.IRModule, options: LowerBlockInt) -> None:
        super().__init__(module)
        self._options = options
        self._isa = options.target.kernel_isa
        self._entries = {entry.tensor: entry for entry in options.plan.entries()}

    def enter(self, function: Any) -> None:
        self._steps = body_steps(self.module, function, self._options.plan)
        self._values: dict[Any, Blocks | Wide | Tables] = {}
        self._blocks: dict[Any, Blocks] = {}
        self._outside = _read_outside(function, self._steps)
        self._longest = int(function.attrs[LONGEST_ATTR])

    def visit_var_binding_(self, binding: Any) -> None:
        step = self._steps.get(binding.var)
        if step is None:
            super().visit_var_binding_(binding)
            return
        self._values[step.var] = self._lower(step)
        if step.var in self._outside:
            self.set_var_remap(step.var, self._float(step))

    def _lower(self, step: BodyStep) -> Blocks | Wide | Tables:
        match step.kind:
            case "table":
                return Tables((step,))
            case "sum":
                parts = [self._values[source] for source in step.sources]
                return Tables(tuple(s for part in parts if isinstance(part, Tables) for s in part.steps))
            case "norm":
                return self._norm(step)
            case "linear":
                return self._linear(step)
            case "attention":
                return self._attention(step)

    def _linear(self, step: BodyStep) -> Wide:
        assert step.composite is not None
        weight, bias = (step.composite.argument(step.value, role) for role in ("w", "b"))
        n, k = (int(extent) for extent in weight.ty.shape)
        entry = self._entries[step.tensor]
        assert isinstance(entry, BlockBits)
        name = str(step.composite.attrs["tvmq.activation"])
        if name not in ("", "relu", *GELU_TABLES):
            known = ", ".join(("relu", *GELU_TABLES))
            raise ValueError(f"{step.path} ends in {name}, which has no integer form (known: {known})")
        spec = matrix_spec(entry, n, k, bias=bias is not None, relu=name == "relu")
        x = self._as_blocks(step.sources[0], BlockLayout.of(k, entry.activation_block, entry.activation_bits))
        arrays = matrix_arrays(step.tensor, spec)
        arrays += [] if bias is None else [bias_array(str(bias.name), n)]
        arrays += row_exponent_arrays(step.tensor, n)
        schedule = self._schedule(spec)
        kernel = self.kernel(
            (spec, schedule), "dequant_gemm", lambda: dequant_gemm(spec, self._isa, schedule=schedule)
        )
        args = [x.mantissas, x.exponents, *(self.stored(array) for array in arrays)]
        rows = x.mantissas.ty.shape[0]
        y, exponents = self.call(kernel, args, [_ints(rows, n), _ints(rows)])
        return Wide(y, exponents, activation=gelu_form(name))

    def _schedule(self, spec: DequantSpec) -> DequantSchedule:
        found = tuned(self._options.log, dequant_workload(spec), self._options.target.name).schedule
        assert isinstance(found, DequantSchedule)
        return found

    def _norm(self, step: BodyStep) -> Blocks:
        assert step.composite is not None
        attrs = step.composite.attrs
        width = int(step.composite.argument(step.value, "gamma").ty.shape[0])
        layout = BlockLayout.of(width, int(attrs["tvmq.block"]) or None, int(attrs["tvmq.activation_bits"]))
        wide, residual = self._summands(step)
        spec = BlockNormSpec(layout=layout, residual=None if residual is None else residual.layout)
        args = [wide.y, wide.exponents]
        if residual is not None:
            args += [
                residual.mantissas,
                residual.exponents,
                residual.fine,
                self.stored(channel_array(residual.channels, width)),
            ]
        args += [self.stored(array) for array in norm_arrays(step.path, width)]
        args.append(self.stored(function_table("rsqrt")))
        kernel = self.kernel(spec, "block_norm", lambda: block_norm(spec, self._isa))
        types = [*_block_types(args[0].ty.shape[0], layout), _bytes(args[0].ty.shape[0], width)]
        mantissas, exponents, fine = self.call(kernel, args, types)
        return Blocks(mantissas, exponents, layout, step.path, fine)

    def _summands(self, step: BodyStep) -> tuple[Wide, Blocks | None]:
        """The int32 rows and the blocks that a norm adds."""
        values = [self._values[source] for source in step.sources]
        tables = tuple(s for value in values if isinstance(value, Tables) for s in value.steps)
        wides = [value for value in values if isinstance(value, Wide)]
        blocks = [value for value in values if isinstance(value, Blocks)]
        if tables:
            wides.append(self._gather(tables))
        if len(wides) != 1 or len(blocks) > 1:
            raise ValueError(
                f"{step.path} adds what integer norms cannot (one product and one norm's result)"
            )
        if wides[0].activation:
            raise ValueError(f"{step.path} adds the result of an activation, which has no integer form")
        return wides[0], blocks[0] if blocks else None

    def _gather(self, steps: Sequence[BodyStep]) -> Wide:
        ids, arrays, tables = [], [], []
        width = 0
        for step in steps:
            assert step.composite is not None
            weight = step.composite.argument(step.value, "w")
            rows, width = (int(extent) for extent in weight.ty.shape)
            if float(step.composite.attrs["tvmq.factor"]) != 1.0:
                raise ValueError(f"{step.path} is scaled, which integer tables are not")
            table = row_table(self._entries.get(step.tensor), rows)
            tables.append(table)
            ids.append(self.visit_expr(step.composite.argument(step.value, "ids")))
            arrays += table_arrays(step.tensor, table, width)
        spec = BlockGatherSpec(width=width, tables=tuple(tables))
        kernel = self.kernel(spec, "block_gather", lambda: block_gather(spec))
        rows = ids[0].ty.shape[0]
        args = [*ids, *(self.stored(array) for array in arrays)]
        return Wide(*self.call(kernel, args, [_ints(rows, width), _ints(rows)]))

    def _attention(self, step: BodyStep) -> Wide:
        *_, offsets, heads = list(step.value.args[1])
        sources = [self._values[source] for source in step.sources]
        args = [
            part for source in sources if isinstance(source, Wide) for part in (source.y, source.exponents)
        ]
        rows, width = args[0].ty.shape[0], int(args[0].ty.shape[1])
        spec = BlockAttentionSpec(heads=int(heads.value), width=width, longest=self._longest)
        kernel = self.kernel(spec, "block_attention", lambda: block_attention(spec, self._isa))
        args += [self.visit_expr(offsets), self.stored(function_table("exp2"))]
        y, exponents = self.call(kernel, args, [_ints(rows, width), _ints(rows, spec.heads)])
        return Wide(y, exponents, groups=spec.heads)

    def _as_blocks(self, var: Any, layout: BlockLayout) -> Blocks:
        """The value of ``var`` in blocks of ``layout``."""
        value = self._values[var]
        if isinstance(value, Blocks):
            if value.layout != layout:
                raise ValueError("one norm is read in blocks of two layouts (give its readers one)")
            return value
        key = (var, layout)
        if key not in self._blocks:
            assert isinstance(value, Wide)
            self._blocks[key] = self._quantize(value, layout)
        return self._blocks[key]

    def _quantize(self, value: Wide, layout: BlockLayout) -> Blocks:
        spec = BlockQuantizeSpec(layout=layout, source_groups=value.groups, activation=value.activation)
        kernel = self.kernel(spec, "block_quantize", lambda: block_quantize(spec, self._isa))
        exponents = value.exponents
        if value.groups == 1:
            exponents = self.builder_.emit(relax.op.reshape(exponents, [exponents.ty.shape[0], 1]))
        args = [value.y, exponents]
        if value.activation in GELU_TABLES:
            args.append(self.stored(function_table("gelu")))
        mantissas, exponents = self.call(kernel, args, _block_types(args[0].ty.shape[0], layout))
        return Blocks(mantissas, exponents, layout)

    def _float(self, step: BodyStep) -> Any:
        """The value that the head reads."""
        value = self._values[step.var]
        if not isinstance(value, Blocks) or not value.channels:
            raise ValueError(f"the head reads {step.path or step.kind}, expected the result of a norm")
        layout = value.layout
        kernel = self.kernel((layout, "float"), "block_dequantize", lambda: block_dequantize(layout))
        channels = self.stored(channel_array(value.channels, layout.width))
        rows = value.mantissas.ty.shape[0]
        args = [value.mantissas, value.exponents, value.fine, channels]
        return self.call(kernel, args, [float_type(rows, layout.width)])[0]


def _block_types(rows: Any, layout: BlockLayout) -> list[Any]:
    return [_bytes(rows, layout.padded), _ints(rows, layout.groups)]


def _bytes(*shape: Any) -> Any:
    return relax.TensorType(list(shape), "int8")


def _ints(*shape: Any) -> Any:
    return relax.TensorType(list(shape), "int32")


def _read_outside(function: Any, steps: dict[Any, BodyStep]) -> set[Any]:
    """Body variables that something outside the body reads."""
    read = set(relax.analysis.free_vars(function.body.body))
    for binding in bindings(function):
        if binding.var not in steps:
            read |= set(relax.analysis.free_vars(binding.value))
    return read & steps.keys()
