# SPDX-License-Identifier: Apache-2.0
"""What stands in for Android's headers and libraries: headers, sizes of types, names of functions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from targets import bionic, get_target
from targets.toolchain import NDK, Linker, compile_options, find_linker, link_libraries, link_options

SIZES = {
    # of bionic for 64 bits; those of glibc on 64-bit Arm are 48, 48, 64
    "pthread_mutex_t": 40, "pthread_cond_t": 48, "pthread_attr_t": 56,
    "pthread_t": 8, "pthread_key_t": 4, "pthread_once_t": 4,
    "struct stat": 128, "struct dirent": 280, "Elf64_Ehdr": 64, "Elf64_Phdr": 56,
    "struct timespec": 16, "cpu_set_t": 128,
    "off_t": 8, "time_t": 8, "mode_t": 4, "nlink_t": 4, "dev_t": 8, "ino_t": 8, "size_t": 8, "ssize_t": 8,
    "int64_t": 8, "intptr_t": 8, "int_fast16_t": 8, "uint_least32_t": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler() -> Linker:
    """A compiler for 64-bit Arm that knows nothing of Android."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(NDK, raising=False)
        found = find_linker(get_target("arm64_v8").on("android"))
    if found is None:
        pytest.skip("no compiler for aarch64")
    assert found.bare
    return found


def build(compiler: Linker, source: str, *words: str) -> None:
    options = [*compiler.command, "-std=c11", "-Wall", "-Wextra", "-Werror", *compile_options(compiler)]
    done = subprocess.run(
        [*options, *words], input=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_headers_can_be_included_in_any_order(compiler: Linker) -> None:
    names = [*bionic.NAMES, "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h", "arm_neon.h"]
    for order in (names, names[::-1]):
        text = "".join(f"#include <{name}>\n" for name in order)
        build(compiler, f"{text}extern int nothing;\n", "-fsyntax-only", "-x", "c", "-")


def test_types_have_the_sizes_of_bionic(compiler: Linker) -> None:
    text = "".join(f"#include <{name}>\n" for name in bionic.NAMES)
    text += "".join(f'_Static_assert(sizeof({name}) == {size}, "{name}");\n' for name, size in SIZES.items())
    text += '_Static_assert(offsetof(struct stat, st_size) == 48, "st_size");\n'
    text += '_Static_assert(offsetof(struct dirent, d_name) == 19, "d_name");\n'
    text += '_Static_assert(_Alignof(pthread_mutex_t) == 4, "alignment");\n'
    build(compiler, text, "-fsyntax-only", "-x", "c", "-")


def test_every_declaration_is_a_symbol() -> None:
    sections = {name: bionic.symbols(name) for name in bionic.LIBRARIES}
    assert sections["libdl.so"] == (["dlopen", "dlclose", "dlerror", "dlsym"], [])
    assert sections["libc.so"][1] == ["stdin", "stdout", "stderr"]
    text = bionic.HEADER.read_text(encoding="utf-8")
    declared = re.findall(r"^\w.*;$", text[text.index("== libc.so") :], re.MULTILINE)
    names = [name for functions, variables in sections.values() for name in (*functions, *variables)]
    assert len(declared) == len(names) == len(set(names))
    assert {"__errno", "qsort", "sincos", "abort", "expf", "pthread_once"} <= set(names)


def test_what_is_not_in_the_libraries_is_not_linked(compiler: Linker, tmp_path: Path) -> None:
    words = [*link_options(compiler), "-shared", "-fPIC", "-Wl,-z,defs", "-o", str(tmp_path / "x.so")]
    ends = link_libraries(compiler)
    build(compiler, "#include <math.h>\ndouble f(double x) { return pow(x, x); }\n", *words, "-x", "c", "-",
          "-x", "none", *ends)  # fmt: skip
    source = "int memfd_create(const char *, unsigned);\nint f(void) { return memfd_create(0, 0); }\n"
    with pytest.raises(AssertionError, match=r"undefined reference|undefined symbol"):
        build(compiler, source, *words, "-x", "c", "-", "-x", "none", *ends)
