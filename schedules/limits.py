# SPDX-License-Identifier: Apache-2.0
"""The limits of a machine as kernels: reading memory once in order, and int8 dot products on registers."""

from __future__ import annotations

from typing import Any

from .tir import KernelBuilder, T, body, intrinsic, isplat, load, scratch, shuffle, splat, store

LINE = 64
READ_PARTS = 64
"""Pieces that the memory is read in, for threads."""
PEAK_LOOPS = 20_000


def read_kernel(nbytes: int) -> Any:
    """PrimFunc (data uint8[nbytes], y int32[64, 16]): sums of all bytes, read in order.

    Args:
        nbytes: a multiple of 64 parts of 256 bytes.
    """
    kernel = KernelBuilder("read")
    part = nbytes // READ_PARTS
    if part * READ_PARTS != nbytes or part % (4 * LINE):
        raise ValueError(f"{nbytes} bytes, expected a multiple of {READ_PARTS * 4 * LINE}")
    with kernel.define():
        data = kernel.param("data", (READ_PARTS, part // (4 * LINE), 4 * LINE), "uint8")
        y = kernel.param("y", (READ_PARTS, 16), "int32")
        with body([y], [data]), T.parallel(0, READ_PARTS) as p:
            sums = [scratch((16,), "int32") for _ in range(4)]
            for buffer in sums:
                store(buffer, (0,), isplat(0), 16)
            with T.serial(0, part // (4 * LINE)) as i:
                for line, buffer in enumerate(sums):
                    words = T.reinterpret("int32x16", load(data, (p, i, LINE * line), LINE))
                    store(buffer, (0,), load(buffer, (0,), 16) + words, 16)
            total = load(sums[0], (0,), 16)
            for buffer in sums[1:]:
                total = total + load(buffer, (0,), 16)
            store(y, (p, 0), total, 16)
    return kernel.result


def peak_kernel(isa: str, threads: int) -> tuple[Any, int]:
    """PrimFunc (y int32[threads, 256]) that only multiplies and adds, and how many products it computes."""
    kernel = KernelBuilder("peak")
    with kernel.define():
        y = kernel.param("y", (threads, 256), "int32")
        loop = T.parallel if threads > 1 else T.serial
        with body([y], []), loop(0, threads) as t:
            match isa:
                case "amx":
                    macs = _amx()
                case "avx512_vbmi":
                    macs = _registers(y, t, 16, _vpdpbusd)
                case "avx2":
                    macs = _registers(y, t, 8, _madd("avx2.pmadd.ub.sw", "avx2.pmadd.wd"))
                case "neon_dotprod" | "neon_i8mm":
                    macs = _registers(y, t, 4, _sdot)
                case "neon":
                    macs = _registers(y, t, 4, _smull)
                case _:
                    macs = _registers(y, t, 4, _madd("ssse3.pmadd.ub.sw.128", "sse2.pmadd.wd"))
    return kernel.result, macs * threads


def _registers(y: Any, row: Any, lanes: int, add: Any) -> int:
    """Independent sums in registers, each with one dot product a pass."""
    count = 10
    kind = "int32"
    sums = [scratch((lanes,), kind) for _ in range(count)]
    for i, buffer in enumerate(sums):
        store(buffer, (0,), isplat(i, lanes), lanes)
    with T.serial(0, PEAK_LOOPS):
        for buffer in sums:
            store(buffer, (0,), add(load(buffer, (0,), lanes), lanes), lanes)
    for i, buffer in enumerate(sums):
        store(y, (row, lanes * i), load(buffer, (0,), lanes), lanes)
    return count * lanes * 4 * PEAK_LOOPS


def _vpdpbusd(old: Any, lanes: int) -> Any:
    sides = splat(T.uint8(1), 4 * lanes), splat(T.int8(1), 4 * lanes)
    return T.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.x86.avx512.vpdpbusd.512", old, *sides)


def _madd(bytes_name: str, words_name: str) -> Any:
    """Multiply-add of bytes, then of words, then a sum; one factor is the old sum, or LLVM would hoist it."""

    def add(old: Any, lanes: int) -> Any:
        ones, words = splat(T.int8(1), 4 * lanes), splat(T.int16(1), 2 * lanes)
        left = T.reinterpret(f"uint8x{4 * lanes}", old)
        pairs = T.call_llvm_pure_intrin(f"int16x{2 * lanes}", f"llvm.x86.{bytes_name}", left, ones)
        return old + T.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.{words_name}", pairs, words)

    return add


def _sdot(old: Any, lanes: int) -> Any:
    ones = splat(T.int8(1), 4 * lanes)
    return intrinsic(f"int32x{lanes}", "llvm.aarch64.neon.sdot", old, ones, T.reinterpret("int8x16", old))


def _smull(old: Any, lanes: int) -> Any:
    """Both halves of 16 products, added in twos."""
    left = T.Bind(T.reinterpret("int8x16", old))
    threes = splat(T.int8(3), 8)  # by ones LLVM would not multiply
    for half in range(2):
        part = shuffle([left], range(8 * half, 8 * half + 8))
        products = intrinsic("int16x8", "llvm.aarch64.neon.smull", part, threes)
        old = old + intrinsic(f"int32x{lanes}", "llvm.aarch64.neon.saddlp", products)
    return old


def _amx() -> int:
    from .intrin_amx import tile_call, tile_session

    with tile_session(T.int64(16), levels=(6, 7)), T.serial(0, PEAK_LOOPS):
        for tile in range(4):
            tile_call("tdpbssd", T.int8(tile), T.int8(4 + tile // 2), T.int8(6 + tile % 2))
    return 4 * 16 * 16 * 64 * PEAK_LOOPS
