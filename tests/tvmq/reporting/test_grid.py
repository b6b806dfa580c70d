# SPDX-License-Identifier: Apache-2.0
"""The map's table: every matrix is in one cell, whatever it is called."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tvmq.families import TensorInfo
from tvmq.reporting.grid import grid
from tvmq.reporting.subject import Matrix, Parts

NAMES = st.lists(
    st.lists(st.sampled_from(["a", "0", "1", "01", "12", "*", "weight", "self_attn", ""]), min_size=1).map(
        ".".join
    ),
    min_size=1,
    unique=True,
)


def matrix(name: str, block: str = "B", bits: int = 2) -> Matrix:
    info = TensorInfo(name=name, block=block, shape=(4, 8), is_embedding=False)
    return Matrix(info=info, clusters=((1, bits), (3, bits + 2)), coding=None, parts=Parts())


@given(NAMES)
def test_every_matrix_is_in_one_cell(names: list[str]) -> None:
    rows = grid([matrix(name, bits=i) for i, name in enumerate(names)])
    cells = sorted(bits for row in rows for bits in row.cells.values())
    assert cells == [i + 1.5 for i in range(len(names))]


def test_layers_are_columns() -> None:
    sides = ("encoder", "decoder")
    names = [f"model.{side}.layers.{i}.self_attn.q_proj.weight" for i in (0, 1) for side in sides]
    rows = grid(
        [matrix("model.shared.weight", "Emb"), *(matrix(name, name.split(".")[1]) for name in names)]
    )
    assert [(row.block, row.label, list(row.cells)) for row in rows] == [
        ("Emb", "model.shared", [None]),
        ("encoder", "q_proj", [0, 1]),
        ("decoder", "q_proj", [0, 1]),
    ]
