# SPDX-License-Identifier: Apache-2.0
"""x86-64-v3 (AVX2, FMA, F16C): 32-byte shuffles look up two tables at once."""

from .spec import TargetSpec
from .x86_64_v2 import FLAGS as V2_FLAGS

FLAGS = V2_FLAGS | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}

TARGET = TargetSpec(
    name="x86_64_v3",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v3",
    llvm_features=(),
    cpu_flags=FLAGS,
    kernel_isa="avx2",
    rank=30,
)
