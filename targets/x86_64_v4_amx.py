# SPDX-License-Identifier: Apache-2.0
"""x86-64-v4 with VBMI, VNNI and AMX int8 (Sapphire Rapids and later): one instruction multiplies 16 x 64 by
64 x 16 bytes. The other kernels are those of the level below."""

from .permission import request_tile_data
from .spec import TargetSpec
from .x86_64_v4_vnni import FLAGS as VNNI_FLAGS

FLAGS = VNNI_FLAGS | {"amx_tile", "amx_int8"}

TARGET = TargetSpec(
    name="x86_64_v4_amx",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v4",
    llvm_features=("avx512vbmi", "avx512vnni", "amx-tile", "amx-int8"),
    cpu_flags=FLAGS,
    kernel_isa="amx",
    rank=55,
    permission=request_tile_data,
)
