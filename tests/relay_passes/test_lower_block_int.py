# SPDX-License-Identifier: Apache-2.0
"""LowerBlockInt: the body of an encoder as integer kernels, each reading its own stored arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tvm import relax

from relay_passes.bit_plan import WordBits
from relay_passes.check_integer import CheckInteger
from relay_passes.lower_block_int import BIAS_SHIFT, LowerBlockInt, matrix_spec, row_table
from schedules.block_attention import BlockAttentionSpec, block_attention
from schedules.block_dequantize import block_dequantize
from schedules.block_format import BlockLayout
from schedules.block_gather import BlockGatherSpec, RowSegment, RowTable, block_gather
from schedules.block_norm import BlockNormSpec, block_norm
from schedules.block_quantize import BlockQuantizeSpec, block_quantize
from schedules.dequant_gemm import DequantSpec, dequant_gemm
from targets import get_target

TARGET = get_target("x86_64_v3")
ISA = TARGET.kernel_isa
IDS = {"ids": "int32[m]"}
EMB = {"e.weight": "float32[70, 64]"}
LEVELS = {"e.weight:row_exponents": "int8[70]", "e.weight:row_levels": "int8[70, 64]"}
ROWS64 = BlockLayout(width=64, block=64)
TABLE8 = BlockGatherSpec(width=64, tables=(RowTable(segments=(RowSegment(rows=70, bits=8),)),))
Lower = Callable[..., Any]


def vectors(*names: str) -> dict[str, str]:
    """Float parameters of norms of width 64."""
    return {f"{name}.{part}": "float32[64]" for name in names for part in ("weight", "bias")}


def norm_arrays(name: str, residual: str = "") -> dict[str, str]:
    """Stored arrays that a norm reads, in its order; the table of 1 / sqrt comes after those of the first."""
    found = {f"{residual}:channels": "int8[64]"} if residual else {}
    found |= {f"{name}:gamma": "int16[64]", f"{name}:beta": "int16[64]", f"{name}:constants": "int32[5]"}
    return found


RSQRT, EXP2, GELU = (
    {"integer:rsqrt": "int32[48]"},
    {"integer:exp2": "int32[64]"},
    {"integer:gelu": "int32[64]"},
)


def matrix(name: str, n: int, k: int, planes: int = 0, groups: int = 1, bias: bool = True) -> dict[str, str]:
    """Stored arrays of a product, in its order."""
    blocks = -(-n // 64)
    if planes:
        found = {
            f"{name}.weight:keys": f"uint8[{blocks}, {planes}, {k // 32}, 4, 64]",
            f"{name}.weight:alphas": f"int8[{blocks}, {planes}, {groups}, 64]",
        }
    else:
        found = {f"{name}.weight:levels": f"int8[{2 * blocks}, {-(-k // 64)}, 2, 1024]"}
    found |= {f"{name}.weight:group_shifts": f"uint8[{blocks}, {groups}, 64]"} if groups > 1 else {}
    found |= {f"{name}.bias:integer": f"int32[{blocks}, 64]"} if bias else {}
    rest = {f"{name}.weight:row_shifts": f"uint8[{blocks}, 64]", f"{name}.weight:top": "int32[1]"}
    return found | rest


def product(n: int, k: int, bits: int = 8, **changes: Any) -> DequantSpec:
    facts: dict[str, Any] = {"bias": True, "bias_shift": BIAS_SHIFT} | changes
    return DequantSpec(n=n, k=k, bits=bits, **facts)


class Kernels:
    """Emits the kernels of an expected graph, each in its order of arguments; ``arrays`` by stored name."""

    def __init__(self, g: Any, names: dict[str, str], arrays: Any) -> None:
        self.g, self.arrays = g, dict(zip(names, arrays, strict=True))

    def stored(self, names: dict[str, str]) -> list[Any]:
        return [self.arrays[name] for name in names]

    def gather(self, spec: BlockGatherSpec, ids: list[Any], names: dict[str, str]) -> Any:
        args, outputs = [*ids, *self.stored(names)], (f"int32[m, {spec.width}]", "int32[m]")
        return self.g.kernel(block_gather(spec), "block_gather", args, *outputs)

    def norm(self, name: str, wide: Any, x: Any = None, residual: str = "", layout: Any = ROWS64) -> Any:
        spec = BlockNormSpec(layout=layout, residual=None if x is None else ROWS64)
        args = [*wide, *(x or ()), *self.stored(norm_arrays(name, residual)), self.arrays["integer:rsqrt"]]
        return self.g.kernel(block_norm(spec, ISA), "block_norm", args, *blocks(layout), fine(layout))

    def product(self, spec: DequantSpec, x: Any, names: dict[str, str]) -> Any:
        outputs = (f"int32[m, {spec.n}]", "int32[m]")
        kernel = dequant_gemm(spec, ISA)
        return self.g.kernel(kernel, "dequant_gemm", [*x[:2], *self.stored(names)], *outputs)

    def quantize(self, spec: BlockQuantizeSpec, y: Any) -> Any:
        table = [self.arrays["integer:gelu"]] if spec.activation == "gelu" else []
        values, exponents = y
        if spec.source_groups == 1:
            exponents = self.g.reshape(exponents, [exponents.ty.shape[0], 1])
        args = [values, exponents, *table]
        return self.g.kernel(block_quantize(spec, ISA), "block_quantize", args, *blocks(spec.layout))

    def floats(self, x: Any, channels: str, layout: BlockLayout = ROWS64) -> Any:
        args = [*x, self.arrays[f"{channels}:channels"]]
        outputs = f"float32[m, {layout.width}]"
        return self.g.kernel(block_dequantize(layout), "block_dequantize", args, outputs)[0]


def blocks(layout: BlockLayout) -> tuple[str, str]:
    return f"int8[m, {layout.padded}]", f"int32[m, {layout.groups}]"


def fine(layout: BlockLayout) -> str:
    return f"int8[m, {layout.width}]"


@pytest.fixture
def expected(graph: Any) -> Callable[..., Any]:
    """``graph`` without the dataflow block: kernels are called one after the other."""
    return lambda *args, **attrs: relax.transform.ToNonDataflow()(graph(*args, longest=24, **attrs))


@pytest.fixture
def lower(exponents: Any, apply: Any) -> Lower:
    """``lower(module, plan)``: lowered, checked to hold no float, and unchanged by a second time."""

    def run(module: Any, bits: Any) -> Any:
        after = apply(exponents(module, bits), LowerBlockInt(plan=bits, target=TARGET))
        return apply(after, CheckInteger())

    return run


def rows(g: Any, ids: Any, table: Any) -> Any:
    return g.take(table, ids, axis=0)


def normed(g: Any, x: Any, weight: Any, bias: Any) -> Any:
    return g.layer_norm(x, weight, bias, axes=[-1], epsilon=0.5)


def test_a_table_and_a_norm(graph: Any, lower: Lower, expected: Any, same: Any, plan: Any) -> None:
    bits = plan({"e.weight": 8})
    before = graph(IDS, EMB | vectors("n"), lambda g, ids, e, *v: normed(g, rows(g, ids, e), *v))
    names = LEVELS | norm_arrays("n") | RSQRT | {"n:channels": "int8[64]"}

    def body(g: Any, ids: Any, *arrays: Any) -> Any:
        k = Kernels(g, names, arrays)
        return k.floats(k.norm("n", k.gather(TABLE8, [ids], LEVELS)), "n")

    same(lower(before, bits), expected(IDS, names, body, planned={"e.weight": 1}))


def test_tables_of_all_kinds(graph: Any, lower: Lower, expected: Any, same: Any, plan: Any) -> None:
    """Bits by word, planes, and a table that the plan does not name: three rows are added at once."""
    bits = plan({"a.weight": ((60, 8), (10, 3)), "b.weight": 4})
    inputs = {"x": "int32[m]", "y": "int32[m]", "z": "int32[m]"}
    weights = {"a.weight": "float32[70, 64]", "b.weight": "float32[24, 64]", "c.weight": "float32[2, 64]"}

    def source(g: Any, x: Any, y: Any, z: Any, a: Any, b: Any, c: Any, *v: Any) -> Any:
        return normed(g, g.add(g.add(rows(g, x, a), rows(g, z, c)), rows(g, y, b)), *v)

    first = RowTable(segments=(RowSegment(rows=60, bits=8), RowSegment(rows=10, bits=3)), rank_dtype="uint16")
    plain = [RowTable(segments=(RowSegment(rows=n, bits=b),)) for n, b in ((2, 8), (24, 4))]
    spec = BlockGatherSpec(width=64, tables=(first, *plain))
    tables = {
        "a.weight:rank": "uint16[70]",
        "a.weight:0:row_exponents": "int8[60]",
        "a.weight:0:row_levels": "int8[60, 64]",
        "a.weight:1:row_exponents": "int8[10]",
        "a.weight:1:row_bits": "uint8[10, 3, 8]",
        "a.weight:1:row_alphas": "int8[10, 3]",
        "c.weight:row_exponents": "int8[2]",
        "c.weight:row_levels": "int8[2, 64]",
        "b.weight:row_exponents": "int8[24]",
        "b.weight:row_bits": "uint8[24, 4, 8]",
        "b.weight:row_alphas": "int8[24, 4]",
    }
    names = tables | norm_arrays("n") | RSQRT | {"n:channels": "int8[64]"}

    def body(g: Any, x: Any, y: Any, z: Any, *arrays: Any) -> Any:
        k = Kernels(g, names, arrays)
        return k.floats(k.norm("n", k.gather(spec, [x, z, y], tables)), "n")

    before = graph(inputs, weights | vectors("n"), source)
    planned = {"a.weight": 1, "b.weight": 1}
    same(lower(before, bits), expected(inputs, names, body, planned=planned))


def test_linears_with_gelu_between_two_norms(
    graph: Any, lower: Lower, expected: Any, same: Any, plan: Any
) -> None:
    """The residual goes into the second norm; GELU is computed where the product becomes blocks."""
    bits = plan({"e.weight": 8, "up.weight": 3, "down.weight": 8}, activation_block=None)
    weights = EMB | vectors("n", "o") | {"up.weight": "float32[128, 64]", "up.bias": "float32[128]"}
    weights |= {"down.weight": "float32[64, 128]", "down.bias": "float32[64]"}

    def source(g: Any, ids: Any, e: Any, a: Any, b: Any, c: Any, d: Any, *w: Any) -> Any:
        x = normed(g, rows(g, ids, e), a, b)
        return normed(g, g.add(g.linear(g.gelu(g.linear(x, *w[:2])), *w[2:]), x), c, d)

    up, down = matrix("up", 128, 64, planes=3), matrix("down", 64, 128)
    names = LEVELS | norm_arrays("n") | RSQRT | up | GELU | down | norm_arrays("o", "n")
    names |= {"o:channels": "int8[64]"}
    wide = BlockLayout(width=128, block=128)

    def body(g: Any, ids: Any, *arrays: Any) -> Any:
        k = Kernels(g, names, arrays)
        x = k.norm("n", k.gather(TABLE8, [ids], LEVELS))
        y = k.product(product(128, 64, 3), x, up)
        hidden = k.quantize(BlockQuantizeSpec(layout=wide, activation="gelu"), y)
        y = k.product(product(64, 128), hidden, down)
        return k.floats(k.norm("o", y, x, "n"), "o")

    planned = {"e.weight": 1, "up.weight": 1, "down.weight": 1}
    same(lower(graph(IDS, weights, source), bits), expected(IDS, names, body, planned=planned))


def test_groups_of_weights_and_blocks_of_activations(
    graph: Any, lower: Lower, expected: Any, same: Any, plan: Any
) -> None:
    """ReLU belongs to the product; groups of 64 columns on both sides; no biases."""
    bits = plan({"up.weight": 8, "down.weight": 3}, group_size=64, activation_block=64, activation_bits=6)
    weights = EMB | vectors("n", "o") | {"up.weight": "float32[128, 64]", "down.weight": "float32[64, 128]"}

    def source(g: Any, ids: Any, e: Any, a: Any, b: Any, c: Any, d: Any, up: Any, down: Any) -> Any:
        x = normed(g, rows(g, ids, e), a, b)
        return normed(g, g.add(g.linear(g.relu(g.linear(x, up)), down), x), c, d)

    up = matrix("up", 128, 64, bias=False)
    down = matrix("down", 64, 128, planes=3, groups=2, bias=False)
    names = LEVELS | norm_arrays("n") | RSQRT | up | down | norm_arrays("o", "n")
    names |= {"o:channels": "int8[64]"}
    six, wide = replace(ROWS64, bits=6), BlockLayout(width=128, block=64, bits=6)

    def body(g: Any, ids: Any, *arrays: Any) -> Any:
        k = Kernels(g, names, arrays)
        x = k.norm("n", k.gather(TABLE8, [ids], LEVELS), layout=six)
        y = k.product(product(128, 64, bias=False, activation="relu"), x, up)
        x2 = k.quantize(BlockQuantizeSpec(layout=wide), y)
        y = k.product(product(64, 128, 3, bias=False, groups=2, x_groups=2, w_groups=2), x2, down)
        spec = BlockNormSpec(layout=ROWS64, residual=six)
        args = [*y, *x, *k.stored(norm_arrays("o", "n")), k.arrays["integer:rsqrt"]]
        last = g.kernel(block_norm(spec, ISA), "block_norm", args, *blocks(ROWS64), fine(ROWS64))
        return k.floats(last, "o")

    planned = {"up.weight": 1, "down.weight": 1}
    same(lower(graph(IDS, weights, source), bits), expected(IDS, names, body, planned=planned))


def test_attention(graph: Any, lower: Lower, expected: Any, same: Any, plan: Any) -> None:
    """Products go in as they are; the heads' exponents go into one block per row."""
    letters = ("q", "k", "v", "out")
    bits = plan({f"{name}.weight": 8 for name in letters})
    inputs = {"ids": "int32[m]", "offsets": "int32[s]"}
    weights = EMB | vectors("n", "o") | {f"{name}.weight": "float32[64, 64]" for name in letters}

    def source(g: Any, ids: Any, offsets: Any, e: Any, a: Any, b: Any, c: Any, d: Any, *w: Any) -> Any:
        x = normed(g, rows(g, ids, e), a, b)
        q, k, v = (g.linear(x, weight) for weight in w[:3])
        y = g.external("tvmq.ragged_attention", [q, k, v, offsets, relax.prim_value(2)], q)
        return normed(g, g.add(g.linear(y, w[3]), x), c, d)

    q, k, v, out = (matrix(name, 64, 64, bias=False) for name in letters)
    names = LEVELS | norm_arrays("n") | RSQRT | q | k | v | EXP2 | out | norm_arrays("o", "n")
    names |= {"o:channels": "int8[64]"}
    spec = BlockAttentionSpec(heads=2, width=64, longest=24)

    def body(g: Any, ids: Any, offsets: Any, *arrays: Any) -> Any:
        emit = Kernels(g, names, arrays)
        x = emit.norm("n", emit.gather(TABLE8, [ids], LEVELS))
        parts = [emit.product(product(64, 64, bias=False), x, part) for part in (q, k, v)]
        args = [*(value for part in parts for value in part), offsets, emit.arrays["integer:exp2"]]
        kernel = block_attention(spec, ISA)
        y = g.kernel(kernel, "block_attention", args, "int32[m, 64]", "int32[m, 2]")
        y = emit.quantize(BlockQuantizeSpec(layout=ROWS64, source_groups=2), y)
        y = emit.product(product(64, 64, bias=False), y, out)
        return emit.floats(emit.norm("o", y, x, "n"), "o")

    planned = {f"{name}.weight": 1 for name in letters}
    same(lower(graph(inputs, weights, source), bits), expected(inputs, names, body, planned=planned))


