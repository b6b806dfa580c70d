# SPDX-License-Identifier: Apache-2.0
"""torch.export programs as Relax functions: names, ties, buffers, shapes, and every tvmq operator."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import tvm
from torch import Tensor, nn
from torch.export import Dim
from tvm import relax

from tvmq.export import export_program
from tvmq.families import ops
from tvmq.frontend import import_program, unknown_operators

X = torch.zeros(3, 8)
ROWS = ({0: Dim("m", min=1)},)


class Block(nn.Module):
    """A linear inside a linear's parent, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.fc2(torch.relu(self.fc1(x))))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def imported(
    module: nn.Module, *inputs: Tensor, shapes: Any = None, name: str = "forward"
) -> tuple[tvm.IRModule, Any]:
    """The module and its function."""
    program = export_program(module.eval(), inputs, shapes)
    result = import_program(program, name)
    relax.analysis.well_formed(result)
    return result, result[name]


def names(function: Any) -> list[str]:
    return [str(param.name) for param in function.params]


def bindings(function: Any) -> list[Any]:
    return [binding for block in function.body.blocks for binding in block.bindings]


def operators(function: Any) -> list[str]:
    return [str(b.value.op.name) for b in bindings(function) if isinstance(b.value, relax.Call)]


def test_parameters_are_called_as_in_the_module() -> None:
    module = Stack()
    graph, function = imported(module, X, shapes=ROWS)
    assert [var.name_hint for var in graph.functions] == ["forward"]
    assert int(function.attrs["num_input"]) == 1
    assert str(function.attrs["global_symbol"]) == "forward"
    assert names(function)[1:] == list(dict(module.named_parameters()))
    for param in function.params[1:]:
        assert tuple(param.ty.shape) == tuple(module.state_dict()[param.name].shape)


def test_bindings_are_called_after_the_module_that_computes_them() -> None:
    _, function = imported(Stack(), X, shapes=ROWS)
    found = " ".join(str(binding.var.name) for binding in bindings(function))
    for path in ("layers__0__fc1", "layers__1__fc2", "layers__1__norm"):
        assert len(re.findall(rf"\b{path}\d*\b", found)) >= 1


def test_code_outside_submodules_is_called_after_its_operator() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) * 2

    _, function = imported(Plain(), X)
    assert str(bindings(function)[0].var.name) == "relu"


def test_linears_embeddings_and_norms_stay_whole() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block = nn.Embedding(20, 8), Block()

        def forward(self, ids: Tensor) -> Tensor:
            return self.block(self.embed(ids) * 2.0)

    _, function = imported(Words(), torch.zeros(3, dtype=torch.int32), shapes=ROWS)
    found = [op.removeprefix("relax.").removeprefix("nn.") for op in operators(function)]
    assert [op for op in found if op not in ("astype",)] == [
        *("take", "multiply"),
        *("permute_dims", "matmul", "add", "relu"),
        *("permute_dims", "matmul", "add"),
        *("add", "layer_norm"),
    ]


def test_ties_are_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight
            self.again = self.head

        def forward(self, ids: Tensor) -> Tensor:
            return self.again(self.embed(ids)) + self.head(self.embed(ids))

    _, function = imported(Tied(), torch.zeros(3, dtype=torch.int32), shapes=ROWS)
    assert names(function)[1:] == ["embed.weight"]


def test_views_of_one_memory_are_no_ties() -> None:
    """Parameters cut from one tensor (flattened checkpoints) differ in offset or shape."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            memory = torch.randn(3, 8, 8)
            self.q, self.k = nn.Parameter(memory[0]), nn.Parameter(memory[1])
            self.flat = nn.Parameter(memory[0].reshape(-1))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.q + x @ self.k + self.flat[:8]

    _, function = imported(Cut(), X, shapes=ROWS)
    assert sorted(names(function)[1:]) == ["flat", "k", "q"]


def test_buffers_are_parameters_and_constants_of_integers_are_not() -> None:
    class Buffers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(8))
            self.register_buffer("places", torch.arange(3, dtype=torch.int32))
            self.register_buffer("unused", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.places[:, None]

    _, function = imported(Buffers(), X)
    assert names(function)[1:] == ["scale"]


def test_inputs_keep_their_order_and_unused_weights_are_dropped() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, second: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(first), second

    _, function = imported(Two(), X, X + 1)
    assert names(function) == ["second", "first", "used.weight", "used.bias"]
    assert int(function.attrs["num_input"]) == 2


def test_free_extents_stay_free() -> None:
    _, function = imported(Stack(), X, shapes=ROWS)
    rows = function.params[0].ty.shape[0]
    assert tvm.ir.is_prim_var(rows)
    assert str(function.ret_ty.shape[0]) == str(rows)


@pytest.mark.parametrize("kind", ["ragged", "cached", "cross"])
def test_attention_operators_keep_arguments_and_heads(kind: str) -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, cache: Tensor, rows: Tensor, places: Tensor) -> Tensor:
            match kind:
                case "ragged":
                    return ops.ragged_attention(q, q, q, rows, 4)
                case "cached":
                    return ops.cached_attention(q, q, q, cache, cache, rows, places, 4)
            return ops.cross_attention(q, q, q, rows, rows, 4)

    rows, places = torch.zeros(3, dtype=torch.int32), torch.zeros((3, 5), dtype=torch.int32)
    _, function = imported(Attention(), X, torch.zeros(3, 5, 8), rows, places)
    (call,) = [b.value for b in bindings(function) if isinstance(b.value, relax.Call)]
    assert str(call.args[0].global_symbol) == f"tvmq.{kind}_attention"
    *tensors, heads = call.args[1]
    assert int(heads.value) == 4
    assert [str(tensor.name) for tensor in tensors] == {
        "ragged": ["q", "q", "q", "rows"],
        "cached": ["q", "q", "q", "cache", "cache", "rows", "places"],
        "cross": ["q", "q", "q", "rows", "rows"],
    }[kind]
    assert list(call.ty.shape) == [3, 8]


def test_unknown_operators_name_their_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).real

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    problems = unknown_operators(export_program(Outer().eval(), (torch.eye(3),)))
    assert problems[0].startswith("aten._fft_r2c")
    assert all(problem.endswith("(in inner)") for problem in problems)
    assert unknown_operators(export_program(Stack().eval(), (X,))) == []
