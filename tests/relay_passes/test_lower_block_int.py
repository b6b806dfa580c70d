# SPDX-License-Identifier: Apache-2.0
"""LowerBlockInt: the kernels of a whole encoder layer in order, their stored weights, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tvm
from tvm import relax

from relay_passes.check_integer import CheckInteger
from relay_passes.lower_block_int import LowerBlockInt
from targets import get_target

TARGET = get_target("x86_64_v3")


def kernels(module: tvm.IRModule, name: str = "main") -> list[tuple[str, list[str], list[str]]]:
    """(kernel without its number, stored arrays read, output types) of every kernel call, in order."""
    found = []
    for block in module[name].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                names = [str(arg.name) for arg in value.args[1] if ":" in str(arg.name)]
                fields = getattr(value.ty, "fields", [value.ty])
                types = [
                    f"{field.dtype}{[int(e) for e in field.shape if isinstance(e, tvm.tirx.IntImm)]}"
                    for field in fields
                ]
                found.append((str(value.args[0].name_hint).rstrip("0123456789"), names, types))
    return found


def lowered(module: tvm.IRModule, plan: Any, exponents: Any, apply: Any) -> tvm.IRModule:
    return apply(exponents(module, plan), LowerBlockInt(plan=plan, target=TARGET), CheckInteger())


def test_a_whole_layer(encoder: Any, everywhere: Any, exponents: Any, apply: Any) -> None:
    found = kernels(lowered(encoder(), everywhere(8), exponents, apply))
    product = "dequant_gemm"
    assert [name for name, _, _ in found] == [
        "block_gather", "block_norm", product, product, product, "block_attention", "block_quantize",
        product, "block_norm", product, "block_quantize", product, "block_norm", "block_dequantize",
    ]  # fmt: skip
    arrays = {name: names for name, names, _ in reversed(found)}
    assert "words.weight:row_levels" in arrays["block_gather"]
    assert arrays["block_attention"] == ["integer:exp2"]
    assert found[2][1] == ["q.weight:levels", "q.bias:integer", "q.weight:row_shifts", "q.weight:top"]
    assert "n0:channels" in found[8][1]
    assert "integer:gelu" in found[10][1]
    assert all("float" not in kind for _, _, kinds in found[:-1] for kind in kinds)
    assert found[-1][2] == ["float32[64]"]


def test_planes_and_groups(encoder: Any, everywhere: Any, exponents: Any, apply: Any) -> None:
    plan = everywhere(3, down=2)
    plan = replace(
        plan,
        blocks=tuple(replace(e, group_size=64) if e.tensor == "down.weight" else e for e in plan.blocks),
    )
    found = kernels(lowered(encoder(), plan, exponents, apply))
    down = found[11][1]
    assert down[:3] == ["down.weight:keys", "down.weight:alphas", "down.weight:group_shifts"]
    assert found[2][1][:2] == ["q.weight:keys", "q.weight:alphas"]


def test_the_head_stays_float(encoder: Any, everywhere: Any, exponents: Any, apply: Any) -> None:
    def end(g: Any, x: Any, offsets: Any, w: Any) -> Any:
        return g.linear(x, w)

    module = encoder(end, {"head.weight": "float32[2, 64]"})
    found = kernels(lowered(module, everywhere(8, head=("head.weight",)), exponents, apply))
    assert found[-1][0] == "block_dequantize"


@pytest.mark.parametrize(
    ("changes", "activation", "reason"),
    [
        ({"up": 32}, "gelu", "up.weight stays FP32"),
        ({}, "tanh", "up ends in tanh, which has no integer form"),
        ({"words": 32}, "gelu", "words.weight stays FP32"),
    ],
)
def test_refusals(
    encoder: Any, everywhere: Any, exponents: Any, changes: Any, activation: str, reason: str
) -> None:
    plan = everywhere(8, **changes)
    module = exponents(encoder(activation=activation), plan)
    with pytest.raises(ValueError, match=reason):
        LowerBlockInt(plan=plan, target=TARGET)(module)


def test_groups_that_do_not_fit(encoder: Any, everywhere: Any, exponents: Any) -> None:
    plan = everywhere(3, group_size=32)
    module = exponents(encoder(), plan)
    with pytest.raises(ValueError, match="64 columns are not 2 groups"):
        LowerBlockInt(plan=plan, target=TARGET)(module)
