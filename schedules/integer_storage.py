# SPDX-License-Identifier: Apache-2.0
"""How the weights of the block-integer mode are stored: names, shapes and dtypes of every array.

A matrix that is multiplied by is ``w:keys w:alphas`` (planes) or ``w:levels``, with ``w:row_shifts w:top``,
``w:group_shifts`` where its rows have column groups; its bias ``b:integer``. A table whose rows are added is
stored row after row: ``w:row_levels`` or ``w:row_bits w:row_alphas``, with ``w:row_exponents`` (one set
per segment, ``w:0:...``, and ``w:rank``, where words have bits of their own). A norm at ``p`` is
``p:gamma p:beta p:constants``, the channel exponents of its result ``p:channels``. Function tables are
``exp2 gelu rsqrt`` behind ``integer:``.
"""

from __future__ import annotations

from .block_gather import LEVEL_BITS, RowTable
from .block_norm import CONSTANTS
from .dequant_gemm import DequantSpec
from .level_packing import PANEL_ROWS, TILE_BYTES, TILE_COLUMNS
from .packing import BLOCK_ROWS, STEP_COLUMNS, row_blocks
from .storage import TILES, StoredArray

TABLES = {"exp2": 64, "gelu": 64, "rsqrt": 48}
"""Function tables: name -> int32 entries. That of GELU holds the form which the model computes."""


def function_table(name: str) -> StoredArray:
    """A table of ``integer_tables``."""
    return StoredArray(name=f"integer:{name}", shape=(TABLES[name],), dtype="int32")


def matrix_arrays(tensor: str, spec: DequantSpec) -> list[StoredArray]:
    """What a product reads of its weights, in the kernel's order; the bias stands between the two lists."""
    blocks = row_blocks(spec.n)
    if spec.planes:
        steps = spec.groups * spec.key_steps
        found = [
            StoredArray(
                name=f"{tensor}:keys",
                shape=(blocks, spec.bits, steps, TILES, STEP_COLUMNS * 2),
                dtype="uint8",
            ),
            StoredArray(
                name=f"{tensor}:alphas", shape=(blocks, spec.bits, spec.w_groups, BLOCK_ROWS), dtype="int8"
            ),
        ]
    else:
        shape = (blocks * BLOCK_ROWS // PANEL_ROWS, spec.padded_k // TILE_COLUMNS, 2, TILE_BYTES)
        found = [StoredArray(name=f"{tensor}:levels", shape=shape, dtype="int8")]
    if spec.w_groups > 1:
        shape = (blocks, spec.w_groups, BLOCK_ROWS)
        found.append(StoredArray(name=f"{tensor}:group_shifts", shape=shape, dtype="uint8"))
    return found


def bias_array(bias: str, n: int) -> StoredArray:
    """A bias as whole numbers."""
    return StoredArray(name=f"{bias}:integer", shape=(row_blocks(n), BLOCK_ROWS), dtype="int32")


def row_exponent_arrays(tensor: str, n: int) -> list[StoredArray]:
    """The rows' exponents: shifts below the largest, and the largest."""
    return [
        StoredArray(name=f"{tensor}:row_shifts", shape=(row_blocks(n), BLOCK_ROWS), dtype="uint8"),
        StoredArray(name=f"{tensor}:top", shape=(1,), dtype="int32"),
    ]


def table_arrays(tensor: str, table: RowTable, width: int) -> list[StoredArray]:
    """What a gather reads of a table, in the kernel's order."""
    found = []
    if table.rank_dtype:
        found.append(StoredArray(name=f"{tensor}:rank", shape=(table.rows,), dtype=table.rank_dtype))
    for i, segment in enumerate(table.segments):
        prefix = f"{tensor}:{i}" if table.rank_dtype else tensor
        rows, bits = segment.rows, segment.bits
        found.append(StoredArray(name=f"{prefix}:row_exponents", shape=(rows,), dtype="int8"))
        if bits == LEVEL_BITS:
            found.append(StoredArray(name=f"{prefix}:row_levels", shape=(rows, width), dtype="int8"))
        else:
            shape = (rows, bits, width // 8)
            found.append(StoredArray(name=f"{prefix}:row_bits", shape=shape, dtype="uint8"))
            found.append(StoredArray(name=f"{prefix}:row_alphas", shape=(rows, bits), dtype="int8"))
    return found


def channel_array(path: str, width: int) -> StoredArray:
    """The channel exponents of a norm's result."""
    return StoredArray(name=f"{path}:channels", shape=(width,), dtype="int8")


def norm_arrays(path: str, width: int) -> list[StoredArray]:
    """gamma, beta and constants of a norm."""
    return [
        StoredArray(name=f"{path}:gamma", shape=(width,), dtype="int16"),
        StoredArray(name=f"{path}:beta", shape=(width,), dtype="int16"),
        StoredArray(name=f"{path}:constants", shape=(len(CONSTANTS),), dtype="int32"),
    ]