def test_a_whole_encoder_with_a_head(encoder: Any, everywhere: Any, lower: Lower, operators: Any) -> None:
    """Kernels of equal structure are shared; floats begin where the head does."""

    def end(g: Any, x: Any, offsets: Any, w: Any) -> Any:
        return g.linear(g.external("tvmq.first_token", [x, offsets], x), w)

    bits = everywhere(8, head=("head.weight",))
    found = lower(encoder(end, {"head.weight": "float32[2, 64]"}), bits)
    assert [name for name in operators(found) if name != "relax.reshape"] == [
        *("block_gather", "block_norm", "dequant_gemm", "dequant_gemm", "dequant_gemm", "block_attention"),
        *("block_quantize", "dequant_gemm", "block_norm1", "dequant_gemm1", "block_quantize1"),
        *("dequant_gemm2", "block_norm1", "block_dequantize", "relax.call_dps_packed", "tvmq.linear"),
    ]
    floats = [str(p.name) for p in found["main"].params if "float" in str(p.ty.dtype)]
    assert floats == ["head.weight"]


def test_two_functions_share_kernels(encoder: Any, everywhere: Any, lower: Lower, operators: Any) -> None:
    module = encoder(name="embed")
    module.update(encoder(name="main"))
    found = lower(module, everywhere(4))
    assert operators(found, "embed") == operators(found, "main")
    assert [p.name for p in found["embed"].params] == [p.name for p in found["main"].params]


