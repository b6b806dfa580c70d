# SPDX-License-Identifier: Apache-2.0
"""Armv8 with dot products (Cortex-A55, A76 and later): sdot multiplies 16 bytes and adds them in fours."""

from .arm64_v8 import FLAGS as V8_FLAGS
from .spec import TargetSpec

FLAGS = V8_FLAGS | {"asimddp"}

TARGET = TargetSpec(
    name="arm64_dotprod",
    triple="aarch64-unknown-linux-gnu",
    cpu="cortex-a53",
    llvm_features=("dotprod",),
    cpu_flags=FLAGS,
    kernel_isa="neon_dotprod",
    rank=130,
)
