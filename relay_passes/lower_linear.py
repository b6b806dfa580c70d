# SPDX-License-Identifier: Apache-2.0
"""LowerLinear: planned linears become table products over stored planes, the others FP32 products.

Before: composites ``tvmq.linear``. After: ``lut_table`` of the activation and ``lut_gemm`` with bias,
activation and outliers inside (``share_tables`` then merges equal tables); or ``float_gemm``. The output of a
matrix whose rows are stored by word frequency is brought back into word order by a ``take``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import mutator

from schedules.float_gemm import FloatSpec, float_gemm
from schedules.lut_gemm import LutSpec, lut_gemm, worth_threads
from schedules.lut_table import Tables, lut_table
from schedules.outliers import outlier_count
from schedules.packing import ColumnLayout
from schedules.schedule import Schedule
from schedules.segment import Segment
from schedules.storage import StoredSegment, float_array, rank_array, reordered
from schedules.tuned import tuned
from schedules.tuning_log import NO_RECORDS, TuningLog
from schedules.workload import FLOAT_BITS as WORKLOAD_FLOAT
from schedules.workload import Workload
from targets.spec import TargetSpec

from .bit_plan import FLOAT_BITS, BitPlan, BlockBits, WordBits
from .composite import LINEAR, composite_of
from .lowering import Lowering, float_type, mark_table, table_types


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerLinear:
    """Lower every ``tvmq.linear`` for ``target``; ``tables`` is "int8" or "exact".

    Schedules are those of ``log``; an empty one leaves the rules.
    """

    plan: BitPlan
    target: TargetSpec
    tables: Tables = "int8"
    log: TuningLog = NO_RECORDS

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _LinearLowering(module, self).run()


def stored_segments(entry: BlockBits | WordBits, n: int, k: int) -> list[StoredSegment]:
    """The row segments that a planned tensor [n, k] is stored in."""
    common: dict[str, Any] = {
        "group_size": entry.group_size or k,
        "offset": entry.offset,
        "scale_dtype": entry.scale_dtype,
        "outliers": entry.outliers,
    }
    if isinstance(entry, BlockBits):
        return [StoredSegment(prefix=entry.tensor, rows=n, bits=entry.bits, **common)]
    return [
        StoredSegment(prefix=f"{entry.tensor}:{i}", rows=rows, bits=bits, **common)
        for i, (rows, bits) in enumerate(entry.clusters)
    ]


@mutator
class _LinearLowering(Lowering):
    def __init__(self, module: tvm.IRModule, options: LowerLinear) -> None:
        super().__init__(module)
        self._options = options
        self._entries = {entry.tensor: entry for entry in options.plan.entries()}

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        composite = composite_of(self.module, call)
        if composite is None or composite.kind != LINEAR:
            return call
        x, lead = self.flat(composite.argument(call, "x"))
        weight, bias = composite.argument(call, "w"), composite.argument(call, "b")
        activation = str(composite.attrs["tvmq.activation"])
        if int(composite.attrs["tvmq.bits"]) == FLOAT_BITS:
            y = self._float(x, weight, bias, activation)
        else:
            y = self._quantized(x, weight, bias, activation)
        return self.unflat(y, lead)

    def _float(self, x: Any, weight: Any, bias: Any, activation: str) -> Any:
        n, k = (int(extent) for extent in weight.ty.shape)
        spec = FloatSpec(n=n, k=k, bias=bias is not None, activation=activation)
        packed = self.stored(float_array(str(weight.name), n, k))
        schedule = self._schedule(float_workload(n, k))
        kernel = self.kernel((spec, schedule), "float_gemm", lambda: float_gemm(spec, schedule=schedule))
        args = [x, packed] if bias is None else [x, packed, bias]
        return self.call(kernel, args, [float_type(x.ty.shape[0], n)])[0]

    def _quantized(self, x: Any, weight: Any, bias: Any, activation: str) -> Any:
        n, k = (int(extent) for extent in weight.ty.shape)
        entry = self._entries[str(weight.name)]
        segments = stored_segments(entry, n, k)
        spec = LutSpec(
            k=k,
            outputs=(n,),
            segments=kernel_segments(segments, k),
            bias=(bias is not None,),
            activation=(activation,),
            tables=self._options.tables,
        )
        args = self._table(x, spec.table_layout) + ([x] if spec.outliers else [])
        args += [self.stored(array) for segment in segments for array in segment.arrays(k)]
        if bias is not None:
            args.append(self._bias(entry, bias, n))
        isa = self._options.target.kernel_isa
        schedules = tuple(
            self._schedule(table_workload(segment, k, self._options.tables)) for segment in spec.segments
        )
        kernel = self.kernel(
            (without_bits(spec, schedules), schedules),
            "lut_gemm",
            lambda: lut_gemm(spec, isa, schedules=schedules),
        )
        y = self.call(kernel, args, [float_type(x.ty.shape[0], n)])[0]
        return self._word_order(entry, y, n)

    def _schedule(self, workload: Workload) -> Schedule:
        found = tuned(self._options.log, workload, self._options.target.name).schedule
        assert isinstance(found, Schedule)
        return found

    def _table(self, x: Any, layout: ColumnLayout) -> list[Any]:
        tables = self._options.tables
        kernel = self.kernel(
            (layout.table_key, "table"),
            "lut_table",
            lambda: mark_table(lut_table(layout, tables), layout, tables),
        )
        return self.call(kernel, [x], table_types(x.ty.shape[0], layout, tables))

    def _bias(self, entry: BlockBits | WordBits, bias: Any, n: int) -> Any:
        if isinstance(entry, BlockBits):
            return bias
        return self.parameter(reordered(str(bias.name), entry.tensor), (n,))

    def _word_order(self, entry: BlockBits | WordBits, y: Any, n: int) -> Any:
        if isinstance(entry, BlockBits):
            return y
        rank = self.stored(rank_array(entry.tensor, n))
        index = self.builder_.emit(relax.op.astype(rank, "int32"))
        return self.builder_.emit(relax.op.take(y, index, axis=1))


def kernel_segments(stored: list[StoredSegment], k: int) -> tuple[Segment, ...]:
    """The kernel's view of a matrix's stored segments: one output, rows one after the other."""
    segments, start = [], 0
    for segment in stored:
        segments.append(
            Segment(
                rows=segment.rows,
                bits=segment.bits,
                group_size=segment.group_size,
                offset=segment.offset,
                scale_dtype=segment.scale_dtype,
                output=0,
                start=start,
                outliers=outlier_count(segment.outliers, segment.rows, k) > 0,
            )
        )
        start += segment.rows
    return tuple(segments)


def table_workload(segment: Segment, k: int, tables: Tables) -> Workload:
    """One segment's product for the tuning log, for one token."""
    return Workload(
        op="lut" if tables == "int8" else "exact",
        n=segment.rows,
        k=k,
        m=1,
        bits=segment.bits,
        group=segment.group_size,
        layout=segment.scale_dtype + ("+offset" if segment.offset else ""),
    )


def float_workload(n: int, k: int) -> Workload:
    """An FP32 product for the tuning log, for one token."""
    return Workload.of("float", n, k, 1, WORKLOAD_FLOAT)


def without_bits(spec: LutSpec, schedules: tuple[Schedule, ...]) -> LutSpec:
    """The part of a spec that the kernel's code depends on: any bit width but the threading choice."""
    threaded = [
        segment.bits if worth_threads(spec, segment, schedule) else 0
        for segment, schedule in zip(spec.segments, schedules, strict=True)
    ]
    segments = [
        replace(segment, bits=min(bits, 1)) for segment, bits in zip(spec.segments, threaded, strict=True)
    ]
    return replace(spec, segments=tuple(segments))
