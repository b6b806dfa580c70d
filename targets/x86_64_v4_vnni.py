# SPDX-License-Identifier: Apache-2.0
"""x86-64-v4 with VBMI and VNNI (Ice Lake, Zen 4 and later): vpermb reads four tables, vpdpbusd adds."""

from .spec import TargetSpec
from .x86_64_v3 import FLAGS as V3_FLAGS

FLAGS = V3_FLAGS | {
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "avx512vbmi",
    "avx512_vnni",
}

TARGET = TargetSpec(
    name="x86_64_v4_vnni",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v4",
    llvm_features=("avx512vbmi", "avx512vnni"),
    cpu_flags=FLAGS,
    kernel_isa="avx512_vbmi",
    rank=45,
)
