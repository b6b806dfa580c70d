# SPDX-License-Identifier: Apache-2.0
"""CheckInteger: what LowerBlockInt makes passes unchanged; a float before the head is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from relay_passes.check_integer import CheckInteger, float_expressions
from relay_passes.lower_block_int import LowerBlockInt
from schedules.block_dequantize import block_dequantize
from schedules.block_format import BlockLayout
from schedules.block_norm import BlockNormSpec, block_norm
from schedules.tir import KernelBuilder, T, as_type, body, intrinsic, load, pinned, put, store, times
from targets import get_target

ROWS = BlockLayout(width=64, block=64)
INPUTS = {"x": "int8[m, 64]", "e": "int32[m, 1]"}
CHANNELS = {"n:channels": "int8[64]"}


NORM = block_norm(BlockNormSpec(layout=ROWS, residual=None), "portable")
VECTORS = {"gamma": "int16[64]", "beta": "int16[64]", "constants": "int32[5]", "rsqrt": "int32[48]"}
BLOCKS = ("int8[m, 64]", "int32[m, 1]", "int8[m, 64]")


def copy(name: str, change: Callable[[Any], Any]) -> Any:
    """A kernel from int8[m, 64] to int8[m, 64], row by row."""
    kernel = KernelBuilder(name)
    with kernel.define():
        m = T.int64()
        x, y = (kernel.param(part, (m, 64), "int8") for part in "xy")
        with body([y], [x]), T.serial(0, m) as t, T.serial(0, 64) as c:
            put(y, (t, c), change(x[t, c]))
    return kernel.result


WHOLE = copy("copy", lambda value: value)
SCALED = copy("scale", lambda value: T.Cast("int8", T.Cast("float32", value) * T.float32(0.5)))


def end(g: Any, x: Any, e: Any, channels: Any) -> Any:
    return g.kernel(block_dequantize(ROWS), "block_dequantize", [x, e, x, channels], "float32[m, 64]")[0]


@pytest.mark.parametrize("target", ["x86_64_v2", "x86_64_v3", "x86_64_v4_vnni", "x86_64_v4_amx"])
@pytest.mark.parametrize("bits", [8, 3])
def test_a_lowered_encoder_passes_unchanged(
    encoder: Any, everywhere: Any, exponents: Any, apply: Any, same: Any, target: str, bits: int
) -> None:
    """The kernels of every ISA level; the float head behind them is none of its business."""

    def logits(g: Any, x: Any, offsets: Any, w: Any) -> Any:
        return g.tanh(g.linear(g.external("tvmq.first_token", [x, offsets], x), w))

    plan = everywhere(bits, head=("head.weight",))
    module = encoder(logits, {"head.weight": "float32[2, 64]"})
    module.update(encoder(name="embed"))
    lowered = apply(exponents(module, plan), LowerBlockInt(plan=plan, target=get_target(target)))
    same(apply(lowered, CheckInteger()), lowered)


def test_an_integer_kernel_between(graph: Any, apply: Any, same: Any) -> None:
    def make(g: Any, x: Any, e: Any, channels: Any) -> Any:
        return end(g, g.kernel(WHOLE, "copy", [x], "int8[m, 64]")[0], e, channels)

    module = graph(INPUTS, CHANNELS, make)
    same(apply(module, CheckInteger()), module)


def test_a_float_kernel_is_found(graph: Any) -> None:
    """Though all that goes in and out of it is integer."""

    def make(g: Any, x: Any, e: Any, channels: Any) -> Any:
        return end(g, g.kernel(SCALED, "scale", [x], "int8[m, 64]")[0], e, channels)

    with pytest.raises(
        ValueError, match=r"^the kernel scale in main computes in float32, expected integers$"
    ):
        CheckInteger()(graph(INPUTS, CHANNELS, make))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_float_tensor_is_found(graph: Any, dtype: str) -> None:
    """However far before the boundary: here an input that is cast."""

    def make(g: Any, x: Any, e: Any, channels: Any) -> Any:
        whole = g.kernel(WHOLE, "copy", [g.astype(x, "int8")], "int8[m, 64]")[0]
        return end(g, whole, e, channels)

    with pytest.raises(ValueError, match=rf"^x in main is {dtype}, expected integers before the head$"):
        CheckInteger()(graph(INPUTS | {"x": f"{dtype}[m, 64]"}, CHANNELS, make))


def test_a_float_weight_is_found(graph: Any) -> None:
    """A norm's gamma that is stored as floats and cast on the way."""
    inputs = {"y": "int32[m, 64]", "ye": "int32[m]"}

    def make(g: Any, y: Any, ye: Any, channels: Any, gamma: Any, *rest: Any) -> Any:
        args = [y, ye, g.astype(gamma, "int16"), *rest]
        return end(g, *g.kernel(NORM, "block_norm", args, *BLOCKS)[:2], channels)

    weights = CHANNELS | VECTORS | {"gamma": "float32[64]"}
    with pytest.raises(ValueError, match=r"^gamma in main is float32, expected integers before the head$"):
        CheckInteger()(graph(inputs, weights, make))