@pytest.mark.parametrize(("bits", "count"), [((8, 8), 1), ((8, 6), 2)])
def test_a_product_is_made_blocks_once_for_each_layout(
    graph: Any, lower: Lower, plan: Any, operators: Any, bits: tuple[int, int], count: int
) -> None:
    weights = EMB | vectors("n", "o", "p") | {f"{x}.weight": "float32[64, 64]" for x in "abc"}

    def body(g: Any, ids: Any, e: Any, *w: Any) -> Any:
        x = normed(g, rows(g, ids, e), *w[:2])
        y = g.linear(x, w[6])
        left, right = (normed(g, g.add(g.linear(y, w[7 + i]), x), *w[2 + 2 * i : 4 + 2 * i]) for i in (0, 1))
        return g.add(left, right)

    widths = dict(zip("bc", bits, strict=True))
    base = plan({f"{x}.weight": 8 for x in "abc"})
    entries = [replace(e, activation_bits=widths.get(e.tensor[0], 8)) for e in base.blocks]
    found = operators(lower(graph(IDS, weights, body), replace(base, blocks=tuple(entries))))
    assert sum(name.startswith("block_quantize") for name in found) == count
    assert found.count("block_dequantize") == 2


def test_norms_of_norms_and_of_activations(graph: Any, lower: Lower, plan: Any) -> None:
    """Sums that are no product and at most one norm's result."""
    weights = EMB | vectors("n", "o") | {"a.weight": "float32[64, 64]", "b.weight": "float32[64, 64]"}
    bits = plan({"a.weight": 8, "b.weight": 8})
    cases: dict[str, Callable[..., Any]] = {
        "o adds what integer norms cannot": lambda g, x, a, b: x,
        r"o adds what integer norms cannot \(one": lambda g, x, a, b: g.add(x, x),
        "adds what integer norms cannot": lambda g, x, a, b: g.add(g.linear(x, a), g.linear(x, b)),
        "o adds the result of an activation": lambda g, x, a, b: g.add(g.gelu(g.linear(x, a)), x),
    }
    for message, make in cases.items():

        def body(g: Any, ids: Any, e: Any, *w: Any, make: Any = make) -> Any:
            x = normed(g, rows(g, ids, e), *w[:2])
            return normed(g, make(g, x, *w[4:]), *w[2:4])

        with pytest.raises(ValueError, match=message) as caught:
            lower(graph(IDS, weights, body), bits)
        assert "\n" not in str(caught.value)


