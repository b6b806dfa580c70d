# SPDX-License-Identifier: Apache-2.0
"""Armv8.0-A with NEON: every 64-bit Arm CPU that runs Linux or Android; the fallback of an artifact."""

from .spec import TargetSpec

FLAGS = frozenset({"fp", "asimd"})

TARGET = TargetSpec(
    name="arm64_v8",
    triple="aarch64-unknown-linux-gnu",
    cpu="cortex-a53",
    llvm_features=(),
    cpu_flags=FLAGS,
    kernel_isa="neon",
    rank=120,
)