def test_every_branch_is_walked(graph: Any) -> None:
    """A float kernel that only the exponents pass through, two kernels back."""
    inputs = {"y": "int32[m, 64]", "ye": "int32[m]", "x": "int8[m, 64]"}

    def make(g: Any, y: Any, ye: Any, x: Any, channels: Any, *weights: Any) -> Any:
        scaled = g.kernel(SCALED, "scale", [x], "int8[m, 64]")[0]
        exponents = g.add(ye, g.astype(g.sum(scaled, axis=[1]), "int32"))
        return end(g, *g.kernel(NORM, "block_norm", [y, exponents, *weights], *BLOCKS)[:2], channels)

    with pytest.raises(ValueError, match="the kernel scale in main computes in float32"):
        CheckInteger()(graph(inputs, CHANNELS | VECTORS, make))


def test_no_integers_at_all(graph: Any) -> None:
    module = graph({"x": "float32[m, 64]"}, {}, lambda g, x: g.tanh(x))
    with pytest.raises(ValueError, match=r"^main has no integer body$"):
        CheckInteger()(module)


def test_every_entry_function_is_checked(graph: Any) -> None:
    module = graph(INPUTS, CHANNELS, end)
    module.update(graph({"x": "float32[m, 64]"}, {}, lambda g, x: g.tanh(x), name="other"))
    with pytest.raises(ValueError, match=r"^other has no integer body$"):
        CheckInteger()(module)


def test_float_expressions() -> None:
    assert float_expressions(WHOLE) == []
    assert float_expressions(SCALED) == ["float32"]
    assert float_expressions(block_dequantize(ROWS)) != []
    assert float_expressions(block_norm(BlockNormSpec(layout=ROWS, residual=ROWS), "portable")) == []


def fenced(make: Callable[[Any], Any]) -> Any:
    """int8[m, 64] from ``make`` of 16 of its columns."""
    kernel = KernelBuilder("fenced")
    with kernel.define():
        m = T.int64()
        x, y = (kernel.param(name, (m, 64), "int8") for name in "xy")
        with body([y], [x]), T.serial(0, m) as t:
            store(y, (t, 0), make(load(x, (t, 0), 16)), 16)
    return kernel.result


def test_integers_pass_a_fence() -> None:
    """Bits that LLVM may not look into are no floats; a product behind the same fence is one."""
    assert float_expressions(fenced(lambda v: pinned(v, "int8x16"))) == []
    squared = fenced(lambda v: T.Cast("int8x16", times(T.Cast("float32x16", v), T.Cast("float32x16", v))))
    assert float_expressions(squared) == ["float32x16"]

    def halved(v: Any) -> Any:
        wide = as_type(v, "float32x4")
        return as_type(intrinsic("float32x4", "llvm.arithmetic.fence", wide + wide), "int8x16")

    assert float_expressions(fenced(halved)) == ["float32x4"]