def test_fp32_matrices_are_refused(encoder: Any, everywhere: Any, lower: Lower) -> None:
    for name in ("up", "words"):
        message = rf"{name}\.weight stays FP32, which integers cannot be \(give it 1 to 8 bits\)"
        with pytest.raises(ValueError, match=message):
            lower(encoder(), everywhere(8, **{name: 32}))


def test_other_activations_are_refused(encoder: Any, everywhere: Any, lower: Lower) -> None:
    message = r"up ends in tanh, which has no integer form \(known: relu, gelu, gelu_tanh\)"
    with pytest.raises(ValueError, match=message):
        lower(encoder(activation="tanh"), everywhere(8))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
def test_both_forms_of_gelu_read_a_table(
    encoder: Any, everywhere: Any, lower: Lower, activation: str
) -> None:
    lowered = lower(encoder(activation=activation), everywhere(8))
    read = {str(parameter.name) for parameter in lowered["main"].params}
    assert ("integer:gelu" in read) == (activation != "relu")


def test_groups_that_do_not_fit_are_refused(encoder: Any, everywhere: Any, lower: Lower) -> None:
    message = r"q\.weight: groups of 32 columns, expected multiples of 64 or all"
    with pytest.raises(ValueError, match=message):
        lower(encoder(), everywhere(3, group_size=32))


