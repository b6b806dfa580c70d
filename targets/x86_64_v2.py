# SPDX-License-Identifier: Apache-2.0
"""x86-64-v2 (SSE4.2, SSSE3, POPCNT): every x86-64 server since 2009; the fallback of an artifact."""

from .spec import TargetSpec

FLAGS = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})

TARGET = TargetSpec(
    name="x86_64_v2",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v2",
    llvm_features=(),
    cpu_flags=FLAGS,
    kernel_isa="ssse3",
    rank=20,
)
