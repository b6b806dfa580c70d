# SPDX-License-Identifier: Apache-2.0
"""The limits' kernels hold the instructions that they are to measure."""

from __future__ import annotations

import pytest

from schedules.limits import READ_PARTS, peak_kernel, read_kernel
from targets import get_target, target_names

INSTRUCTIONS = {
    "amx": "tdpbssd",
    "avx512_vbmi": "vpdpbusd",
    "avx2": "vpmaddubsw",
    "ssse3": "pmaddubsw",
    "neon": "smull",
    "neon_dotprod": "sdot",
    "neon_i8mm": "sdot",
}


@pytest.mark.parametrize("name", target_names())
def test_peak_multiplies(name: str) -> None:
    import tvm

    target = get_target(name)
    function, macs = peak_kernel(target.kernel_isa, 2)
    module = tvm.IRModule({"peak": function.with_attr("global_symbol", "peak")})
    text = tvm.compile(module, target=target.to_tvm()).mod.inspect_source("asm")
    assert INSTRUCTIONS[target.kernel_isa] in text
    assert macs > 0


def test_reads_come_in_whole_parts() -> None:
    assert "parallel" in read_kernel(READ_PARTS * 256).script()
    with pytest.raises(ValueError, match="expected a multiple of"):
        read_kernel(1000)