def test_a_norm_read_in_two_layouts_is_refused(encoder: Any, everywhere: Any, exponents: Any) -> None:
    """ChooseExponents refuses such plans; a plan that changed since then is refused here."""
    bits = everywhere(8)
    module = exponents(encoder(), bits)
    other = [replace(e, activation_bits=6) if e.tensor == "up.weight" else e for e in bits.blocks]
    step = LowerBlockInt(plan=replace(bits, blocks=tuple(other)), target=TARGET)
    with pytest.raises(ValueError, match="one norm is read in blocks of two layouts"):
        step(module)


@pytest.mark.parametrize(("part", "what"), [("product", "a"), ("attention", "attention"), ("table", "e")])
def test_a_head_reads_norms_only(graph: Any, lower: Lower, plan: Any, part: str, what: str) -> None:
    weights = EMB | vectors("n") | {"a.weight": "float32[64, 64]", "head.weight": "float32[2, 64]"}
    inputs = {"ids": "int32[m]", "offsets": "int32[s]"}

    def body(g: Any, ids: Any, offsets: Any, e: Any, gamma: Any, beta: Any, a: Any, head: Any) -> Any:
        table = rows(g, ids, e)
        y = g.linear(normed(g, table, gamma, beta), a)
        attended = g.external("tvmq.ragged_attention", [y, y, y, offsets, relax.prim_value(2)], y)
        return g.linear({"product": y, "attention": attended, "table": table}[part], head)

    with pytest.raises(ValueError, match=f"the head reads {what}, expected the result of a norm"):
        lower(graph(inputs, weights, body), plan({"a.weight": 8}))


