# SPDX-License-Identifier: Apache-2.0
"""CheckInteger: accepts a lowered layer as it is; finds a float kernel and a float tensor before the head."""

from __future__ import annotations

from typing import Any

import pytest
import tvm

from relay_passes.check_integer import CheckInteger, float_expressions
from relay_passes.lower_block_int import LowerBlockInt
from schedules.block_dequantize import block_dequantize
from schedules.block_format import BlockLayout
from schedules.block_norm import BlockNormSpec, block_norm
from schedules.norm import NormSpec, norm
from targets import get_target


@pytest.fixture
def layer(encoder: Any, everywhere: Any, exponents: Any) -> tvm.IRModule:
    plan = everywhere(8)
    return LowerBlockInt(plan=plan, target=get_target("x86_64_v2"))(exponents(encoder(), plan))


def test_a_lowered_layer_is_left_alone(layer: tvm.IRModule, same: Any) -> None:
    same(CheckInteger()(layer), layer)


def test_float_expressions() -> None:
    layout = BlockLayout(width=64, block=64)
    assert float_expressions(block_norm(BlockNormSpec(layout=layout, residual=layout))) == []
    assert "float32x16" in float_expressions(block_dequantize(layout))


def test_a_float_kernel_is_found(layer: tvm.IRModule) -> None:
    (gather,) = [var for var in layer.functions if str(var.name_hint) == "block_gather"]
    layer.update_func(gather, norm(NormSpec(width=64, epsilon=1.0, residual=False)))
    with pytest.raises(ValueError, match="block_gather in main computes in float32"):
        CheckInteger()(layer)


def test_a_module_without_an_integer_body(encoder: Any, annotated: Any, everywhere: Any) -> None:
    with pytest.raises(ValueError, match="main has no integer body"):
        CheckInteger()(annotated(encoder(), everywhere(8)))
