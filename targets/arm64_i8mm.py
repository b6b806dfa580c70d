# SPDX-License-Identifier: Apache-2.0
"""Armv8 with int8 matrix products (Cortex-A510, A710, X2, Neoverse V1 and later): smmla multiplies 2 x 8 by
8 x 2 bytes."""

from .arm64_dotprod import FLAGS as DOTPROD_FLAGS
from .spec import TargetSpec

FLAGS = DOTPROD_FLAGS | {"i8mm"}

TARGET = TargetSpec(
    name="arm64_i8mm",
    triple="aarch64-unknown-linux-gnu",
    cpu="cortex-a53",
    llvm_features=("dotprod", "i8mm"),
    cpu_flags=FLAGS,
    kernel_isa="neon_i8mm",
    rank=140,
)