def test_scaled_tables_are_refused(graph: Any, lower: Lower, plan: Any) -> None:
    def body(g: Any, ids: Any, e: Any, *v: Any) -> Any:
        return normed(g, g.multiply(rows(g, ids, e), relax.const(8.0, "float32")), *v)

    with pytest.raises(ValueError, match="e is scaled, which integer tables are not"):
        lower(graph(IDS, EMB | vectors("n"), body), plan({"e.weight": 8}))


def test_matrix_spec(plan: Any) -> None:
    def spec(k: int, **facts: Any) -> DequantSpec:
        (entry,) = plan({"w": facts.pop("bits")}, **facts).blocks
        return matrix_spec(entry, 32, k, bias=False)

    def groups(k: int, **facts: Any) -> tuple[int, int, int]:
        found = spec(k, **facts)
        return found.groups, found.x_groups, found.w_groups

    assert groups(256, bits=3, group_size=64, activation_block=64) == (4, 4, 4)
    assert groups(256, bits=3, group_size=64, activation_block=None) == (4, 1, 4)
    assert groups(256, bits=3, activation_block=128) == (2, 2, 1)
    assert groups(256, bits=8, group_size=64, activation_block=None) == (1, 1, 1)  # levels have no groups
    assert groups(96, bits=3, activation_block=64) == (1, 1, 1)  # 64 does not divide 96
    with pytest.raises(ValueError, match="w: 4 groups of weights and 2 blocks"):
        spec(256, bits=3, group_size=64, activation_block=128)
    with pytest.raises(ValueError, match="w stays FP32"):
        spec(64, bits=32)


def test_row_table(plan: Any) -> None:
    (block,) = plan({"w": 3}).blocks
    assert row_table(None, 5) == RowTable(segments=(RowSegment(rows=5, bits=8),))
    assert row_table(block, 5) == RowTable(segments=(RowSegment(rows=5, bits=3),))
    words = WordBits(tensor="w", block="Emb", clusters=((3, 8), (70_000, 1)))
    found = row_table(words, words.rows)
    assert (found.rank_dtype, found.segments[1]) == ("int32", RowSegment(rows=70_000, bits=1))
    with pytest.raises(ValueError, match="w stays FP32"):
        row_table(replace(block, bits=32), 5)
