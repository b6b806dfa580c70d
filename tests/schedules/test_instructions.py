# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the kernels: no instruction beyond a level's promise, no code bloat.

These tests read assembly, so they need no CPU of the level that they check.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from schedules.attention import AttentionSpec, attention
from schedules.dequant_gemm import DequantSpec, dequant_gemm
from schedules.embedding import GatherSpec, gather
from schedules.float_gemm import FloatSpec, float_gemm
from schedules.lut_gemm import LutSpec, Segment, lut_gemm
from schedules.lut_table import Tables
from schedules.norm import NormSpec, norm
from schedules.packing import ColumnLayout
from schedules.search_step import SearchSpec, argmax, topk
from targets import get_target, target_names

WIDTH = 128
BEYOND_ARMV8 = {
    "arm64_v8": r"[su]dot|[su]sdot|[su]mmla|usmmla|bf(?:dot|mmla|ml|cvt)\w*|f\w+\t.*\.[48]h\b",
    "arm64_dotprod": r"usdot|sudot|[su]mmla|usmmla|bf(?:dot|mmla|ml)\w*",
    "arm64_i8mm": r"bf(?:dot|mmla|ml)\w*",
}
"""Dot products, matrix products, bfloat16 and arithmetic on halves, as far as a level lacks them."""
LATER_ARM = r"cas\w*|swp\w*|ld(?:add|clr|set|eor|apr)\w*|crc32\w*|aes\w+|sha\w+|fcmla|sqrdml\w+|fjcvtzs"
"""What no level promises: atomics, checksums, cryptography, SVE, complex numbers."""
BEYOND_SSE42 = r"v\w+|bls\w+|(?:andn|bextr|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|movbe)\w?"
"""AVX and later start with v; the others are BMI1, BMI2, LZCNT and MOVBE."""


def product(tables: Tables) -> LutSpec:
    segment = Segment(
        rows=96, bits=2, group_size=WIDTH, offset=True, scale_dtype="float16", output=0, start=0
    )
    return LutSpec(
        k=WIDTH, outputs=(96,), segments=(segment,), bias=(True,), activation=("relu",), tables=tables
    )


def integers(bits: int) -> DequantSpec:
    """Two chunks of columns, so that every part of the kernels is there."""
    return DequantSpec(n=96, k=1024, bits=bits, bias=True, activation="relu")


@cache
def source(name: str) -> tuple[str, frozenset[str]]:
    """Assembly of one kernel of every kind, and their names."""
    import tvm

    target = get_target(name)
    layout = ColumnLayout(k=WIDTH, group_size=WIDTH)
    kernels: dict[str, Any] = {
        "int8": lut_gemm(product("int8"), target.kernel_isa),
        "exact": lut_gemm(product("exact"), target.kernel_isa),
        "norm": norm(NormSpec(width=WIDTH, epsilon=1e-5, residual=True, table=layout)),
        "cached": attention(AttentionSpec(kind="cached", heads=4, width=WIDTH, table=layout)),
        "float": float_gemm(FloatSpec(n=96, k=WIDTH, bias=True, activation="relu")),
        "gather": gather(GatherSpec(words=96, width=WIDTH, segments=product("int8").segments)),
        "argmax": argmax(SearchSpec(vocabulary=1001, banned=1, order_dtype="uint16")),
        "topk": topk(SearchSpec(vocabulary=1001, banned=1, order_dtype="uint16")),
        "planes": dequant_gemm(integers(3), target.kernel_isa),
        "levels": dequant_gemm(integers(8), target.kernel_isa),
    }
    module = tvm.IRModule({key: f.with_attr("global_symbol", key) for key, f in kernels.items()})
    return tvm.compile(module, target=target.to_tvm()).mod.inspect_source("asm"), frozenset(kernels)


@cache
def assembly(name: str) -> dict[str, list[str]]:
    """Instructions (mnemonic and operands) of one kernel of every kind, by kernel."""
    text, kernels = source(name)
    found: dict[str, list[str]] = {}
    symbol = ""
    for line in text.splitlines():
        if label := re.match(r"(\w+):", line):
            symbol = label[1]
        elif instruction := re.match(r"\t(?:lock\t|rep\t)?([a-z][\w.]*(?:\t.*)?)$", line):
            found.setdefault(symbol.removesuffix("_compute_"), []).append(instruction[1])
    assert kernels <= set(found)
    return found


def inner_loops(name: str, kernel: str) -> list[list[str]]:
    """The instructions of every loop of a kernel that has no other loop within."""
    _, _, text = source(name)[0].partition(f"\n{kernel}_compute_:")
    lines: list[str] = []
    places, loops = {}, []
    for line in text.partition("\n.Lfunc_end")[0].splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            places[label[1]] = len(lines)
        elif re.match(r"\t[a-z]", line):
            lines.append(line.strip())
            if (start := places.get(line.split()[-1])) is not None:
                loops.append((start, len(lines)))
    inner = [
        (start, end)
        for start, end in loops
        if not any(start < other and stop <= end for other, stop in loops)
    ]
    return [lines[start:end] for start, end in inner]


def everything(name: str) -> list[str]:
    return [line for lines in assembly(name).values() for line in lines]


def mnemonics(lines: list[str]) -> set[str]:
    return {line.split("\t")[0] for line in lines}


def test_v2_has_no_instruction_beyond_sse42() -> None:
    beyond = {m for m in mnemonics(everything("x86_64_v2")) if re.fullmatch(BEYOND_SSE42, m)}
    assert not beyond
    assert not [line for line in everything("x86_64_v2") if re.search(r"%[yz]mm|%k[0-7]", line)]
    assert "pshufb" in mnemonics(assembly("x86_64_v2")["int8"])


