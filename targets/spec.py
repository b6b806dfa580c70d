# SPDX-License-Identifier: Apache-2.0
"""What a machine is: an ISA level with the CPU features its kernels may use.

Importing this module imports no TVM; ``TargetSpec.to_tvm`` builds the compiler's target on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

KernelIsa = Literal[
    "amx", "avx512_vbmi", "avx2", "ssse3", "neon", "neon_dotprod", "neon_i8mm", "portable"
]
System = Literal["linux", "android"]
ANDROID_API = 24
"""The oldest Android that runs what is compiled for it: API level 24, Android 7."""


def vector_isa(isa: str) -> str:
    """The kernel ISA of everything but integer dot products, which are all that some levels add.

    AMX adds a product of tiles to AVX-512, the higher Arm levels add sdot and smmla to NEON.
    """
    if isa == "amx":
        return "avx512_vbmi"
    return "neon" if is_neon(isa) else isa


def is_neon(isa: str) -> bool:
    """Whether kernels of this ISA are made of Arm's vector instructions."""
    return isa.startswith("neon")


def always() -> bool:
    """The permission of levels that need none."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """One ISA level.

    Attributes:
        name: registry name, also the library's file name in an artifact.
        triple: LLVM target triple.
        cpu: LLVM CPU name, the baseline of the level.
        llvm_features: features beyond the CPU's baseline, in LLVM's spelling without the plus sign.
        cpu_flags: what the operating system must report (``/proc/cpuinfo`` spelling) before code of
            this level may run.
        kernel_isa: which intrinsics the kernels of this level use.
        rank: higher runs first when several levels fit a machine.
        permission: asks the operating system for the level's registers; whether this process may use them.
    """

    name: str
    triple: str
    cpu: str
    llvm_features: tuple[str, ...]
    cpu_flags: frozenset[str]
    kernel_isa: KernelIsa
    rank: int
    permission: Callable[[], bool] = always

    @property
    def architecture(self) -> str:
        """Machine that runs the level, as ``uname -m`` calls it: ``x86_64`` or ``aarch64``."""
        return self.triple.partition("-")[0]

    @property
    def system(self) -> System:
        """The operating system whose C library and calling conventions the code is for."""
        return "android" if "android" in self.triple else "linux"

    def on(self, system: System) -> TargetSpec:
        """The same level for an operating system."""
        suffix = f"linux-android{ANDROID_API}" if system == "android" else "linux-gnu"
        return replace(self, triple=f"{self.architecture}-unknown-{suffix}")

    def to_tvm(self) -> Any:
        """The ``tvm.target.Target`` of this level."""
        import tvm

        # Level 3 only unrolls more: the same speed, a sixth more code.
        description: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.cpu,
            "opt-level": 2,
        }
        if self.llvm_features:
            description["mattr"] = [f"+{feature}" for feature in self.llvm_features]
        return tvm.target.Target(description)