def test_v3_has_no_avx512() -> None:
    lines = everything("x86_64_v3")
    assert not [line for line in lines if re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]|\{1to", line)]
    assert "vpshufb" in mnemonics(assembly("x86_64_v3")["int8"])
    assert mnemonics(assembly("x86_64_v3")["exact"]) & {"vpermps", "vpermd"}


@pytest.mark.parametrize("name", target_names())
def test_no_level_fuses_products_and_sums(name: str) -> None:
    """Fused, a sum rounds once instead of twice, and levels would give different numbers."""
    assert not [line for line in everything(name) if re.match(r"v?fn?m(?:add|sub)|fml[as]", line)]
    assert mnemonics(everything(name)) & {"mulps", "vmulps", "fmul"}


def test_v4_looks_up_and_adds_in_two_instructions() -> None:
    lines = assembly("x86_64_v4_vnni")["int8"]
    assert {"vpermb", "vpdpbusd", "vpternlogq"} <= mnemonics(lines)
    inner = [line for line in lines if re.match(r"vpermb|vpdpbusd", line)]
    assert not [line for line in inner if "%rsp" in line], "accumulators or tables were spilled"
    assert "vpermps" in mnemonics(assembly("x86_64_v4_vnni")["exact"])


@pytest.mark.parametrize(
    ("name", "most"),
    [("x86_64_v2", 2000), ("x86_64_v3", 1500), ("x86_64_v4_vnni", 1700), ("x86_64_v4_amx", 2200)],
)
def test_integer_products_are_small(name: str, most: int) -> None:
    for kernel in ("planes", "levels"):
        assert len(assembly(name)[kernel]) < most, kernel


def test_no_level_but_amx_has_tiles() -> None:
    tiles = {"ldtilecfg", "tileloadd", "tileloaddt1", "tdpbssd", "tilestored", "tilezero", "tilerelease"}
    for name in target_names():
        found = mnemonics(assembly(name)["planes"] + assembly(name)["levels"])
        assert found & tiles == (tiles if name == "x86_64_v4_amx" else set()), name
    others = {k: v for k, v in assembly("x86_64_v4_amx").items() if k not in {"planes", "levels"}}
    assert not [line for lines in others.values() for line in lines if "tmm" in line]


@pytest.mark.parametrize("name", ["x86_64_v4_vnni", "x86_64_v4_amx"])
def test_planes_expand_in_three_instructions(name: str) -> None:
    lines = assembly(name)["planes"]
    assert {"vpmultishiftqb", "vpermb", "vpternlogq"} <= mnemonics(lines)
    assert not [line for line in lines if re.match("vpermb|vpmultishiftqb", line) and "%rsp" in line]


def test_integer_dot_products_stay_in_registers() -> None:
    v4 = [line for line in assembly("x86_64_v4_vnni")["levels"] if line.startswith("vpdpbusd")]
    assert v4
    assert not [line for line in v4 if "%rsp" in line], "accumulators were spilled"
    v3 = assembly("x86_64_v3")["levels"]
    assert {"vpsignb", "vpmaddubsw", "vpmaddwd"} <= mnemonics(v3)
    assert {"psignb", "pmaddubsw", "pmaddwd"} <= mnemonics(assembly("x86_64_v2")["levels"])


@pytest.mark.parametrize("name", target_names())
def test_halves_become_floats_without_calls(name: str) -> None:
    calls = [line for line in assembly(name)["int8"] + assembly(name)["exact"] if "extendhf" in line]
    assert not calls


@pytest.mark.parametrize(
    ("name", "most"), [("x86_64_v2", 2800), ("x86_64_v3", 1800), ("x86_64_v4_vnni", 1200)]
)
def test_products_are_small(name: str, most: int) -> None:
    """An artifact ships every kernel once a level; unrolling rows made five times as much."""
    for kernel in ("int8", "exact"):
        assert len(assembly(name)[kernel]) < most, kernel


@pytest.mark.parametrize("name", BEYOND_ARMV8)
def test_arm_levels_keep_to_their_features(name: str) -> None:
    lines = everything(name)
    assert not [line for line in lines if re.match(BEYOND_ARMV8[name], line) and "fcvt" not in line]
    assert not [line for line in lines if re.match(LATER_ARM, line) or re.search(r"\b[zp]\d+\.", line)]
    levels = mnemonics(assembly(name)["levels"])
    assert ("sdot" in levels, "smmla" in levels) == (name != "arm64_v8", name == "arm64_i8mm")
    assert {"tbl", "sadalp"} <= mnemonics(assembly(name)["int8"])


@pytest.mark.parametrize("name", BEYOND_ARMV8)
@pytest.mark.parametrize(
    ("kernel", "pattern", "least"),
    [("int8", "tbl|sadalp", 16), ("planes", "cmtst", 8), ("levels", "sdot|smmla", 8)],
)
def test_arm_loops_spill_nothing(name: str, kernel: str, pattern: str, least: int) -> None:
    """A loop that looks up, expands or multiplies has no register to spare for the stack, nor needs it."""
    loops = inner_loops(name, kernel)
    loops = [loop for loop in loops if sum(bool(re.match(pattern, line)) for line in loop) >= least]
    assert loops or (kernel, name) == ("levels", "arm64_v8")
    assert not [line for loop in loops for line in loop if "[sp" in line]
